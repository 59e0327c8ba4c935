#include "report/json_report.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "eval/summary.hpp"
#include "report/json_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json to_json(const Protocol& protocol) {
  Json layers = nullptr;
  if (protocol.layers) layers = Json::array({protocol.layers->first, protocol.layers->second});
  return {
      {"kind", "trace"},
      {"forcing", "teacher: the dense q, k and v of the trace feed every method at every layer"},
      {"phase", protocol.phase},
      {"methods", protocol.methods},
      {"densities", protocol.densities},
      {"block", protocol.block},
      {"layers", layers},
      {"seed", protocol.seed},
      {"output_error", protocol.output_error},
      {"attribution", protocol.attribution},
      {"save_selection", protocol.save_selection},
      {"bos_count", nullptr},
      {"stop_set", nullptr},
      {"template_sha256", nullptr},
      {"statistics",
       {{"mean", "over sparse layers, then heads or row sets, then units; dense layers excluded"},
        {"unit", "query block (prefill) or decode step; with several inputs, the input first"},
        {"interval", "percentile bootstrap"},
        {"confidence", kConfidence},
        {"resamples", kBootstrapResamples},
        {"seed", kBootstrapSeed}}},
      {"latency",
       {{"unit", "seconds"},
        {"clock", "steady"},
        {"caveat",
         "one pass a layer inside an evaluation, no warm-up and no repeats: not a benchmark"}}}};
}

Json to_json(const std::optional<MetricSummary>& metric) {
  if (!metric) return nullptr;
  Json json = to_json(metric->overall);
  json["per_layer"] = metric->per_layer;
  return json;
}

Json metrics_json(const Summary& summary) {
  Json json;
  for (const MetricInfo& metric : list_metrics()) {
    json[std::string(metric.name)] = to_json(summary.metric(metric.metric));
  }
  json["answer_recall"] = to_json(summary.answer_recall);
  return json;
}

Json to_json(const AttributionSummary::Parts& parts) {
  Json json = {{"total", parts.total}, {"block_mean", parts.block_mean()}};
  for (std::size_t p = 0; p < kNumLossParts; ++p) {
    json[loss_part_name(static_cast<LossPart>(p))] = parts.part[p];
  }
  return json;
}

Json attribution_json(const Summary& summary, const CellRecord& cell) {
  if (!summary.attribution) return nullptr;
  Json per_layer = Json::array();
  for (const auto& parts : summary.attribution->per_layer) per_layer.push_back(to_json(parts));
  Json specs;
  for (std::size_t v = 0; v < kNumVariants; ++v) {
    const std::string& spec = cell.attribution->specs[v];
    if (!spec.empty()) specs[variant_name(static_cast<Variant>(v))] = spec;
  }
  return {{"exact_spec", cell.attribution->spec(Variant::kExact)},
          {"sketch_only_spec", cell.attribution->spec(Variant::kSketchOnly)},
          {"specs", specs},
          {"mean", to_json(summary.attribution->mean)},
          {"per_layer", per_layer}};
}

Json to_json(const std::optional<Timing>& timing) {
  if (!timing) return nullptr;
  return {{"median", timing->median}, {"mad", timing->mad}};
}

Json latency_json(const Summary& summary, const CellRecord& cell) {
  if (!summary.latency || cell.times.empty()) return nullptr;
  const LatencySummary& latency = *summary.latency;
  Json stages;
  for (std::size_t s = 0; s < kNumStages; ++s) {
    const bool measured = static_cast<Stage>(s) != Stage::kAttention || latency.attention;
    stages[kStageNames[s]] = measured ? to_json(std::optional(latency.stages[s])) : Json(nullptr);
  }
  Json samples;
  samples["layer"] = Json::array();
  samples["step"] = Json::array();
  for (const char* name : kStageNames) samples[name] = Json::array();
  for (const TimeSample& sample : cell.times) {
    samples["layer"].push_back(sample.layer);
    samples["step"].push_back(sample.step < 0 ? Json(nullptr) : Json(sample.step));
    for (std::size_t s = 0; s < kNumStages; ++s) {
      const bool measured = static_cast<Stage>(s) != Stage::kAttention || sample.attended;
      samples[kStageNames[s]].push_back(measured ? Json(sample.times.seconds[s]) : Json(nullptr));
    }
  }
  Json shared = Json::array();
  if (cell.shares_scores) shared = {"pool", "sketch", "walk"};
  return {{"shared_by_densities", shared},
          {"selection_is_timed", cell.has_own_scores},
          {"stages", stages},
          {"selection", to_json(latency.selection)},
          {"attention", to_json(latency.attention)},
          {"total", to_json(latency.total)},
          {"dense_attention", to_json(latency.dense_attention)},
          {"speed_ratio", nullable(latency.speed_ratio)},
          {"samples", samples}};
}

Json comparison_json(const Summary& summary) {
  if (!summary.versus_sink_window) return nullptr;
  return {{"mass_recall_difference", to_json(summary.versus_sink_window->difference)},
          {"verdict", verdict_name(summary.versus_sink_window->verdict)}};
}

/// The parameter of a budget that was calibrated to the density; what it realises stands beside it,
/// in realised_density.
Json calibration_json(const CellRecord& cell) {
  std::vector<double> all;
  Json per_layer = Json::array();
  for (const LayerRecord& layer : cell.layers) {
    const std::vector<double>& shares = layer.calibrated_shares;
    if (shares.empty()) {
      per_layer.push_back(nullptr);
      continue;
    }
    per_layer.push_back(std::accumulate(shares.begin(), shares.end(), 0.0) /
                        static_cast<double>(shares.size()));
    all.insert(all.end(), shares.begin(), shares.end());
  }
  if (all.empty()) return nullptr;
  return {{"parameter", "top_p"},
          {"low", *std::min_element(all.begin(), all.end())},
          {"high", *std::max_element(all.begin(), all.end())},
          {"per_layer", per_layer}};
}

std::string cell_id(std::size_t index) {
  const std::string digits = std::to_string(index);
  return std::string(digits.size() < 4 ? 4 - digits.size() : 0, '0') + digits;
}

Json cell_json(const CellRecord& cell, const Summary& summary, std::size_t index) {
  Json json = {{"id", cell_id(index)},
               {"method", cell.method},
               {"name", cell.name},
               {"density", nullable(cell.density)},
               {"input", cell.input},
               {"phase", phase_name(cell.phase)},
               {"status", status_name(cell.status)},
               {"reason", text_or_null(cell.reason)}};
  if (cell.status != CellStatus::kOk) return json;
  Json layers = Json::array();
  Json sparse = Json::array();
  for (const LayerRecord& layer : cell.layers) {
    layers.push_back(layer.layer);
    sparse.push_back(layer.sparse);
  }
  json["block"] = cell.block;
  json["oracle"] = !cell.selects_keys             ? Json("blocks")
                   : cell.phase == Phase::kDecode ? Json("keys")
                                                  : Json(nullptr);
  json["row_sets"] = cell.row_sets;
  json["units"] = cell.columns();
  json["layers"] = layers;
  json["sparse"] = sparse;
  json["realised_density"] = to_json(summary.realised);
  json["calibration"] = calibration_json(cell);
  json["metrics"] = metrics_json(summary);
  json["versus_sink_window"] = comparison_json(summary);
  json["attribution"] = attribution_json(summary, cell);
  json["latency"] = latency_json(summary, cell);
  return json;
}

Json summary_json(const Summary& summary) {
  Json json = {{"method", summary.method},
               {"density", nullable(summary.density)},
               {"phase", phase_name(summary.phase)},
               {"inputs", summary.inputs}};
  if (summary.inputs == 0) return json;
  json["realised_density"] = to_json(summary.realised);
  json["metrics"] = metrics_json(summary);
  json["versus_sink_window"] = comparison_json(summary);
  return json;
}

Json to_json(const LayerSeconds& work) {
  const auto ratio = [](double a, double b) { return b > 0.0 ? Json(a / b) : Json(nullptr); };
  return {{"unit", "seconds"},
          {"read", work.read},
          {"rebuild", work.rebuild},
          {"dense", work.dense},
          {"scores", work.scores},
          {"attention", work.attention},
          {"metrics", work.metrics},
          {"distinct", work.distinct()},
          {"total", work.total},
          {"total_to_distinct", ratio(work.total, work.distinct())},
          {"separate_cells", work.separate},
          {"separate_to_total", ratio(work.separate, work.total)}};
}

}  // namespace

Json to_json(const Report& report, const ReportSummary& summaries) {
  Json inputs = Json::array();
  for (const InputRecord& input : report.inputs) inputs.push_back(to_json(input));
  Json cells = Json::array();
  for (std::size_t i = 0; i < report.cells.size(); ++i) {
    cells.push_back(cell_json(report.cells[i], summaries.cells[i], i));
  }
  Json over_inputs = Json::array();
  if (report.inputs.size() > 1) {
    for (const Summary& summary : summaries.inputs) over_inputs.push_back(summary_json(summary));
  }
  Json json = {{"schema_version", kReportVersion},
               {"created", report.created},
               {"seconds", report.seconds},
               {"command", report.command},
               {"environment", to_json(report.environment)},
               {"inputs", inputs},
               {"protocol", to_json(report.protocol)}};
  if (report.work) json["work"] = to_json(*report.work);
  json["cells"] = std::move(cells);
  json["summary"] = std::move(over_inputs);
  return json;
}

std::string to_json_text(const Report& report, const ReportSummary& summaries) {
  return to_json(report, summaries).dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace sw
