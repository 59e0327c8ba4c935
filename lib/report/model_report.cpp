#include "report/model_report.hpp"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/file.hpp"
#include "core/text.hpp"
#include "report/columns.hpp"
#include "report/hdf5_report.hpp"
#include "report/json_parts.hpp"
#include "report/report.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

Json paired_json(const PairedResult& result) {
  return {{"samples", result.samples},
          {"dense", result.dense_mean},
          {"sparse", result.sparse_mean},
          {"difference", to_json(result.difference)},
          {"p_value", result.p_value},
          {"p_holm", result.p_holm},
          {"mcnemar", nullable(result.mcnemar)},
          {"minimum_detectable", result.minimum_detectable},
          {"verdict", verdict_name(result.verdict)},
          {"beats_dense", result.beats_dense}};
}

Json kl_json(const DistributionSummary& d) {
  Json percentiles;
  for (const auto& [percent, value] : d.kl_percentiles) percentiles[format_double(percent)] = value;
  return {{"mean", to_json(d.kl_mean)},
          {"max", d.kl_max},
          {"min", d.kl_min},
          {"percentiles", percentiles},
          {"same_top_1", to_json(d.same_top)},
          {"delta_p_rms", d.delta_p_rms},
          {"delta_p_mean", d.delta_p_mean}};
}

Json timing_json(const std::vector<double>& seconds) {
  if (seconds.empty()) return nullptr;
  return {{"median", median(seconds)},
          {"mad", median_absolute_deviation(seconds)},
          {"samples", seconds}};
}

/// Seconds of all layers in each stage: the median over the entries of `stages`, divided by what
/// `units` gives. Null where nothing was timed.
template <class Stages, class Units>
Json stages_json(const std::vector<const RunEntry*>& entries, Stages stages, Units units) {
  Json json = nullptr;
  for (int s = 0; s < kNumStages; ++s) {
    std::vector<double> seconds;
    for (const RunEntry* entry : entries) {
      const auto count = static_cast<double>(units(*entry));
      if (count > 0) seconds.push_back(stages(*entry).seconds[static_cast<std::size_t>(s)] / count);
    }
    if (!seconds.empty()) json[kStageNames[static_cast<std::size_t>(s)]] = median(seconds);
  }
  return json;
}

Json reply_json(const RunEntry& entry) {
  Json json = {{"sample", entry.sample},
               {"id", entry.id},
               {"group", entry.group},
               {"score", entry.reply->score},
               {"prediction", entry.reply->text},
               {"reply_tokens", entry.reply->ids.size()}};
  json["prompt_tokens"] = entry.prompt.tokens;
  json["untruncated_tokens"] = entry.prompt.untruncated;
  json["prompt_ids_sha256"] = entry.prompt.ids_sha256;
  return json;
}

Json window_json(const RunEntry& entry) {
  const WindowResult& window = *entry.window;
  return {{"sample", entry.sample},
          {"begin", window.begin},
          {"end", window.end},
          {"scored_from", window.scored_from},
          {"prompt_ids_sha256", entry.prompt.ids_sha256}};
}

/// What the prompts of a cell had in common, for the reader of a report.
Json guard_json(const ModelCell& cell) {
  const PromptIdentity& first = cell.entries.front()->prompt;
  return {{"bos_count", first.bos_count},
          {"stop_set", first.stop_set},
          {"chat_template", first.chat_template},
          {"truncated", cell.truncated}};
}

const char* status_of(const ModelCell& cell) {
  if (!cell.failure.empty()) return status_name(CellStatus::kFailed);
  return status_name(cell.samples > 0 ? CellStatus::kOk : CellStatus::kSkipped);
}

Json cell_json(const ModelReport& report, const ModelCell& cell, std::size_t index) {
  const ArmInfo& arm = report.arms[cell.arm];
  const TaskInfo& task = report.tasks[cell.task];
  char id[24];
  std::snprintf(id, sizeof id, "%04zu", index);
  Json json = {{"id", id},
               {"method", arm.method},
               {"density", nullable(arm.density)},
               {"input", task.name},
               {"status", status_of(cell)},
               {"reason", cell.samples > 0       ? Json(nullptr)
                          : cell.failure.empty() ? Json("not run")
                                                 : Json(cell.failure)},
               {"samples", cell.samples}};
  if (cell.samples == 0) return json;
  json["protocol"] = guard_json(cell);
  json["realised_density"] = to_json(cell.density);
  json["density_per_layer"] = cell.density_per_layer;
  if (cell.score) {
    json["metric"] = task.metric;
    json["score"] = to_json(*cell.score);
    Json groups = Json::array();
    for (const GroupScore& group : cell.groups) {
      groups.push_back({{"group", group.group}, {"samples", group.samples}, {"score", group.mean}});
    }
    json["groups"] = groups;
    json["versus_dense"] = cell.paired ? paired_json(*cell.paired) : Json(nullptr);
    if (cell.divergence) {
      json["divergence"] = {{"replies", cell.divergence->replies},
                            {"identical", cell.divergence->identical},
                            {"median_first_token", nullable(cell.divergence->median_token)}};
    }
    Json replies = Json::array();
    for (const RunEntry* entry : cell.entries) replies.push_back(reply_json(*entry));
    json["replies"] = replies;
  }
  if (cell.perplexity) {
    json["perplexity"] = *cell.perplexity;
    if (const auto& d = cell.distribution) {
      json["versus_dense"] = {{"perplexity_dense", d->ppl_dense},
                              {"ln_ratio", d->ln_ratio},
                              {"ln_ratio_standard_error", d->ln_ratio_se},
                              {"ln_ratio_interval", to_json(d->ln_ratio_interval)},
                              {"kl", cell.has_kl ? kl_json(*d) : Json(nullptr)}};
    }
    if (!cell.hidden_error.empty()) json["hidden_error"] = cell.hidden_error;
    Json windows = Json::array();
    for (const RunEntry* entry : cell.entries) windows.push_back(window_json(*entry));
    json["windows"] = windows;
  }
  json["latency"] = {
      {"prefill", timing_json(cell.prefill_seconds)},
      {"decode_token", timing_json(cell.decode_seconds_per_token)},
      {"prefill_stages", stages_json(
                             cell.entries, [](const RunEntry& e) { return e.prefill_stages; },
                             [](const RunEntry&) { return 1; })},
      {"decode_token_stages", stages_json(
                                  cell.entries, [](const RunEntry& e) { return e.decode_stages; },
                                  [](const RunEntry& e) { return e.decode_steps; })}};
  return json;
}

}  // namespace

Json to_json(const ModelProtocol& p) {
  return {{"kind", "model"},
          {"forcing", "free: what a layer computes feeds the next one"},
          {"model", p.model},
          {"format", p.format},
          {"compute", p.compute},
          {"prompt", p.prompt},
          {"chat_template", p.chat_template},
          {"phase", p.phase},
          {"context", p.context},
          {"block", p.block},
          {"limit", p.limit},
          {"max_new_tokens", p.max_new_tokens},
          {"stride", p.stride},
          {"decode_tokens", p.decode_tokens},
          {"kl", p.kl},
          {"seed", p.seed},
          {"statistics",
           {{"interval", "percentile bootstrap over samples, paired and stratified by task"},
            {"confidence", kConfidence},
            {"resamples", kBootstrapResamples},
            {"seed", kBootstrapSeed},
            {"tie_margin", kTieMargin}}}};
}

namespace {

std::string interval_text(const Interval& interval, double scale, int digits, bool sign = false) {
  std::string text = (sign && interval.mean >= 0 ? "+" : "") + fixed(scale * interval.mean, digits);
  if (interval.low) {
    text += " [" + fixed(scale * *interval.low, digits) + ", " +
            fixed(scale * *interval.high, digits) + "]";
  }
  return text;
}

std::string arm_density(const ArmInfo& arm) {
  return arm.density ? format_double(*arm.density) : "-";
}

}  // namespace

std::string to_json_text(const ModelReport& report, const ModelSummary& summary) {
  Json inputs = Json::array();
  for (const SourceFile& file : report.inputs) {
    inputs.push_back(
        {{"role", file.role}, {"path", file.path}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  Json cells = Json::array();
  for (std::size_t i = 0; i < summary.cells.size(); ++i) {
    cells.push_back(cell_json(report, summary.cells[i], i));
  }
  Json overall = Json::array();
  for (const ArmOverall& o : summary.overall) {
    overall.push_back({{"method", report.arms[o.arm].method},
                       {"density", nullable(report.arms[o.arm].density)},
                       {"versus_dense", paired_json(o.paired)}});
  }
  const Json json = {{"schema_version", kReportVersion},
                     {"created", report.created},
                     {"seconds", report.seconds},
                     {"command", report.command},
                     {"environment", to_json(report.environment)},
                     {"inputs", inputs},
                     {"protocol", to_json(report.protocol)},
                     {"cells", cells},
                     {"summary", overall}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string report_table(const ModelReport& report, const ModelSummary& summary) {
  std::string text;
  bool flagged = false;
  for (std::size_t t = 0; t < report.tasks.size(); ++t) {
    const bool replies = report.tasks[t].metric != "perplexity";
    Columns columns(
        replies
            ? std::vector<std::string>{"method", "density", "realised", "decode", "n", "score",
                                       "vs dense", "p (Holm)", "verdict", "prefill s", "ms/token"}
            : std::vector<std::string>{"method", "density", "realised", "decode", "perplexity",
                                       "ln ratio", "mean KL", "same top", "prefill s", "ms/token"});
    for (const ModelCell& cell : summary.cells) {
      if (cell.task != t || cell.samples == 0) continue;
      const ArmInfo& arm = report.arms[cell.arm];
      std::vector<std::string> row = {arm.method, arm_density(arm), fixed(cell.density.sparse, 3),
                                      cell.density.decode ? fixed(*cell.density.decode, 3) : "-"};
      const auto times = [&] {
        row.push_back(fixed(median(cell.prefill_seconds), 2));
        row.push_back(cell.decode_seconds_per_token.empty()
                          ? "-"
                          : fixed(1e3 * median(cell.decode_seconds_per_token), 1));
      };
      if (replies) {
        row.push_back(std::to_string(cell.samples));
        row.push_back(interval_text(*cell.score, 100.0, 1));
        if (cell.paired) {
          row.push_back(interval_text(cell.paired->difference, 100.0, 1, true));
          row.push_back(fixed(cell.paired->p_holm, 3));
          row.push_back(std::string(verdict_name(cell.paired->verdict)) +
                        (cell.paired->beats_dense ? " (!)" : ""));
          flagged = flagged || cell.paired->beats_dense;
        } else {
          row.insert(row.end(), {"-", "-", "-"});
        }
      } else {
        row.push_back(fixed(*cell.perplexity, 4));
        if (cell.distribution) {
          row.push_back(interval_text(cell.distribution->ln_ratio_interval, 1.0, 5, true));
          row.push_back(cell.has_kl ? interval_text(cell.distribution->kl_mean, 1.0, 5) : "-");
          row.push_back(cell.has_kl ? fixed(cell.distribution->same_top.mean, 4) : "-");
        } else {
          row.insert(row.end(), {"-", "-", "-"});
        }
      }
      times();
      columns.add(std::move(row));
    }
    text += report.tasks[t].name + (replies ? " (" + report.tasks[t].metric + ")" : "") + "\n" +
            columns.text() + "\n";
  }
  if (report.tasks.size() > 1 && !summary.overall.empty()) {
    Columns columns(
        {"all tasks with replies", "density", "n", "vs dense", "detectable", "verdict"});
    for (const ArmOverall& o : summary.overall) {
      columns.add({report.arms[o.arm].method, arm_density(report.arms[o.arm]),
                   std::to_string(o.paired.samples),
                   interval_text(o.paired.difference, 100.0, 1, true),
                   fixed(100.0 * o.paired.minimum_detectable, 1), verdict_name(o.paired.verdict)});
    }
    text += columns.text() + "\n";
  }
  for (const ModelCell& cell : summary.cells) {
    if (cell.failure.empty()) continue;
    text += "failed: " + report.arms[cell.arm].label + ", " + report.tasks[cell.task].name + ", " +
            cell.failure + "\n";
  }
  if (flagged) {
    text +=
        "(!) significantly better than dense: check the protocol (prompts, stop tokens, scorer) "
        "before believing it\n";
  }
  return text;
}

std::string predictions_jsonl(const ModelReport& report, std::string_view task,
                              std::string_view arm) {
  std::string text;
  for (const RunEntry& entry : report.entries) {
    if (entry.task != task || entry.arm != arm || !entry.reply) continue;
    const Reply& reply = *entry.reply;
    const Json json = {{"pred", reply.text},
                       {"answers", reply.answers},
                       {"all_classes", reply.classes.empty() ? Json(nullptr) : Json(reply.classes)},
                       {"length", reply.length},
                       {"_id", entry.id}};
    text += json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return text;
}

void write_report(const ModelReport& report, const ModelSummary& summary, const ReportPaths& paths,
                  bool force) {
  const auto write = [&](const std::string& place) {
    write_hdf5(report, summary, place, paths.hdf5);
  };
  write_report_files(paths, force, write, to_json_text(report, summary));
}

}  // namespace sw
