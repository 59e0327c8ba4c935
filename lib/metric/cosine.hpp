#pragma once

#include "metric/block_grid.hpp"

namespace sw {

/// Cosine of the flattened attention outputs of each block row (metrics.md), [num_heads, rows], in
/// [-1, 1]. 1 when both outputs are zero, 0 when one is.
BlockGrid output_cosine(const OutputComparison& outputs);

}  // namespace sw
