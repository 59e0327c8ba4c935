#pragma once

#include <map>

#include "policy/head_scores.hpp"

/// Methods that drop single keys from the KV cache by the attention that they received (H2O, TOVA):
/// what is dropped never returns, and gathers no attention any more. What remains depends on the
/// number of keys that may stay, so every density has a cache of its own, from the same prompt.
namespace sw {

struct EvictionRule {
  Granularity granularity = Granularity::kHead;
  Budget budget;            ///< how many keys stay, and which of them whatever they received
  bool accumulate = false;  ///< attention of all queries so far, or of the latest only
  bool evict = true;        ///< false: nothing is dropped, and dropped keys may return
};

class EvictionCache {
 public:
  /// `received`: the attention that each key of the prompt received, [num_heads, tokens].
  EvictionCache(const EvictionRule& rule, const AttentionProblem& prompt, const Matrix& received);

  /// Scores of the keys of the next decode step: what they received before it, -infinity for keys
  /// that are gone. Then the query of the step attends to the keys that remain, which counts from
  /// the next step on. Cost: d multiply-adds for each remaining key of each head.
  BlockScores step(const ScoreContext& context);

 private:
  EvictionRule rule_;
  Matrix prompt_;                    // [row sets, tokens of the prompt]
  std::map<double, Matrix> scores_;  // by density: [row sets, tokens so far]
};

}  // namespace sw
