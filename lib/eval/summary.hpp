#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/record.hpp"
#include "eval/statistics.hpp"

/// The numbers of a report, computed from records alone.
namespace sw {

/// Kept over causal pairs; averages weigh pairs (metrics.md, Density).
struct DensitySummary {
  double sparse = 0.0;                    ///< over the sparse layers
  double all = 0.0;                       ///< over all evaluated layers
  std::optional<double> decode;           ///< distinct KV tokens read / context, sparse layers
  std::array<double, kNumParts> parts{};  ///< of `sparse`, by Part
};

/// Mean over the sparse layers, heads (or row sets) and columns. The interval resamples columns.
struct MetricSummary {
  Interval overall;
  std::vector<double> per_layer;  ///< mean a layer, all evaluated layers; dense ones by identity
};

struct Timing {
  double median = 0.0;  ///< seconds
  double mad = 0.0;
};

/// Medians over the executions of a cell (layers, and steps in decode).
struct LatencySummary {
  std::array<Timing, kNumStages> stages;
  std::optional<Timing> selection;        ///< pool + sketch + walk + select; none for oracles
  std::optional<Timing> attention;        ///< none when attention was not run
  std::optional<Timing> total;            ///< selection + attention
  std::optional<Timing> dense_attention;  ///< cell `dense` of the run, the same layers and steps
  /// Median dense attention over median total.
  std::optional<double> speed_ratio;
};

/// Where mass is lost on the way from the best selection to the method (Variant). All but the first
/// are parts of the loss against the best selection of the same size and granularity.
enum class LossPart {
  kSharing,       ///< the best selection of each head minus the best one at the granularity
  kForced,        ///< keeping sink and window whatever they hold
  kQueryPooling,  ///< mean queries (decode: the window of queries)
  kKeyPooling,    ///< mean keys
  kMask,          ///< taken alone: the mask before the softmax, or none
  kTemperature,   ///< taken alone: temperature and scale
  kAggregation,   ///< taken alone: aggregation over heads
  kInteraction,   ///< what the last three cost together, beyond their sum
  kSketch,        ///< the transform
  kWalk,          ///< negative: the walk wins mass back
};
inline constexpr std::size_t kNumLossParts = 10;
/// "sharing", "forced", "query_pooling", ...
const char* loss_part_name(LossPart part);

struct AttributionSummary {
  struct Parts {
    double total = 0.0;  ///< best selection of the same size - method; the parts but sharing
    std::array<double, kNumLossParts> part{};

    double operator[](LossPart p) const { return part[static_cast<std::size_t>(p)]; }
    /// From forced to interaction: what block means lose against dense masses.
    double block_mean() const;
  };
  Parts mean;                    ///< over the sparse layers
  std::vector<Parts> per_layer;  ///< all evaluated layers
};

/// Parts of each layer and head, means over the columns: [layers x heads], heads running faster.
std::vector<AttributionSummary::Parts> loss_of_heads(const CellRecord& cell);

enum class Verdict { kBetter, kTied, kWorse };
/// "better", "tied" or "worse".
const char* verdict_name(Verdict verdict);

/// Mass recall against `sink_window` at the same density: interval of the mean paired difference
/// (column by column, so that what makes a query block easy for both does not count). Tied when it
/// contains 0.
struct Comparison {
  Interval difference;
  Verdict verdict = Verdict::kTied;
};

struct Summary {
  std::string method;
  std::string name;
  std::optional<double> density;
  Phase phase = Phase::kPrefill;
  std::int64_t inputs = 0;  ///< inputs whose cell has values; 0 when none has, all else is empty
  DensitySummary realised;
  std::array<std::optional<MetricSummary>, kNumMetrics> metrics;
  std::optional<MetricSummary> answer_recall;
  std::optional<AttributionSummary> attribution;
  std::optional<LatencySummary> latency;
  std::optional<Comparison> versus_sink_window;

  const std::optional<MetricSummary>& metric(Metric m) const {
    return metrics[static_cast<std::size_t>(m)];
  }
};

/// A summary for each cell, in order. Parallel over cells.
std::vector<Summary> summarize_cells(std::span<const CellRecord> cells);

/// A summary for each (method, density, phase) over all inputs, in the order of first appearance.
/// Intervals resample inputs, and columns within each; per_layer, attribution and latency are left
/// empty when there is more than one input.
std::vector<Summary> summarize_inputs(std::span<const CellRecord> cells);

}  // namespace sw
