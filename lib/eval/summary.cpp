#include "eval/summary.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "core/parallel.hpp"
#include "metric/density.hpp"

namespace sw {
namespace {

using CellGroup = std::vector<const CellRecord*>;

double ratio(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

DensitySummary summarize_density(const CellGroup& cells) {
  DensityCount sparse;
  DensityCount all;
  std::int64_t read = 0;
  std::int64_t context = 0;
  for (const CellRecord* cell : cells) {
    for (const LayerRecord& layer : cell->layers) {
      all = add(all, layer.pairs);
      if (!layer.sparse) continue;
      sparse = add(sparse, layer.pairs);
      read += layer.kv_tokens_read;
      context += layer.kv_tokens_context;
    }
  }
  DensitySummary summary;
  summary.sparse = sparse.density();
  summary.all = all.density();
  if (context > 0) summary.decode = ratio(read, context);
  for (std::size_t part = 0; part < kNumParts; ++part) {
    summary.parts[part] = ratio(sparse.kept[part], sparse.causal);
  }
  return summary;
}

std::vector<std::int64_t> sparse_layers(const CellRecord& cell) {
  std::vector<std::int64_t> indices;
  for (std::size_t i = 0; i < cell.layers.size(); ++i) {
    if (cell.layers[i].sparse) indices.push_back(static_cast<std::int64_t>(i));
  }
  return indices;
}

/// Mean over the sparse layers and units, a column.
std::vector<double> column_means(const CellRecord& cell, const MetricArray& array) {
  const std::vector<std::int64_t> layers = sparse_layers(cell);
  std::vector<double> means;
  for (std::int64_t c = 0; c < array.columns; ++c) {
    double sum = 0.0;
    for (std::int64_t layer : layers) sum += array.unit_mean(layer, c);
    means.push_back(sum / static_cast<double>(layers.size()));
  }
  return means;
}

std::vector<double> layer_means(const MetricArray& array) {
  std::vector<double> means;
  for (std::int64_t layer = 0; layer < array.layers; ++layer) {
    double sum = 0.0;
    for (std::int64_t c = 0; c < array.columns; ++c) sum += array.unit_mean(layer, c);
    means.push_back(sum / static_cast<double>(array.columns));
  }
  return means;
}

using Series = std::vector<std::vector<double>>;  ///< by input, by column

/// Summaries of arrays over the cells that have them. What was measured on the same columns is
/// resampled together.
class MetricSummaries {
 public:
  template <class Get>
  void add(const CellGroup& cells, std::optional<MetricSummary>& summary, Get get) {
    Series series;
    for (const CellRecord* cell : cells) {
      const MetricArray& array = get(*cell);
      if (array.empty()) continue;
      series.push_back(column_means(*cell, array));
      if (!summary) summary.emplace();
      if (cells.size() == 1) summary->per_layer = layer_means(array);
    }
    if (summary) add(std::move(series), summary->overall);
  }

  void add(Series series, Interval& interval) {
    std::vector<std::size_t> shape;
    for (const auto& columns : series) shape.push_back(columns.size());
    Batch& batch = batches_[shape];
    batch.series.push_back(std::move(series));
    batch.intervals.push_back(&interval);
  }

  void resample() {
    for (const auto& [shape, batch] : batches_) {
      const std::vector<Interval> intervals = bootstrap_means(batch.series);
      for (std::size_t i = 0; i < intervals.size(); ++i) *batch.intervals[i] = intervals[i];
    }
  }

 private:
  struct Batch {
    std::vector<Series> series;
    std::vector<Interval*> intervals;
  };
  std::map<std::vector<std::size_t>, Batch> batches_;
};

/// Mean over the columns of a unit of a layer.
double unit_layer_mean(const MetricArray& array, std::int64_t layer, std::int64_t unit) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < array.columns; ++c) sum += array(layer, unit, c);
  return sum / static_cast<double>(array.columns);
}

AttributionSummary::Parts loss_of(const CellRecord& cell, std::int64_t layer, std::int64_t head) {
  const auto mean = [&](const MetricArray& array) { return unit_layer_mean(array, layer, head); };
  const auto recall = [&](Variant variant) { return mean((*cell.attribution)[variant]); };
  const double method = mean(cell.metric(Metric::kMassRecall));
  const double gap = mean(cell.metric(Metric::kOracleGap));
  const double pooled = recall(Variant::kPooledKeys);
  const double exact = recall(Variant::kExact);
  AttributionSummary::Parts parts;
  const auto set = [&](LossPart part, double loss) {
    parts.part[static_cast<std::size_t>(part)] = loss;
  };
  parts.total = gap;
  set(LossPart::kSharing, recall(Variant::kBestPerHead) - (method + gap));
  set(LossPart::kForced, method + gap - recall(Variant::kForced));
  set(LossPart::kQueryPooling, recall(Variant::kForced) - recall(Variant::kTokenKeys));
  set(LossPart::kKeyPooling, recall(Variant::kTokenKeys) - pooled);
  double alone = 0.0;
  for (const auto& [part, variant] : {std::pair{LossPart::kMask, Variant::kMask},
                                      std::pair{LossPart::kTemperature, Variant::kTemperature},
                                      std::pair{LossPart::kAggregation, Variant::kAggregation}}) {
    const double loss = pooled - recall(variant);
    set(part, loss);
    alone += loss;
  }
  set(LossPart::kInteraction, pooled - exact - alone);
  set(LossPart::kSketch, exact - recall(Variant::kSketchOnly));
  set(LossPart::kWalk, recall(Variant::kSketchOnly) - method);
  return parts;
}

/// Adds a share of `from` to `to`.
void add_share(const AttributionSummary::Parts& from, double count, AttributionSummary::Parts& to) {
  to.total += from.total / count;
  for (std::size_t p = 0; p < kNumLossParts; ++p) to.part[p] += from.part[p] / count;
}

AttributionSummary summarize_attribution(const CellRecord& cell) {
  const std::vector<AttributionSummary::Parts> heads = loss_of_heads(cell);
  const auto layers = cell.layers.size();
  const std::size_t per_layer = heads.size() / layers;
  AttributionSummary summary;
  summary.per_layer.resize(layers);
  for (std::size_t i = 0; i < heads.size(); ++i) {
    add_share(heads[i], static_cast<double>(per_layer), summary.per_layer[i / per_layer]);
  }
  const std::vector<std::int64_t> sparse = sparse_layers(cell);
  for (const std::int64_t layer : sparse) {
    add_share(summary.per_layer[static_cast<std::size_t>(layer)],
              static_cast<double>(sparse.size()), summary.mean);
  }
  return summary;
}

std::optional<Timing> timing(const std::vector<double>& seconds) {
  if (seconds.empty()) return std::nullopt;
  return Timing{median(seconds), median_absolute_deviation(seconds)};
}

LatencySummary summarize_latency(const CellRecord& cell, const CellRecord* dense) {
  std::map<std::pair<std::int64_t, std::int64_t>, double> dense_seconds;
  if (dense != nullptr) {
    for (const TimeSample& sample : dense->times) {
      if (!sample.attended) continue;
      dense_seconds[{sample.layer, sample.step}] =
          sample.times.seconds[static_cast<std::size_t>(Stage::kAttention)];
    }
  }
  std::array<std::vector<double>, kNumStages> stages;
  std::vector<double> selection;
  std::vector<double> total;
  std::vector<double> dense_attention;
  for (const TimeSample& sample : cell.times) {
    const auto& seconds = sample.times.seconds;
    for (std::size_t s = 0; s < kNumStages; ++s) stages[s].push_back(seconds[s]);
    const double all = std::accumulate(seconds.begin(), seconds.end(), 0.0);
    selection.push_back(all - seconds[static_cast<std::size_t>(Stage::kAttention)]);
    total.push_back(all);
    const auto found = dense_seconds.find({sample.layer, sample.step});
    if (found != dense_seconds.end()) dense_attention.push_back(found->second);
  }
  const bool attended =
      !cell.times.empty() && std::all_of(cell.times.begin(), cell.times.end(),
                                         [](const TimeSample& sample) { return sample.attended; });
  LatencySummary summary;
  for (std::size_t s = 0; s < kNumStages; ++s) {
    summary.stages[s] = timing(stages[s]).value_or(Timing{});
  }
  if (cell.has_own_scores) summary.selection = timing(selection);
  if (attended) {
    summary.attention = summary.stages[static_cast<std::size_t>(Stage::kAttention)];
    if (cell.has_own_scores) summary.total = timing(total);
  }
  if (dense_attention.size() == cell.times.size()) {
    summary.dense_attention = timing(dense_attention);
  }
  if (summary.total && summary.dense_attention && summary.total->median > 0.0) {
    summary.speed_ratio = summary.dense_attention->median / summary.total->median;
  }
  return summary;
}

/// The ok cells that others are compared with, found by name; few among the cells of a sweep.
class References {
 public:
  static constexpr std::string_view kDense = "dense";
  static constexpr std::string_view kBaseline = "sink_window";

  explicit References(std::span<const CellRecord> cells) {
    for (const CellRecord& cell : cells) {
      const bool known = cell.method == kDense || cell.method == kBaseline;
      if (known && cell.status == CellStatus::kOk) cells_.push_back(&cell);
    }
  }

  /// That of the method `spec` on the input and in the phase of `cell`; at its density too when
  /// `same_density`.
  const CellRecord* find(const CellRecord& cell, std::string_view spec, bool same_density) const {
    for (const CellRecord* other : cells_) {
      if (other->method == spec && other->input == cell.input && other->phase == cell.phase &&
          (!same_density || other->density == cell.density)) {
        return other;
      }
    }
    return nullptr;
  }

 private:
  CellGroup cells_;
};

/// Mass recall minus that of the baseline at the same density; nothing where a cell has no such
/// baseline.
std::optional<Series> differences(const CellGroup& group, const References& references) {
  Series differences;
  for (const CellRecord* cell : group) {
    if (!cell->density || cell->method == References::kBaseline) return std::nullopt;
    const CellRecord* baseline = references.find(*cell, References::kBaseline, true);
    if (baseline == nullptr || sparse_layers(*baseline) != sparse_layers(*cell)) {
      return std::nullopt;
    }
    std::vector<double> own = column_means(*cell, cell->metric(Metric::kMassRecall));
    const std::vector<double> other =
        column_means(*baseline, baseline->metric(Metric::kMassRecall));
    for (std::size_t i = 0; i < own.size(); ++i) own[i] -= other[i];
    differences.push_back(std::move(own));
  }
  return differences;
}

std::optional<Comparison> compare(const Interval& difference) {
  if (!difference.low) return std::nullopt;
  Comparison comparison;
  comparison.difference = difference;
  if (*difference.low > 0.0) comparison.verdict = Verdict::kBetter;
  if (*difference.high < 0.0) comparison.verdict = Verdict::kWorse;
  return comparison;
}

/// `group` holds the ok cells, `first` any cell of the same method, density and phase.
Summary summarize(const CellRecord& first, const CellGroup& group, const References& references) {
  Summary summary;
  summary.method = first.method;
  summary.name = first.name;
  summary.density = first.density;
  summary.phase = first.phase;
  summary.inputs = static_cast<std::int64_t>(group.size());
  if (group.empty()) return summary;
  summary.realised = summarize_density(group);
  MetricSummaries metrics;
  for (const MetricInfo& metric : list_metrics()) {
    metrics.add(
        group, summary.metrics[static_cast<std::size_t>(metric.metric)],
        [&](const CellRecord& cell) -> const MetricArray& { return cell.metric(metric.metric); });
  }
  metrics.add(group, summary.answer_recall,
              [](const CellRecord& cell) -> const MetricArray& { return cell.answer_recall; });
  Interval difference;
  if (auto series = differences(group, references)) metrics.add(std::move(*series), difference);
  metrics.resample();
  summary.versus_sink_window = compare(difference);
  if (group.size() == 1) {
    const CellRecord& cell = *group.front();
    if (cell.attribution) summary.attribution = summarize_attribution(cell);
    summary.latency = summarize_latency(cell, references.find(cell, References::kDense, false));
  }
  return summary;
}

}  // namespace

const char* loss_part_name(LossPart part) {
  static constexpr std::array<const char*, kNumLossParts> kNames = {
      "sharing",     "forced",      "query_pooling", "key_pooling", "mask",
      "temperature", "aggregation", "interaction",   "sketch",      "walk"};
  return kNames[static_cast<std::size_t>(part)];
}

double AttributionSummary::Parts::block_mean() const {
  return total - (*this)[LossPart::kSketch] - (*this)[LossPart::kWalk];
}

std::vector<AttributionSummary::Parts> loss_of_heads(const CellRecord& cell) {
  std::vector<AttributionSummary::Parts> parts;
  const std::int64_t heads = cell.heads();
  for (std::int64_t i = 0; i < std::ssize(cell.layers) * heads; ++i) {
    parts.push_back(loss_of(cell, i / heads, i % heads));
  }
  return parts;
}

const char* verdict_name(Verdict verdict) {
  static constexpr const char* kNames[] = {"better", "tied", "worse"};
  return kNames[static_cast<int>(verdict)];
}

std::vector<Summary> summarize_cells(std::span<const CellRecord> cells) {
  const References references(cells);
  std::vector<Summary> summaries(cells.size());
  parallel_for(static_cast<std::int64_t>(cells.size()), [&](std::int64_t i, int) {
    const CellRecord& cell = cells[static_cast<std::size_t>(i)];
    CellGroup group;
    if (cell.status == CellStatus::kOk) group.push_back(&cell);
    summaries[static_cast<std::size_t>(i)] = summarize(cell, group, references);
  });
  return summaries;
}

std::vector<Summary> summarize_inputs(std::span<const CellRecord> cells) {
  std::vector<std::pair<const CellRecord*, CellGroup>> groups;
  for (const CellRecord& cell : cells) {
    auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group.first->method == cell.method && group.first->density == cell.density &&
             group.first->phase == cell.phase;
    });
    if (found == groups.end()) found = groups.insert(groups.end(), {&cell, {}});
    if (cell.status == CellStatus::kOk) found->second.push_back(&cell);
  }
  const References references(cells);
  std::vector<Summary> summaries(groups.size());
  parallel_for(static_cast<std::int64_t>(groups.size()), [&](std::int64_t i, int) {
    const auto& [first, group] = groups[static_cast<std::size_t>(i)];
    summaries[static_cast<std::size_t>(i)] = summarize(*first, group, references);
  });
  return summaries;
}

}  // namespace sw
