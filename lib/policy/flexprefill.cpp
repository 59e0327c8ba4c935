// FlexPrefill (Lai et al., arXiv 2502.20766, and the authors' release): each head chooses its
// pattern by itself. The exact attention of the last block of queries, summed to key blocks, is
// compared with what mean queries and keys predict for it. Where the square root of their
// Jensen-Shannon divergence is below tau the prediction is trusted, and all rows are scored by it
// (query-aware); elsewhere the head is vertical-slash, which the release works out at block
// granularity too: block columns, and block diagonals of distances s B .. s B + B - 1.
// budget=gamma is the release's own: a vertical-slash head keeps the columns and the diagonals that
// cover the share gamma each, a query-aware one the block pairs that cover it over its whole
// matrix, and both at least min_budget tokens of columns and of diagonals; the density follows.
// With the budgets matched and top_p, a vertical-slash head ranks block pairs by the sum of their
// line masses instead, so that rows can be cut anywhere. Left out: the release counts distances
// from the end of a ragged prompt's last block, and does nothing for prompts below min_budget;
// here distances count from 0. Decode attends densely, as in the release.
// Cost: B n d + b^2 d / 2 multiply-adds a head.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/parallel.hpp"
#include "policy/head_scores.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct FlexPrefillOptions : ScoreOptions {
  double tau = 0.1;
  double gamma = 0.95;
  std::int64_t min_budget = 1024;

  FlexPrefillOptions() {
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kDecode;
  }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set, "gamma", "what the release keeps, whatever the density");
    set.add("tau", tau, 0.0, 1.0, false,
            "divergence below which a head is query-aware; 0 makes all heads vertical-slash");
    set.add("gamma", gamma, 0.0, 1.0, true, "budget=gamma: share of a head's attention to cover");
    set.add("min_budget", min_budget, 1, kNoLimit,
            "budget=gamma: fewest tokens of the columns and of the diagonals");
    return set;
  }
};

/// sqrt of the Jensen-Shannon divergence in nats; 0 log 0 = 0.
double divergence(std::span<const double> p, std::span<const double> q) {
  double sum = 0.0;
  for (std::size_t j = 0; j < p.size(); ++j) {
    const double middle = 0.5 * (p[j] + q[j]);
    if (p[j] > 0.0) sum += 0.5 * p[j] * std::log(p[j] / middle);
    if (q[j] > 0.0) sum += 0.5 * q[j] * std::log(q[j] / middle);
  }
  return std::sqrt(std::max(sum, 0.0));
}

/// Entries of `x` that cover `gamma` of it, the largest first: how many.
std::int64_t cover_count(std::vector<double> x, double gamma) {
  std::sort(x.begin(), x.end(), std::greater<>());
  double sum = 0.0;
  std::int64_t count = 0;
  for (const double value : x) count += (sum += value) <= gamma ? 1 : 0;
  return count;
}

/// Keeps the `count` largest of `x` and the first, as 1; the others become 0.
void mark_largest(std::vector<double>& x, std::int64_t count) {
  x[0] = std::numeric_limits<double>::infinity();
  std::vector<double> sorted = x;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double least = sorted[static_cast<std::size_t>(count - 1)];
  for (double& value : x) value = value >= least ? 1.0 : 0.0;
}

/// Attention predicted by the means of queries and keys.
class MeanAttention {
 public:
  MeanAttention(const AttentionProblem& problem, const BlockGeometry& geometry)
      : problem_(problem), geometry_(geometry) {
    keys_.resize(static_cast<std::size_t>(problem.num_kv_heads()));
    parallel_for(problem.num_kv_heads(), [&](std::int64_t g, int) {
      auto& keys = keys_[static_cast<std::size_t>(g)];
      for (std::int64_t j = 0; j < geometry.key_blocks(); ++j) {
        const std::int64_t begin = j * geometry.block;
        const auto mean = mean_of_tokens(problem.k, g, begin, begin + geometry.block_tokens(j));
        keys.insert(keys.end(), mean.begin(), mean.end());
      }
    });
  }

  /// Softmax over the first p.size() blocks for the mean of the queries [begin, end) of the
  /// problem.
  void predict(std::int64_t head, std::int64_t begin, std::int64_t end, std::span<double> p) const {
    const std::vector<float> query = mean_of_tokens(problem_.q, head, begin, end);
    const float* key = keys_[static_cast<std::size_t>(head / problem_.group())].data();
    for (double& x : p) {
      x = problem_.scale() * dot(query.data(), key, problem_.head_dim());
      key += problem_.head_dim();
    }
    softmax(p);
  }
  void predict_row(std::int64_t head, std::int64_t row, std::span<double> p) const {
    predict(head, geometry_.row_begin(row) - problem_.query_begin(),
            geometry_.row_end(row) - problem_.query_begin(), p);
  }
  /// Least predicted value among the block pairs that cover `gamma` of the head's rows.
  double least_covered(std::int64_t head, double gamma) const {
    std::vector<double> all;
    for (std::int64_t r = 0; r < geometry_.rows(); ++r) {
      std::vector<double> p(static_cast<std::size_t>(geometry_.first_row() + r + 1));
      predict_row(head, r, p);
      all.insert(all.end(), p.begin(), p.end());
    }
    const std::int64_t count = cover_count(all, gamma * static_cast<double>(geometry_.rows()));
    if (count == 0) return std::numeric_limits<double>::infinity();
    std::nth_element(all.begin(), all.begin() + (count - 1), all.end(), std::greater<>());
    return all[static_cast<std::size_t>(count - 1)];
  }

 private:
  const AttentionProblem& problem_;
  BlockGeometry geometry_;
  std::vector<std::vector<float>> keys_;  // [num_kv_heads][blocks, dim]
};

/// How a head estimates its rows: by line masses (marks with budget=gamma), by predictions, or
/// both.
struct HeadPattern {
  bool query_aware = false;
  std::vector<double> vertical;  ///< [blocks], by key block
  std::vector<double> slash;     ///< [blocks], by distance in blocks
  double least = 0.0;            ///< budget=gamma, query-aware: least prediction that is kept
};

class FlexPrefillPolicy final : public Policy {
 public:
  explicit FlexPrefillPolicy(const FlexPrefillOptions& options) : options_(options) {}

  std::string name() const override { return "flexprefill"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool takes_density() const override { return options_.takes_density(); }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override;
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  bool marks() const { return budget().kind == Budget::Kind::kMarked; }
  HeadPattern choose(std::int64_t head, const LineMass& line, const AttentionProblem& problem,
                     std::int64_t block, const MeanAttention& means) const;

  FlexPrefillOptions options_;
};

HeadPattern FlexPrefillPolicy::choose(std::int64_t head, const LineMass& line,
                                      const AttentionProblem& problem, std::int64_t block,
                                      const MeanAttention& means) const {
  HeadPattern pattern;
  pattern.vertical = block_sums(line.vertical, block);
  pattern.slash = block_sums(line.slash, block);
  std::vector<double> predicted(pattern.vertical.size());
  means.predict(head, std::max<std::int64_t>(problem.queries() - block, 0), problem.queries(),
                predicted);
  pattern.query_aware = divergence(pattern.vertical, predicted) < options_.tau;
  if (!marks()) return pattern;
  const auto b = static_cast<std::int64_t>(predicted.size());
  const std::int64_t fewest = std::min((options_.min_budget - 1) / block + 1, b);
  const auto count = [&](const std::vector<double>& tokens) {
    if (pattern.query_aware) return fewest;
    return std::clamp((cover_count(tokens, options_.gamma) + 1) / block + 1, fewest, b);
  };
  mark_largest(pattern.vertical, count(line.vertical));
  mark_largest(pattern.slash, count(line.slash));
  if (pattern.query_aware) pattern.least = means.least_covered(head, options_.gamma);
  return pattern;
}

BlockScores FlexPrefillPolicy::score_prefill(const ScoreContext& context, WalkState&,
                                             DecodeCache*) const {
  const StageTimer timer(context.times, Stage::kSketch);
  const AttentionProblem& problem = context.problem;
  const MeanAttention means(problem, context.geometry);
  const std::vector<LineMass> lines = last_query_lines(problem, context.geometry.block);
  std::vector<HeadPattern> patterns(lines.size());
  parallel_for(problem.num_heads(), [&](std::int64_t h, int) {
    patterns[static_cast<std::size_t>(h)] =
        choose(h, lines[static_cast<std::size_t>(h)], problem, context.geometry.block, means);
  });
  return add_head_estimates(
      context, options_.granularity,
      [&](std::int64_t head, std::int64_t row, std::span<double> mass) {
        const HeadPattern& pattern = patterns[static_cast<std::size_t>(head)];
        if (pattern.query_aware) means.predict_row(head, row, mass);
        if (pattern.query_aware && !marks()) return;
        for (std::size_t j = 0; j < mass.size(); ++j) {
          const bool covered = pattern.query_aware && mass[j] >= pattern.least;
          const double lines_of_pair = pattern.vertical[j] + pattern.slash[mass.size() - 1 - j];
          mass[j] = lines_of_pair + (covered ? 1.0 : 0.0);
        }
        normalize(mass);
      });
}

}  // namespace

PolicyEntry flexprefill_entry() {
  return {[] {
            return MethodInfo{
                "flexprefill",
                "each head query-aware (block means) or vertical-slash, by how well means predict "
                "its last queries; at block granularity; budget=gamma is the release's own; decode "
                "attends densely",
                "FlexPrefill, Lai et al., arXiv 2502.20766, and the authors' release",
                "layer, KV head or head", FlexPrefillOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<FlexPrefillPolicy>(parse_options<FlexPrefillOptions>(spec));
          }};
}

}  // namespace sw
