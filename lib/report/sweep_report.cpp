#include "report/sweep_report.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "eval/layer_entry.hpp"
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

/// Reads all journals: visit(entry, journal) for the entries of units.
template <class Visit>
Json read_all(std::span<const JournalReader> journals, std::vector<std::string>& notes,
              Visit&& visit) {
  Json begin;
  for (const JournalReader& journal : journals) {
    bool begun = false;
    journal.read([&](Json&& entry) {
      if (is_report_mark(entry)) return;
      if (!is_begin_entry(entry)) return visit(entry, journal);
      begun = true;
      if (begin.is_null()) {
        begin = std::move(entry);
        return;
      }
      const Json& there = entry.at("begin");
      const std::string differences = journal_differences(
          begin.at("begin").value("environment", Json()), there.value("environment", Json()));
      if (!differences.empty()) {
        notes.push_back("'" + journal.path() + "' was run elsewhere: " + differences);
      }
    });
    if (!begun) {
      throw Error(ErrorKind::kInput, "'" + journal.path() + "' has no beginning",
                  "its run was stopped as it began; run it again");
    }
  }
  return begin;
}

std::string layer_name(const Report& head, std::size_t input, std::int64_t layer) {
  const std::string file = input < head.inputs.size()
                               ? std::filesystem::path(head.inputs[input].path).filename().string()
                               : "input " + std::to_string(input);
  return "layer " + std::to_string(layer) + " of " + file;
}

Report read_trace_report(std::span<const JournalReader> journals, std::vector<std::string>& notes) {
  struct Found {
    LayerPart part;
    const JournalReader* journal;
  };
  std::map<std::pair<std::size_t, std::int64_t>, Found> found;
  std::vector<std::tuple<std::size_t, std::int64_t, const JournalReader*>> twice;
  const Json begin = read_all(journals, notes, [&](const Json& entry, const JournalReader& from) {
    if (!is_layer_entry(entry)) return;
    LayerEntry unit = layer_entry_from_json(entry);
    const std::pair key{unit.input, unit.part.layer};
    if (!found.emplace(key, Found{std::move(unit.part), &from}).second) {
      twice.emplace_back(key.first, key.second, &from);
    }
  });
  Report report = trace_head(journals.front().identity(), begin);
  for (const auto& [input, layer, journal] : twice) {
    doubled(layer_name(report, input, layer), found.at({input, layer}).journal->path(),
            journal->path());
  }
  std::vector<std::string> missing;
  std::vector<std::vector<LayerPart>> parts(report.inputs.size());
  report.work = LayerSeconds();
  for (std::size_t i = 0; i < report.inputs.size(); ++i) {
    const TraceInfo& info = report.inputs[i].info;
    const auto [begin_layer, end_layer] =
        report.protocol.layers.value_or(std::pair{std::int64_t{0}, INT64_MAX});
    for (std::int64_t layer = std::max(begin_layer, info.first_layer);
         layer < end_layer && layer <= info.last_layer(); ++layer) {
      const auto it = found.find({i, layer});
      if (it == found.end()) {
        missing.push_back(layer_name(report, i, layer));
        continue;
      }
      *report.work = *report.work + it->second.part.seconds;
      parts[i].push_back(std::move(it->second.part));
      found.erase(it);
    }
  }
  require_complete(missing, journals);
  if (!found.empty()) {
    const auto& [input, layer] = found.begin()->first;
    throw Error(ErrorKind::kInput, "'" + found.begin()->second.journal->path() + "' holds " +
                                       layer_name(report, input, layer) +
                                       ", which the sweep has not");
  }
  for (std::vector<LayerPart>& layers : parts) {
    std::vector<CellRecord> cells = join_layers(std::move(layers));
    std::move(cells.begin(), cells.end(), std::back_inserter(report.cells));
  }
  report.seconds = report.work->total;
  return report;
}

}  // namespace

SweepOutcome write_sweep_report(std::span<const std::string> paths_of_journals,
                                const ReportPaths& paths, bool force) {
  const std::vector<JournalReader> journals = open_journals(paths_of_journals);
  SweepOutcome outcome;
  const Report report = read_trace_report(journals, outcome.notes);
  write_report(report, paths, force);
  outcome.table = report_table(report);
  outcome.cells = report.cells.size();
  outcome.failed = static_cast<std::size_t>(
      std::count_if(report.cells.begin(), report.cells.end(),
                    [](const CellRecord& cell) { return cell.status == CellStatus::kFailed; }));
  return outcome;
}

std::string journal_path(const ReportPaths& paths, const Shard& shard) {
  const std::string stem = paths.json.substr(0, paths.json.size() - std::string(".json").size());
  if (shard.whole()) return stem + ".journal";
  return stem + ".shard-" + std::to_string(shard.index) + "-of-" + std::to_string(shard.count) +
         ".journal";
}

}  // namespace sw
