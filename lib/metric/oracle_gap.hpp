#pragma once

#include "attention/selection.hpp"
#include "metric/block_grid.hpp"

namespace sw {

/// The best selection of the same size (metrics.md, oracle_gap): for each row set and row, the
/// diagonal block and the best other blocks by dense mass summed over the heads of the set, as many
/// as `selection` touches in that row. A token-level part counts every block it reaches into, so
/// for such selections the best one keeps more pairs.
BlockSelection best_selection(const BlockMass& mass, const BlockSelection& selection);

/// Mass of `best` minus `recall`, a head: [num_heads, rows]. Where heads share a selection a single
/// head may be better off than with the set's best blocks, so its value may be negative.
BlockGrid oracle_gap(const BlockMass& mass, const BlockSelection& best, const BlockGrid& recall);

/// The same, mean over the heads of each row set: [groups, rows], never negative but for rounding,
/// which is cut off.
BlockGrid oracle_gap_of_sets(const BlockGrid& gap, std::int64_t groups);

}  // namespace sw
