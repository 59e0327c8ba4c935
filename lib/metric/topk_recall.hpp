#pragma once

#include "attention/selection.hpp"
#include "metric/block_grid.hpp"

namespace sw {

/// |S n O| / |S| (metrics.md, topk_recall) of each row set and row, [groups, rows]: S the blocks
/// that `selection` touches, O those of `best`, its best selection of the same size.
BlockGrid topk_recall(const BlockSelection& selection, const BlockSelection& best);

}  // namespace sw
