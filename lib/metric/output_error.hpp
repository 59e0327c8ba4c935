#pragma once

#include "metric/block_grid.hpp"

namespace sw {

/// Relative error of the attention output (metrics.md): ||O_dense - O_sparse||_F / ||O_dense||_F
/// over the queries of each block row, [num_heads, rows]. 0 when both outputs are zero, infinite
/// when only the dense one is.
BlockGrid output_error(const OutputComparison& outputs);

}  // namespace sw
