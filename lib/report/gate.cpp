#include "report/gate.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

struct GateMetric {
  std::string name;
  std::optional<double> (*get)(const Summary&);
};

template <Metric M>
std::optional<double> metric_mean(const Summary& cell) {
  if (!cell.metric(M)) return std::nullopt;
  return cell.metric(M)->overall.mean;
}

std::optional<double> milliseconds(const std::optional<Timing>& timing) {
  if (!timing) return std::nullopt;
  return 1e3 * timing->median;
}

const std::vector<GateMetric>& metrics() {
  static const std::vector<GateMetric> list = {
      {"mass_recall", metric_mean<Metric::kMassRecall>},
      {"oracle_gap", metric_mean<Metric::kOracleGap>},
      {"oracle_gap_set", metric_mean<Metric::kOracleGapSet>},
      {"topk_recall", metric_mean<Metric::kTopkRecall>},
      {"output_error", metric_mean<Metric::kOutputError>},
      {"cosine", metric_mean<Metric::kCosine>},
      {"answer_recall",
       [](const Summary& cell) -> std::optional<double> {
         if (!cell.answer_recall) return std::nullopt;
         return cell.answer_recall->overall.mean;
       }},
      {"density_sparse",
       [](const Summary& cell) -> std::optional<double> { return cell.realised.sparse; }},
      {"density_all",
       [](const Summary& cell) -> std::optional<double> { return cell.realised.all; }},
      {"density_decode", [](const Summary& cell) { return cell.realised.decode; }},
      {"selection_ms",
       [](const Summary& cell) {
         return cell.latency ? milliseconds(cell.latency->selection) : std::nullopt;
       }},
      {"attention_ms",
       [](const Summary& cell) {
         return cell.latency ? milliseconds(cell.latency->attention) : std::nullopt;
       }},
      {"speed_ratio",
       [](const Summary& cell) { return cell.latency ? cell.latency->speed_ratio : std::nullopt; }},
  };
  return list;
}

}  // namespace

std::vector<std::string> gate_metrics() {
  std::vector<std::string> names;
  for (const GateMetric& metric : metrics()) names.push_back(metric.name);
  return names;
}

Gate Gate::parse(std::string_view text) { return parse(text, gate_metrics()); }

Gate Gate::parse(std::string_view text, const std::vector<std::string>& known) {
  Gate gate;
  gate.text = text;
  const std::vector<std::string> scope = split(text, '@');
  const std::string& condition = scope.front();
  const std::size_t at = condition.find_first_of("<>");
  if (at == std::string::npos || scope.size() > 3) {
    throw Error(ErrorKind::kUsage, "--fail-if '" + gate.text + "' is not a condition",
                "write metric<value, metric<=value, metric>value or metric>=value, optionally with "
                "@METHOD or @METHOD@DENSITY behind it");
  }
  gate.metric = condition.substr(0, at);
  if (std::find(known.begin(), known.end(), gate.metric) == known.end()) {
    throw Error(ErrorKind::kUsage, "--fail-if: unknown metric '" + gate.metric + "'",
                suggestion(gate.metric, known));
  }
  const bool less = condition[at] == '<';
  const bool equal = at + 1 < condition.size() && condition[at + 1] == '=';
  gate.op =
      less ? (equal ? Op::kLessEqual : Op::kLess) : (equal ? Op::kGreaterEqual : Op::kGreater);
  gate.value =
      parse_double(condition.substr(at + (equal ? 2 : 1)), "--fail-if '" + gate.text + "'");
  if (scope.size() > 1) gate.method = scope[1];
  if (scope.size() > 2) gate.density = parse_double(scope[2], "--fail-if density");
  return gate;
}

bool Gate::concerns(std::string_view cell_method, std::string_view name,
                    std::optional<double> cell_density) const {
  if (!method.empty() && method != name && method != cell_method) return false;
  return !density || (cell_density && std::abs(*cell_density - *density) <= 1e-12);
}

bool Gate::holds(double x) const {
  switch (op) {
    case Op::kLess:
      return x < value;
    case Op::kLessEqual:
      return x <= value;
    case Op::kGreater:
      return x > value;
    default:
      return x >= value;
  }
}

std::vector<std::string> unmet(const Gate& gate, std::span<const Summary> cells) {
  const auto metric = std::find_if(metrics().begin(), metrics().end(),
                                   [&](const GateMetric& m) { return m.name == gate.metric; });
  std::vector<std::string> lines;
  bool any = false;
  for (const Summary& cell : cells) {
    if (!gate.concerns(cell.method, cell.name, cell.density)) continue;
    any = true;
    std::string label = cell.method;
    if (cell.density) label += " at density " + format_double(*cell.density);
    label += std::string(", ") + phase_name(cell.phase);
    const auto value = cell.inputs > 0 ? metric->get(cell) : std::nullopt;
    if (!value) {
      // Without METHOD a gate speaks of the cells that have the metric.
      if (!gate.method.empty() || cell.inputs == 0) {
        lines.push_back(label + ": " + gate.metric + " has no value");
      }
    } else if (gate.holds(*value)) {
      lines.push_back(label + ": " + gate.metric + " is " + format_double(*value));
    }
  }
  if (!any) lines.push_back("no cell of this run is meant by it");
  return lines;
}

}  // namespace sw
