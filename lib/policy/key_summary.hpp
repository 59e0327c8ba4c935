#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "policy/head_scores.hpp"

/// Policies that keep a summary of each key block and compare queries with it: block means, maxima,
/// bounds, quantised keys. They differ in the summary alone, so one policy runs them all, in
/// prefill for pooled queries and in decode for the newest query. A head's estimate is the softmax
/// of its blocks' logits, averaged over the pooled queries of the row. A method of single keys is
/// one of blocks of one key.
namespace sw {

/// What is kept of the key blocks of one KV head; grows with the context.
class KeySummary {
 public:
  virtual ~KeySummary() = default;
  /// The next keys [count, dim]; the first call brings the prompt.
  virtual void append(const float* keys, std::int64_t count) = 0;
  /// Logits (or scores) of the key blocks 0 .. logits.size() - 1 for `query` [dim], which comes in
  /// scaled by 1/sqrt(dim). -infinity says that a block has no weight; not all blocks may.
  virtual void score(const float* query, std::span<double> logits) const = 0;
};

/// Makes an empty summary for blocks of `block` keys of `dim` elements. Throws Error(kUsage) when
/// an option does not fit the block.
using MakeSummary =
    std::function<std::unique_ptr<KeySummary>(std::int64_t block, std::int64_t dim)>;

struct SummaryMethod {
  std::string name;
  std::string spec;
  ScoreOptions options;
  std::int64_t query_pool = 0;  ///< tokens of a pooled query in prefill, a divisor of B; 0 = B
  MakeSummary make;
  bool logits = true;  ///< false: scores rank, but are no logits, and are added up as they are
};

std::unique_ptr<Policy> make_summary_policy(SummaryMethod method);

void add_query_pool(OptionSet& set, std::int64_t& query_pool);

/// Throws Error(kUsage) when `tokens` does not divide the block size; 0 means the block.
std::int64_t checked_divisor(const std::string& option, std::int64_t tokens, std::int64_t block);

/// Elementwise minima and maxima of pages of `page` keys; a block's logit is the largest upper
/// bound sum_x max(q_x min_x, q_x max_x) of its pages: no key of the block has a larger one.
/// Quest's score. Cost of a logit: 2 d B / page multiply-adds.
std::unique_ptr<KeySummary> make_key_bounds(std::int64_t page, std::int64_t block,
                                            std::int64_t dim);

}  // namespace sw
