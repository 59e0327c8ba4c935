#pragma once

#include <span>

#include "attention/selection.hpp"
#include "metric/block_grid.hpp"

namespace sw {

/// Share of the dense softmax probability that a selection keeps (metrics.md, mass_recall): mean
/// over the queries of each block row, [num_heads, rows], in [0, 1]. Sums the dense block masses of
/// the kept blocks; exact for selections without token-level parts, and a lower bound with them.
BlockGrid mass_recall(const BlockMass& mass, const BlockSelection& selection);

/// The same for any selection, from the two attentions: the kept probability of a query is
/// exp(lse_sparse - lse_dense). Both [num_heads, queries], as AttentionOutput::lse.
BlockGrid mass_recall(std::span<const double> dense_lse, std::span<const double> sparse_lse,
                      const BlockGeometry& geometry);

}  // namespace sw
