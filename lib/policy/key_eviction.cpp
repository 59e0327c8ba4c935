#include "policy/key_eviction.hpp"

#include <algorithm>
#include <cassert>
#include <limits>

#include "core/parallel.hpp"

namespace sw {
namespace {

constexpr double kGone = -std::numeric_limits<double>::infinity();

/// Softmax of the newest query over the keys of a row set that are not gone: [num_heads, tokens],
/// zeros elsewhere.
Matrix attend_to_remaining(const AttentionProblem& problem, const Matrix& scores) {
  Matrix attention(problem.num_heads(), problem.tokens());
  const std::int64_t heads_per_set = problem.num_heads() / scores.rows();
  const std::int64_t dim = problem.head_dim();
  parallel_for(problem.num_heads(), [&](std::int64_t h, int) {
    const std::span<const double> score = scores.row(h / heads_per_set);
    const std::vector<float> query = load_tokens(problem.q, h, 0, 1);
    std::vector<float> key(static_cast<std::size_t>(dim));
    std::vector<double> p;
    for (std::size_t t = 0; t < score.size(); ++t) {
      if (score[t] == kGone) continue;
      problem.k.load_row(h / problem.group(), static_cast<std::int64_t>(t), key.data());
      p.push_back(problem.scale() * dot(query.data(), key.data(), dim));
    }
    softmax(p);
    auto next = p.begin();
    const std::span<double> row = attention.row(h);
    for (std::size_t t = 0; t < score.size(); ++t) {
      if (score[t] != kGone) row[t] = *next++;
    }
  });
  return attention;
}

}  // namespace

EvictionCache::EvictionCache(const EvictionRule& rule, const AttentionProblem& prompt,
                             const Matrix& received)
    : rule_(rule), prompt_(sum_heads(received, row_sets(rule.granularity, prompt))) {}

BlockScores EvictionCache::step(const ScoreContext& context) {
  const StageTimer timer(context.times, Stage::kSketch);
  const AttentionProblem& problem = context.problem;
  Matrix& state = scores_.try_emplace(rule_.evict ? context.density : 1.0, prompt_).first->second;
  assert(state.cols() + 1 == problem.tokens());
  BlockScores scores;
  scores.groups = state.rows();
  scores.keys = Matrix(state.rows(), problem.tokens());
  for (std::int64_t g = 0; g < state.rows(); ++g) {
    std::copy(state.row(g).begin(), state.row(g).end(), scores.keys.row(g).begin());
  }
  if (rule_.evict) {
    const BlockSelection kept =
        select_blocks(scores, context.geometry, rule_.budget, context.density, Phase::kDecode);
    for (std::int64_t g = 0; g < state.rows(); ++g) {
      const std::span<double> row = scores.keys.row(g);
      const auto tokens = kept.tokens(g, 0);
      auto next = tokens.begin();
      for (std::size_t t = 0; t < row.size(); ++t) {
        if (next != tokens.end() && *next == static_cast<std::int32_t>(t)) {
          ++next;
        } else {
          row[t] = kGone;
        }
      }
    }
  }
  const Matrix attention = sum_heads(attend_to_remaining(problem, scores.keys), state.rows());
  state = scores.keys;
  for (std::int64_t g = 0; g < state.rows(); ++g) {
    for (std::int64_t t = 0; t < state.cols(); ++t) {
      if (state(g, t) == kGone) continue;
      state(g, t) = attention(g, t) + (rule_.accumulate ? state(g, t) : 0.0);
    }
  }
  return scores;
}

}  // namespace sw
