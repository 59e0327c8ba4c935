#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "attention/backend.hpp"
#include "attention/problem.hpp"

/// What the metrics of one layer return: a value for each (head or row set, query block row).
/// Decode steps have one block row, so the same functions measure them.
namespace sw {

/// Row-major [units, rows]: units are query heads, or row sets of a selection.
struct BlockGrid {
  std::int64_t units = 0;
  std::int64_t rows = 0;
  std::vector<float> values;

  BlockGrid() = default;
  BlockGrid(std::int64_t num_units, std::int64_t num_rows, float value = 0.0f)
      : units(num_units),
        rows(num_rows),
        values(static_cast<std::size_t>(num_units * num_rows), value) {}

  float& operator()(std::int64_t unit, std::int64_t row) {
    return values[static_cast<std::size_t>(unit * rows + row)];
  }
  float operator()(std::int64_t unit, std::int64_t row) const {
    return values[static_cast<std::size_t>(unit * rows + row)];
  }
};

/// [num_heads, rows]: `value` of the sums of each query block.
BlockGrid values_of(const OutputComparison& outputs,
                    const std::function<double(const OutputSums&)>& value);

}  // namespace sw
