#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "attention/backend.hpp"
#include "attention/problem.hpp"

/// Exact attention of the last few queries of a prompt, from which several methods extrapolate to
/// the other rows (MInference, FlexPrefill) or to the steps that follow (SnapKV).
namespace sw {

/// Calls body(head, query, probabilities) for the last `count` queries (or all, if there are fewer)
/// of every query head, with the causal softmax over all keys; `query` counts from the first of
/// them. Several heads run at a time, the queries of one in order. Cost: count n d multiply-adds a
/// head; holds one f32 copy of K for each KV head at work.
using ProbabilityRow =
    std::function<void(std::int64_t head, std::int64_t query, std::span<const double> p)>;
void last_query_probabilities(const AttentionProblem& problem, std::int64_t count,
                              const ProbabilityRow& body);

/// Attention of the last queries of one head summed along vertical and slash lines, as a mean over
/// the queries; each sums to 1.
struct LineMass {
  std::vector<double> vertical;  ///< [tokens], by key
  std::vector<double> slash;     ///< [tokens], by distance from query to key
};

/// One for each query head.
std::vector<LineMass> last_query_lines(const AttentionProblem& problem, std::int64_t count);

/// Attention that each key of a prompt receives from all queries, summed: [num_heads, tokens]. The
/// problem's queries start at position 0. Two dense attentions of the backend: the second is the
/// first one seen from the keys. Keys in reverse order ask, with a 1 appended, queries in reverse
/// order answer, with minus their log-sum-exp appended; the causal log-sum-exp of a key is then ln
/// sum_p exp(q_p.k - lse_p).
Matrix attention_received(const AttentionProblem& problem, const Backend& backend);

/// Sums of `block` consecutive entries.
std::vector<double> block_sums(std::span<const double> x, std::int64_t block);

}  // namespace sw
