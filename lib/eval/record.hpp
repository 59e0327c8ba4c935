#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/budget.hpp"
#include "attention/selection.hpp"
#include "attention/stage.hpp"
#include "core/tensor.hpp"
#include "metric/block_grid.hpp"
#include "metric/list.hpp"
#include "trace/trace.hpp"

/// What an evaluation leaves behind, as plain values. Every table and report is a pure function of
/// these records, so they can be stored, merged and summarised again without the traces.
namespace sw {

struct InputRecord {
  std::string path;
  std::string format;       ///< "HDF5" or "safetensors"
  std::string sha256;       ///< of the file, hexadecimal
  std::uint64_t bytes = 0;  ///< of the file
  TraceInfo info;
};

enum class CellStatus { kOk, kSkipped, kFailed };
/// "ok", "skipped" or "failed".
const char* status_name(CellStatus status);
/// "prefill" or "decode".
const char* phase_name(Phase phase);

/// Row-major [layers, units, columns]: units are query heads or row sets, columns are query blocks
/// (prefill) or steps (decode). Empty when not measured.
struct MetricArray {
  std::int64_t layers = 0;
  std::int64_t units = 0;
  std::int64_t columns = 0;
  std::vector<float> values;

  MetricArray() = default;
  MetricArray(std::int64_t num_layers, std::int64_t num_units, std::int64_t num_columns,
              float value);
  bool empty() const { return values.empty(); }
  float& operator()(std::int64_t layer, std::int64_t unit, std::int64_t column) {
    return values[static_cast<std::size_t>((layer * units + unit) * columns + column)];
  }
  float operator()(std::int64_t layer, std::int64_t unit, std::int64_t column) const {
    return const_cast<MetricArray&>(*this)(layer, unit, column);
  }
  /// Writes `grid` [units, any number of columns] to [layer, :, column ...]. A grid of one unit
  /// fills all units.
  void set(std::int64_t layer, std::int64_t column, const BlockGrid& grid);
  /// Mean over the units, of one layer and column.
  double unit_mean(std::int64_t layer, std::int64_t column) const;
};

struct LayerRecord {
  std::int64_t layer = 0;  ///< index in the model
  bool sparse = false;     ///< false: below the policy's dense_layers, everything is attended to
  DensityCount pairs;      ///< counted for each query head, all queries
  std::int64_t kv_tokens_read = 0;     ///< decode: distinct, summed over KV heads and steps
  std::int64_t kv_tokens_context = 0;  ///< decode: context, summed likewise
  /// budget=calibrated: the share found for the prefill, or for each step.
  std::vector<double> calibrated_shares;
};

/// One execution of the stages of one layer: a raw sample.
struct TimeSample {
  std::int64_t layer = 0;
  std::int64_t step = -1;  ///< decode step, -1 in prefill
  StageTimes times;
  bool attended = false;  ///< false: attention was not run (masses were enough)
};

/// Selections between the best one and a Sketch&Walk method, each one step further (metrics.md,
/// attribution). The first two rank by dense masses; the others are policies, named by their SPECs.
enum class Variant {
  kBestPerHead,  ///< the best blocks of each head, as many as the method keeps
  kForced,       ///< the method's budget over dense masses: the forced sink and window
  kTokenKeys,    ///< mean queries against every key, causal, at the scale of attention
  kPooledKeys,   ///< the same with the method's pools of keys
  kMask,         ///< that, with the method's mask before the softmax
  kTemperature,  ///< or with its temperature and scale
  kAggregation,  ///< or with its aggregation over heads, sharpness and row sums
  kExact,        ///< all three together: the method without transform and walk
  kSketchOnly,   ///< the method without walk
};
inline constexpr std::size_t kNumVariants = 9;
/// "best_per_head", "forced", "token_keys", ...
const char* variant_name(Variant variant);

/// Mass recall of the variants, as the metric of that name: [layers, heads, columns].
struct AttributionRecord {
  std::array<std::string, kNumVariants> specs;  ///< empty for those that rank by dense masses
  std::array<MetricArray, kNumVariants> recall;

  const std::string& spec(Variant v) const { return specs[static_cast<std::size_t>(v)]; }
  MetricArray& operator[](Variant v) { return recall[static_cast<std::size_t>(v)]; }
  const MetricArray& operator[](Variant v) const { return recall[static_cast<std::size_t>(v)]; }
};

/// Selections of one sparse layer: one of all rows (prefill), or one a step (decode).
struct SavedLayer {
  std::int64_t layer = 0;
  std::vector<BlockSelection> selections;
  std::shared_ptr<const BlockScores> scores;  ///< prefill; null when the policy has no scores
};

/// One method at one density on one input in one phase.
struct CellRecord {
  std::string method;             ///< canonical SPEC
  std::string name;               ///< of the policy
  std::optional<double> density;  ///< requested; none for methods with a density of their own
  std::size_t input = 0;          ///< index of the input
  Phase phase = Phase::kPrefill;
  CellStatus status = CellStatus::kOk;
  std::string reason;  ///< why skipped or failed

  std::int64_t block = 64;
  std::int64_t row_sets = 1;  ///< of the sparse layers
  std::vector<LayerRecord> layers;
  std::array<MetricArray, kNumMetrics> metrics;  ///< by Metric
  MetricArray density_rows;                      ///< kept / causal pairs, [layers, heads, columns]
  MetricArray answer_recall;  ///< [layers, 1, 1 (prefill) or steps]; empty without answer spans
  std::optional<AttributionRecord> attribution;
  std::vector<TimeSample> times;
  /// Whether selections hold single keys. In decode the best selection of the same size is then one
  /// of single keys; in prefill it is not measured (oracle_gap, oracle_gap_set, topk_recall empty).
  bool selects_keys = false;
  bool shares_scores = false;  ///< pool, sketch and walk ran once for all densities
  bool has_own_scores = true;  ///< false: ranked by the dense masses, whose cost is not counted
  std::vector<SavedLayer> saved;

  MetricArray& metric(Metric m) { return metrics[static_cast<std::size_t>(m)]; }
  const MetricArray& metric(Metric m) const { return metrics[static_cast<std::size_t>(m)]; }
  /// Query heads, 0 for cells without values.
  std::int64_t heads() const { return density_rows.units; }
  /// Query blocks (prefill) or steps (decode).
  std::int64_t columns() const { return density_rows.columns; }
};

}  // namespace sw
