#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "attention/budget.hpp"
#include "attention/policy.hpp"
#include "eval/record.hpp"
#include "metric/block_grid.hpp"

/// Where a Sketch&Walk selection loses mass against the best selection of its size (metrics.md,
/// attribution): selections on the way from that one to the method, each of which differs from its
/// neighbour in one thing, tell what this thing costs. The parts depend on the order of the steps,
/// which is the order of Variant; between pooled keys and the exact method lie three changes of the
/// softmax, each taken alone, and the rest of what they do together is their interaction.
namespace sw {

/// SPECs of the variants of `policy` for heads of `head_dim` elements, empty for those that rank by
/// dense masses; nothing for methods that have no sketch and walk.
std::optional<std::array<std::string, kNumVariants>> attribution_specs(const Policy& policy,
                                                                       std::int64_t head_dim);

/// Recall of the best blocks of every head, as many in each row as `selection` gives it:
/// [num_heads, rows].
BlockGrid recall_best_per_head(const BlockMass& mass, const BlockSelection& selection);

}  // namespace sw
