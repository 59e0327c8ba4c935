#include "report/sweep_report.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "eval/layer_entry.hpp"
#include "report/model_report.hpp"
#include "report/sweep_head.hpp"
#include "report/table.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

/// What identifies a sweep whatever the shard.
Json without_shard(Json identity) {
  identity.erase("shard");
  return identity;
}

std::string shard_of(const JournalReader& journal) {
  const auto found = journal.identity().find("shard");
  const bool known = found != journal.identity().end() && found->is_string();
  return known ? found->get<std::string>() : "?";
}

std::vector<JournalReader> open_journals(std::span<const std::string> paths) {
  std::vector<JournalReader> journals;
  for (const std::string& path : paths) {
    journals.emplace_back(path);
    const Json& first = journals.front().identity();
    sweep_kind(journals.back().identity(), path);
    const std::string differences =
        journal_differences(without_shard(first), without_shard(journals.back().identity()));
    if (differences.empty()) continue;
    throw Error(ErrorKind::kInput,
                "'" + journals.front().path() + "' and '" + path +
                    "' are of different sweeps: " + differences,
                "merge the shards of one sweep, run with the same program, inputs and options");
  }
  if (journals.empty()) throw Error(ErrorKind::kUsage, "there are no journals to merge");
  return journals;
}

/// Names at most a few of `names`.
std::string some(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 5;
  std::string text;
  for (std::size_t i = 0; i < std::min(kShown, names.size()); ++i) {
    text += (i > 0 ? ", " : "") + names[i];
  }
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

void require_complete(const std::vector<std::string>& missing,
                      std::span<const JournalReader> journals) {
  if (missing.empty()) return;
  std::vector<std::string> shards;
  for (const JournalReader& journal : journals) shards.push_back(shard_of(journal));
  throw Error(ErrorKind::kInput, "the sweep is not finished: " + some(missing) + " are missing",
              "shards given: " + some(shards) +
                  "; give the others too, or run them to their end with the same command");
}

[[noreturn]] void doubled(const std::string& unit, const std::string& a, const std::string& b) {
  throw Error(ErrorKind::kInput, unit + " is there twice, in '" + a + "' and in '" + b + "'",
              "give each shard once");
}

/// Reads all journals: on_begin(entry) for the beginning of the first one, then visit(entry,
/// journal) for the entries of units.
template <class Begin, class Visit>
void read_all(std::span<const JournalReader> journals, std::vector<std::string>& notes,
              Begin&& on_begin, Visit&& visit) {
  std::optional<Json> environment;
  for (const JournalReader& journal : journals) {
    bool begun = false;
    const auto require_begun = [&] {
      if (begun) return;
      throw Error(ErrorKind::kInput, "'" + journal.path() + "' has no beginning",
                  "its run was stopped as it began; run it again");
    };
    journal.read([&](Json&& entry) {
      if (is_report_mark(entry)) return;
      if (!is_begin_entry(entry)) {
        require_begun();
        visit(entry, journal);
        return;
      }
      begun = true;
      Json here = begin_environment(entry);
      if (!environment) {
        environment = std::move(here);
        on_begin(entry);
        return;
      }
      const std::string differences = journal_differences(*environment, here);
      if (!differences.empty()) {
        notes.push_back("'" + journal.path() + "' was run elsewhere: " + differences);
      }
    });
    require_begun();
  }
}

/// "OUT" of OUT.json.
std::string stem(const ReportPaths& paths) {
  return paths.json.substr(0, paths.json.size() - std::string_view(".json").size());
}

/// Whether a journal holds its first lines whole; a process that was killed at once leaves less.
bool has_begun(const std::string& path) {
  const MappedFile file(path);
  const auto newline = std::byte{'\n'};
  return std::count(file.bytes().begin(), file.bytes().end(), newline) >= 2;
}

std::string layer_name(const Report& head, std::size_t input, std::int64_t layer) {
  const std::string file = input < head.inputs.size()
                               ? std::filesystem::path(head.inputs[input].path).filename().string()
                               : "input " + std::to_string(input);
  return "layer " + std::to_string(layer) + " of " + file;
}

/// Layers [first, second) of an input that the sweep evaluates.
std::pair<std::int64_t, std::int64_t> swept_layers(const Report& head, std::size_t input) {
  const TraceInfo& info = head.inputs[input].info;
  const auto [begin, end] = head.protocol.layers.value_or(std::pair{std::int64_t{0}, INT64_MAX});
  return {std::max(begin, info.first_layer), std::min(end, info.last_layer() + 1)};
}

Report read_trace_report(std::span<const JournalReader> journals, std::vector<std::string>& notes) {
  struct Found {
    LayerPart part;
    const JournalReader* journal;
  };
  Report report;
  std::map<std::pair<std::size_t, std::int64_t>, Found> found;
  const auto on_begin = [&](const Json& begin) {
    report = trace_head(journals.front().identity(), begin);
  };
  read_all(journals, notes, on_begin, [&](const Json& entry, const JournalReader& from) {
    if (!is_layer_entry(entry)) return;
    const auto [input, layer] = layer_entry_unit(entry);
    const std::string name = layer_name(report, input, layer);
    const auto [begin, end] =
        input < report.inputs.size() ? swept_layers(report, input) : std::pair{layer, layer};
    if (layer < begin || layer >= end) {
      throw Error(ErrorKind::kInput,
                  "'" + from.path() + "' holds " + name + ", which the sweep has not");
    }
    if (const auto first = found.find({input, layer}); first != found.end()) {
      doubled(name, first->second.journal->path(), from.path());
    }
    const auto shape = LayerShape::of(report.inputs[input].info, report.protocol.block);
    found.emplace(std::pair{input, layer}, Found{layer_entry_from_json(entry, shape).part, &from});
  });
  std::vector<std::string> missing;
  std::vector<std::vector<LayerPart>> parts(report.inputs.size());
  report.work = LayerSeconds();
  for (std::size_t i = 0; i < report.inputs.size(); ++i) {
    const auto [begin, end] = swept_layers(report, i);
    for (std::int64_t layer = begin; layer < end; ++layer) {
      const auto it = found.find({i, layer});
      if (it == found.end()) {
        missing.push_back(layer_name(report, i, layer));
        continue;
      }
      *report.work = *report.work + it->second.part.seconds;
      parts[i].push_back(std::move(it->second.part));
    }
  }
  require_complete(missing, journals);
  for (std::vector<LayerPart>& layers : parts) {
    std::vector<CellRecord> cells = join_layers(std::move(layers));
    std::move(cells.begin(), cells.end(), std::back_inserter(report.cells));
  }
  report.seconds = report.work->total;
  return report;
}

ModelReport read_model_report(std::span<const JournalReader> journals,
                              std::vector<std::string>& notes) {
  std::map<std::tuple<std::string, std::int64_t, std::string>, const JournalReader*> found;
  std::vector<RunEntry> entries;
  ModelHead head;
  const auto on_begin = [&](const Json& begin) {
    head = model_head(journals.front().identity(), begin);
  };
  read_all(journals, notes, on_begin, [&](const Json& json, const JournalReader& from) {
    if (!json.contains("task")) return;
    RunEntry entry = run_entry_from_json(json);
    const auto [at, added] = found.emplace(std::tuple(entry.task, entry.sample, entry.arm), &from);
    if (!added) {
      doubled("sample " + std::to_string(entry.sample) + " of " + entry.task + " by " + entry.arm,
              at->second->path(), from.path());
    }
    entries.push_back(std::move(entry));
  });
  auto& [report, samples] = head;
  if (samples.size() != report.tasks.size()) {
    throw Error(ErrorKind::kInput, "'" + journals.front().path() + "' does not count its samples");
  }
  std::vector<std::string> missing;
  // The order of tasks, samples and arms, whoever ran what first.
  std::map<std::tuple<std::string, std::int64_t, std::string>, std::size_t> order;
  for (std::size_t t = 0; t < samples.size(); ++t) {
    for (std::int64_t i = 0; i < samples[t]; ++i) {
      bool whole = true;
      for (const ArmInfo& arm : report.arms) {
        const std::tuple key(report.tasks[t].name, i, arm.label);
        whole = whole && found.contains(key);
        order.emplace(key, order.size());
      }
      if (!whole) missing.push_back("sample " + std::to_string(i) + " of " + report.tasks[t].name);
    }
  }
  require_complete(missing, journals);
  const auto place = [&](const RunEntry& entry) {
    return order.find({entry.task, entry.sample, entry.arm});
  };
  for (const RunEntry& entry : entries) {
    if (place(entry) != order.end()) continue;
    throw Error(ErrorKind::kInput, "a journal holds sample " + std::to_string(entry.sample) +
                                       " of " + entry.task + " by " + entry.arm +
                                       ", which the sweep has not");
  }
  std::sort(entries.begin(), entries.end(), [&](const RunEntry& a, const RunEntry& b) {
    return place(a)->second < place(b)->second;
  });
  for (const RunEntry& entry : entries) {
    report.seconds += entry.prefill_seconds + entry.decode_seconds;
  }
  report.entries = std::move(entries);
  return std::move(report);
}

SweepOutcome write_trace_report(std::span<const JournalReader> journals, const ReportPaths& paths,
                                bool force) {
  SweepOutcome outcome;
  const Report report = read_trace_report(journals, outcome.notes);
  const ReportSummary summaries = summarize_report(report);
  write_report(report, summaries, paths, force);
  outcome.table = report_table(report, summaries);
  outcome.cells = report.cells.size();
  for (const CellRecord& cell : report.cells) {
    if (cell.status == CellStatus::kFailed) ++outcome.failed;
  }
  return outcome;
}

SweepOutcome write_model_report(std::span<const JournalReader> journals, const ReportPaths& paths,
                                bool force) {
  SweepOutcome outcome;
  const ModelReport report = read_model_report(journals, outcome.notes);
  const ModelSummary summary = summarize_model(report.entries, report.tasks, report.arms);
  write_report(report, summary, paths, force);
  outcome.table = report_table(report, summary);
  outcome.cells = summary.cells.size();
  for (const ModelCell& cell : summary.cells) {
    if (!cell.failure.empty()) ++outcome.failed;
  }
  return outcome;
}

}  // namespace

SweepOutcome write_sweep_report(std::span<const std::string> paths_of_journals,
                                const ReportPaths& paths, bool force) {
  const std::vector<JournalReader> journals = open_journals(paths_of_journals);
  const bool traces = sweep_kind(journals.front().identity(), journals.front().path()) == "trace";
  return traces ? write_trace_report(journals, paths, force)
                : write_model_report(journals, paths, force);
}

std::string journal_path(const ReportPaths& paths, const Shard& shard) {
  if (shard.whole()) return stem(paths) + ".journal";
  return stem(paths) + ".shard-" + std::to_string(shard.index) + "-of-" +
         std::to_string(shard.count) + ".journal";
}

std::string rank_journal_path(const ReportPaths& paths, int rank) {
  return stem(paths) + ".rank-" + std::to_string(rank) + ".journal";
}

std::vector<std::pair<int, std::string>> find_rank_journals(const ReportPaths& paths) {
  namespace fs = std::filesystem;
  std::vector<std::pair<int, std::string>> found;
  const std::string prefix = fs::path(stem(paths)).filename().string() + ".rank-";
  const std::string folder = fs::path(paths.json).parent_path().string();
  for (const auto& entry : fs::directory_iterator(folder.empty() ? "." : folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix) || !entry.is_regular_file()) continue;
    const int rank = std::atoi(name.c_str() + prefix.size());
    const std::string path = rank_journal_path(paths, rank);
    if (fs::path(path).filename() == name && has_begun(path)) found.emplace_back(rank, path);
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace sw
