#include "eval/record.hpp"

#include <cassert>

namespace sw {

const char* status_name(CellStatus status) {
  static constexpr const char* kNames[] = {"ok", "skipped", "failed"};
  return kNames[static_cast<int>(status)];
}

const char* phase_name(Phase phase) { return phase == Phase::kPrefill ? "prefill" : "decode"; }

const char* variant_name(Variant variant) {
  static constexpr std::array<const char*, kNumVariants> kNames = {
      "best_per_head", "forced",      "token_keys", "pooled_keys", "mask",
      "temperature",   "aggregation", "exact",      "sketch_only"};
  return kNames[static_cast<std::size_t>(variant)];
}

MetricArray::MetricArray(std::int64_t num_layers, std::int64_t num_units, std::int64_t num_columns,
                         float value)
    : layers(num_layers),
      units(num_units),
      columns(num_columns),
      values(static_cast<std::size_t>(num_layers * num_units * num_columns), value) {}

void MetricArray::set(std::int64_t layer, std::int64_t column, const BlockGrid& grid) {
  assert((grid.units == units || grid.units == 1) && column + grid.rows <= columns);
  for (std::int64_t u = 0; u < units; ++u) {
    for (std::int64_t r = 0; r < grid.rows; ++r) {
      (*this)(layer, u, column + r) = grid(grid.units == 1 ? 0 : u, r);
    }
  }
}

double MetricArray::unit_mean(std::int64_t layer, std::int64_t column) const {
  double sum = 0.0;
  for (std::int64_t u = 0; u < units; ++u) sum += (*this)(layer, u, column);
  return sum / static_cast<double>(units);
}

}  // namespace sw
