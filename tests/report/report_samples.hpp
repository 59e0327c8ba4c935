#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

/// Reports as small JSON values, for tests of what reads them.
namespace sw::testing {

using Json = nlohmann::json;

inline Json report_head(const Json& protocol) {
  return {{"schema_version", 1},
          {"created", "2026-02-07T12:00:00Z"},
          {"seconds", 1.5},
          {"command", {"sw-eval", "trace", "a b.h5", "-o", "out"}},
          {"environment", {{"version", "0.1.0"}, {"cpu", "one"}, {"threads", 2}}},
          {"inputs", Json::array()},
          {"protocol", protocol},
          {"cells", Json::array()},
          {"summary", Json::array()}};
}

inline Json interval(double mean, double low, double high) {
  return {{"mean", mean}, {"low", low}, {"high", high}};
}

/// A trace report without cells; input `i` is named after `names[i]` with the hash `hashes[i]`.
inline Json trace_report(const std::vector<std::pair<std::string, std::string>>& inputs) {
  Json json = report_head({{"kind", "trace"}, {"phase", "prefill"}});
  for (const auto& [name, hash] : inputs) {
    json["inputs"].push_back({{"path", "/data/" + name}, {"sha256", hash}, {"model", "tiny"}});
  }
  return json;
}

/// A cell that is ok, with mass recall and, unless `verdict` is empty, the comparison with
/// sink_window.
inline Json trace_cell(const std::string& method, std::optional<double> density, double recall,
                       const std::string& verdict = "", double gain = 0.0, int input = 0,
                       const std::string& phase = "prefill") {
  Json cell = {{"id", "0000"},
               {"method", method},
               {"name", method.substr(0, method.find(':'))},
               {"density", density ? Json(*density) : Json(nullptr)},
               {"input", input},
               {"phase", phase},
               {"status", "ok"},
               {"reason", nullptr},
               {"units", 4},
               {"layers", {0, 1}},
               {"sparse", {false, true}},
               {"realised_density", {{"sparse", density.value_or(1.0)}, {"decode", nullptr}}},
               {"metrics", {{"mass_recall", interval(recall, recall - 0.01, recall + 0.01)}}},
               {"versus_sink_window", nullptr},
               {"attribution", nullptr},
               {"latency", nullptr}};
  if (!verdict.empty()) {
    cell["versus_sink_window"] = {{"mass_recall_difference", interval(gain, gain, gain)},
                                  {"verdict", verdict}};
  }
  return cell;
}

/// A model report with one task and one cell, whose replies have these scores.
inline Json model_report(const std::vector<double>& scores, const std::string& prompts = "p") {
  Json json = report_head({{"kind", "model"}, {"phase", "both"}, {"model", "tiny"}});
  Json replies = Json::array();
  double sum = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    replies.push_back(
        {{"sample", i}, {"score", scores[i]}, {"prompt_ids_sha256", prompts + std::to_string(i)}});
    sum += scores[i];
  }
  json["cells"].push_back({{"id", "0000"},
                           {"method", "sketchwalk"},
                           {"density", 0.2},
                           {"input", "niah"},
                           {"status", "ok"},
                           {"reason", nullptr},
                           {"samples", scores.size()},
                           {"score", interval(sum / static_cast<double>(scores.size()), 0, 1)},
                           {"replies", replies}});
  return json;
}

/// What two runs of the same thing have in common.
inline Json without_times(Json value) {
  if (value.is_object()) {
    for (const char* key : {"latency", "created", "seconds", "work", "command"}) value.erase(key);
  }
  if (value.is_structured()) {
    for (Json& child : value) child = without_times(child);
  }
  return value;
}

}  // namespace sw::testing
