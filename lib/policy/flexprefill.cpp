// FlexPrefill (Lai et al., arXiv 2502.20766, and the authors' release): each head chooses its
// pattern by itself. The exact attention of the last block of queries, summed to key blocks, is
// compared with what mean queries and keys predict for it. Where the square root of their
// Jensen-Shannon divergence is below tau the prediction is trusted, and all rows are scored by it
// (query-aware); elsewhere the head is vertical-slash, which the release works out at block
// granularity too: block columns, and block diagonals of distances s B .. s B + B - 1.
// Left out: the budget that covers the share gamma of the estimate over the whole matrix of a head;
// here a row keeps the blocks of the matched budget, or those that hold top_p of its own estimate.
// A vertical-slash head ranks blocks by the sum of both line masses, instead of a union of the
// first columns and the first diagonals. Decode attends densely, as in the release.
// Cost: B n d + b^2 d / 2 multiply-adds a head.
#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "policy/head_scores.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct FlexPrefillOptions : ScoreOptions {
  double tau = 0.1;

  FlexPrefillOptions() {
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kDecode;
  }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    set.add("tau", tau, 0.0, 1.0, false,
            "divergence below which a head is query-aware; 0 makes all heads vertical-slash");
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

class FlexPrefillPolicy final : public Policy {
 public:
  explicit FlexPrefillPolicy(const FlexPrefillOptions& options) : options_(options) {}

  std::string name() const override { return "flexprefill"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool takes_density() const override { return budget().kind == Budget::Kind::kMatched; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override;
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  FlexPrefillOptions options_;
};

BlockScores FlexPrefillPolicy::score_prefill(const ScoreContext& context, WalkState&,
                                             DecodeCache*) const {
  const StageTimer timer(context.times, Stage::kSketch);
  const AttentionProblem& problem = context.problem;
  const BlockGeometry& geometry = context.geometry;
  const std::int64_t dim = problem.head_dim();
  const std::int64_t b = geometry.key_blocks();

  std::vector<std::vector<float>> mean_keys(static_cast<std::size_t>(problem.num_kv_heads()));
  parallel_for(problem.num_kv_heads(), [&](std::int64_t g, int) {
    for (std::int64_t j = 0; j < b; ++j) {
      const std::int64_t begin = j * geometry.block;
      const std::vector<float> mean =
          mean_of_tokens(problem.k, g, begin, begin + geometry.block_tokens(j));
      auto& keys = mean_keys[static_cast<std::size_t>(g)];
      keys.insert(keys.end(), mean.begin(), mean.end());
    }
  });
  /// Softmax over the first blocks for the mean of queries [begin, end).
  const auto predict = [&](std::int64_t head, std::int64_t begin, std::int64_t end,
                           std::span<double> p) {
    const std::vector<float> query = mean_of_tokens(problem.q, head, begin, end);
    const float* keys = mean_keys[static_cast<std::size_t>(head / problem.group())].data();
    for (std::size_t j = 0; j < p.size(); ++j) {
      p[j] = problem.scale() * dot(query.data(), keys + static_cast<std::int64_t>(j) * dim, dim);
    }
    softmax(p);
  };

  std::vector<LineMass> lines = last_query_lines(problem, geometry.block);
  std::vector<char> query_aware(lines.size());
  parallel_for(problem.num_heads(), [&](std::int64_t head, int) {
    LineMass& line = lines[static_cast<std::size_t>(head)];
    line.vertical = block_sums(line.vertical, geometry.block);
    line.slash = block_sums(line.slash, geometry.block);
    std::vector<double> predicted(static_cast<std::size_t>(b));
    predict(head, std::max<std::int64_t>(problem.queries() - geometry.block, 0), problem.queries(),
            predicted);
    query_aware[static_cast<std::size_t>(head)] =
        divergence(line.vertical, predicted) < options_.tau;
  });

  return add_head_estimates(context, options_.granularity,
                            [&](std::int64_t head, std::int64_t row, std::span<double> mass) {
                              if (query_aware[static_cast<std::size_t>(head)] != 0) {
                                const std::int64_t shift = problem.query_begin();
                                return predict(head, geometry.row_begin(row) - shift,
                                               geometry.row_end(row) - shift, mass);
                              }
                              const LineMass& line = lines[static_cast<std::size_t>(head)];
                              for (std::size_t j = 0; j < mass.size(); ++j) {
                                mass[j] = line.vertical[j] + line.slash[mass.size() - 1 - j];
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
                "its last queries; at block granularity, without the release's gamma budget; "
                "decode attends densely",
                "FlexPrefill, Lai et al., arXiv 2502.20766, and the authors' release",
                "layer, KV head or head", FlexPrefillOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<FlexPrefillPolicy>(parse_options<FlexPrefillOptions>(spec));
          }};
}

}  // namespace sw
