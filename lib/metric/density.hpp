#pragma once

#include <cstdint>
#include <vector>

#include "attention/selection.hpp"
#include "metric/block_grid.hpp"

/// Density beyond the counts of a selection (metrics.md, Density).
namespace sw {

/// Kept over causal pairs of each head's row, [num_heads, rows].
BlockGrid row_density(const BlockSelection& selection, std::int64_t num_heads);

/// Counts of a selection as if every query head had a row set of its own, so that layers with
/// different numbers of row sets add up. Adds nothing but the factor num_heads / groups.
DensityCount count_per_head(const BlockSelection& selection, std::int64_t num_heads);

/// `a` plus `b`, part by part.
DensityCount add(const DensityCount& a, const DensityCount& b);

/// Distinct KV tokens that the row of a decode step (one query) reads, [num_kv_heads]: the union
/// over the query heads of a KV head. density_decode is their sum over num_kv_heads x context.
std::vector<std::int64_t> kv_tokens_read(const BlockSelection& selection, std::int64_t num_heads,
                                         std::int64_t num_kv_heads);

}  // namespace sw
