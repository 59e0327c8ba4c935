#include "report/table.hpp"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "core/text.hpp"
#include "eval/summary.hpp"
#include "report/columns.hpp"

namespace sw {
namespace {

std::string with_sign(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%+.4f", value);
  return text;
}

std::string density_text(const std::optional<double>& density) {
  return density ? format_double(*density) : "-";
}

std::string mean_text(const std::optional<MetricSummary>& metric) {
  return metric ? fixed(metric->overall.mean, 4) : "-";
}

std::string interval_text(const std::optional<MetricSummary>& metric) {
  if (!metric || !metric->overall.low) return "-";
  return "[" + fixed(*metric->overall.low, 4) + ", " + fixed(*metric->overall.high, 4) + "]";
}

std::string milliseconds(const std::optional<Timing>& timing) {
  return timing ? fixed(1e3 * timing->median, 2) : "-";
}

std::string verdict_text(const std::optional<Comparison>& comparison) {
  if (!comparison) return "-";
  return with_sign(comparison->difference.mean) + " " + verdict_name(comparison->verdict);
}

std::string main_table(const std::vector<Summary>& rows, bool timed, bool answers, bool decode) {
  std::vector<std::string> header = {"method",      "density",      decode ? "KV read" : "kept",
                                     "mass recall", "95% interval", "vs sink_window",
                                     "oracle gap",  "top-k",        "output error",
                                     "cosine"};
  if (answers) header.insert(header.end(), {"answer"});
  if (timed) header.insert(header.end(), {"select ms", "attend ms", "x dense"});
  Columns columns(header);
  for (const Summary& row : rows) {
    std::vector<std::string> line = {
        row.method,
        density_text(row.density),
        fixed(decode ? row.realised.decode.value_or(0.0) : row.realised.sparse, 4),
        mean_text(row.metric(Metric::kMassRecall)),
        interval_text(row.metric(Metric::kMassRecall)),
        verdict_text(row.versus_sink_window),
        mean_text(row.metric(Metric::kOracleGapSet)),
        mean_text(row.metric(Metric::kTopkRecall)),
        mean_text(row.metric(Metric::kOutputError)),
        mean_text(row.metric(Metric::kCosine))};
    if (answers) line.push_back(mean_text(row.answer_recall));
    if (timed) {
      const auto& latency = row.latency;
      line.push_back(latency ? milliseconds(latency->selection) : "-");
      line.push_back(latency ? milliseconds(latency->attention) : "-");
      line.push_back(latency && latency->speed_ratio ? fixed(*latency->speed_ratio, 2) : "-");
    }
    columns.add(std::move(line));
  }
  return columns.text();
}

std::string attribution_table(const std::vector<Summary>& rows) {
  std::vector<std::string> titles = {"mass lost to the best selection", "density", "total"};
  for (std::size_t p = 1; p <= kNumLossParts; ++p) {
    std::string title = loss_part_name(static_cast<LossPart>(p % kNumLossParts));
    std::replace(title.begin(), title.end(), '_', ' ');
    titles.push_back(p < kNumLossParts ? title : "beside: " + title);
  }
  Columns columns(titles);
  bool any = false;
  for (const Summary& row : rows) {
    if (!row.attribution) continue;
    any = true;
    const auto& parts = row.attribution->mean;
    std::vector<std::string> line = {row.method, density_text(row.density), fixed(parts.total, 4)};
    for (std::size_t p = 1; p < kNumLossParts; ++p) line.push_back(with_sign(parts.part[p]));
    line.push_back(with_sign(parts[LossPart::kSharing]));
    columns.add(std::move(line));
  }
  return any ? "\n" + columns.text() : "";
}

std::string phase_text(const Report& report, const std::vector<Summary>& all, Phase phase) {
  std::vector<Summary> rows;
  for (const Summary& row : all) {
    if (row.phase == phase && row.inputs > 0) rows.push_back(row);
  }
  if (rows.empty()) return "";
  const bool decode = phase == Phase::kDecode;
  const std::size_t inputs = report.inputs.size();
  const auto any_answer = std::any_of(
      rows.begin(), rows.end(), [](const Summary& row) { return row.answer_recall.has_value(); });
  std::string text = std::string(phase_name(phase)) + ", ";
  if (inputs == 1) {
    const TraceInfo& info = report.inputs.front().info;
    text +=
        report.inputs.front().path + ": " +
        (decode ? std::to_string(info.total_tokens - info.prefill_tokens) + " steps after " : "") +
        std::to_string(info.prefill_tokens) + " tokens, ";
  } else {
    text += "mean over " + std::to_string(inputs) + " inputs, ";
  }
  text += "blocks of " + std::to_string(report.protocol.block) + ", sparse layers only\n";
  return text + main_table(rows, inputs == 1, any_answer, decode) + attribution_table(rows) + "\n";
}

}  // namespace

std::string report_table(const Report& report, const ReportSummary& summaries) {
  const std::vector<Summary>& rows = summaries.inputs;
  std::string text =
      phase_text(report, rows, Phase::kPrefill) + phase_text(report, rows, Phase::kDecode);
  for (const CellRecord& cell : report.cells) {
    if (cell.status == CellStatus::kOk) continue;
    text += std::string(status_name(cell.status)) + ": " + cell.method;
    if (cell.density) text += " at density " + format_double(*cell.density);
    text += ", " + std::string(phase_name(cell.phase)) + ", " + report.inputs[cell.input].path +
            ": " + cell.reason + "\n";
  }
  text += "Intervals: bootstrap over " +
          std::string(report.inputs.size() > 1 ? "inputs and " : "") +
          "query blocks (prefill) or steps (decode). vs sink_window: paired difference of mass "
          "recall at the same requested density; tied = its interval contains 0.\n";
  if (std::any_of(rows.begin(), rows.end(), [](const Summary& row) {
        return row.inputs > 0 && !row.metric(Metric::kOracleGapSet);
      })) {
    text +=
        "Oracle gap and top-k are not measured where a prefill mixes blocks and single keys; in "
        "decode the best selection is then one of single keys.\n";
  }
  if (report.inputs.size() == 1) {
    text +=
        "Times: medians a layer, single passes inside this evaluation, not a benchmark. x dense = "
        "dense attention / (selection + attention). Oracles rank by dense masses, so their "
        "selection has no time.\n";
  }
  return text;
}

}  // namespace sw
