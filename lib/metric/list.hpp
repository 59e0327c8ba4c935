#pragma once

#include <span>
#include <string_view>

/// The metrics of a trace that are arrays over layers, heads or row sets, and query blocks: names
/// as in reports and --fail-if. A new one is a line here, a file beside this one, and the line in
/// lib/eval that fills it.
namespace sw {

enum class Metric { kMassRecall, kOracleGap, kOutputError, kCosine, kOracleGapSet, kTopkRecall };
inline constexpr int kNumMetrics = 6;

struct MetricInfo {
  Metric metric;
  std::string_view name;
  bool per_set;       ///< [layer, row set, query block] instead of [layer, head, query block]
  bool from_output;   ///< needs the attention output, not block masses alone
  float dense_value;  ///< its value in a layer that attends densely, by identity
  std::string_view summary;
};

/// All metrics, in the order of `Metric`.
std::span<const MetricInfo> list_metrics();
const MetricInfo& metric_info(Metric metric);

}  // namespace sw
