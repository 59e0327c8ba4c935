#pragma once

#include <optional>
#include <span>
#include <utility>

#include "attention/selection.hpp"

namespace sw {

/// Share of the selections of the last block row (one a row set) that keep every block of an answer
/// span (metrics.md, answer_recall), mean over the spans. Spans are half-open token ranges; those
/// that are empty or do not lie within the context are left out, and without any left there is no
/// value. A block that a token-level part reaches into counts as kept; of a block that is not kept,
/// all of the span's keys have to be kept singly.
std::optional<double> answer_recall(const BlockSelection& selection,
                                    std::span<const std::pair<std::int64_t, std::int64_t>> spans);

}  // namespace sw
