// XAttention (Xu et al., arXiv 2503.16428, and the authors' release): antidiagonal scoring. Queries
// and keys are cut into groups of `stride` tokens, and the logit of two groups is the sum of the
// products along their antidiagonal, sum_s q[w S + S - 1 - s] . k[u S + s], divided by S sqrt(d).
// The softmax runs over the key groups u <= w, and its values are summed to block pairs. The last
// group is filled up with zeros. The release keeps the first and the own block and then blocks up
// to a share of a row's sum: budget=top_p (threshold 0.9), the same for all heads; the thresholds
// for each head that dynamic programming finds offline are left out. Decode attends densely, as in
// the release.
// Cost: n^2 d / (2 S) multiply-adds a head, 1/S of dense attention's QK; holds K in f32.
#include <algorithm>

#include "core/parallel.hpp"
#include "policy/head_scores.hpp"
#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct XAttentionOptions : ScoreOptions {
  std::int64_t stride = 8;

  XAttentionOptions() {
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kDecode;
  }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    set.add("stride", stride, 1, kNoLimit,
            "tokens of a group, a divisor of the block size (the paper: 8 and 16)");
    return set;
  }
};

class XAttentionPolicy final : public Policy {
 public:
  explicit XAttentionPolicy(const XAttentionOptions& options) : options_(options) {}

  std::string name() const override { return "xattention"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool takes_density() const override { return options_.takes_density(); }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override {
    const StageTimer timer(context.times, Stage::kSketch);
    const AttentionProblem& problem = context.problem;
    const BlockGeometry& geometry = context.geometry;
    const std::int64_t stride = checked_divisor("stride", options_.stride, geometry.block);
    const std::int64_t groups = (problem.tokens() + stride - 1) / stride;
    const std::int64_t groups_per_block = geometry.block / stride;
    const std::int64_t dim = problem.head_dim();
    const std::int64_t length = stride * dim;  // of a group
    const double scale = problem.scale() / static_cast<double>(stride);

    std::vector<std::vector<float>> keys(static_cast<std::size_t>(problem.num_kv_heads()));
    parallel_for(problem.num_kv_heads(), [&](std::int64_t g, int) {
      auto& k = keys[static_cast<std::size_t>(g)];
      k = load_tokens(problem.k, g, 0, problem.tokens());
      k.resize(static_cast<std::size_t>(groups * length), 0.0f);
    });
    return add_head_estimates(
        context, options_.granularity,
        [&](std::int64_t head, std::int64_t row, std::span<double> mass) {
          const float* k = keys[static_cast<std::size_t>(head / problem.group())].data();
          const std::int64_t first = geometry.row_begin(row) / stride;
          const std::int64_t end = (geometry.row_end(row) + stride - 1) / stride;
          std::vector<float> query(static_cast<std::size_t>(length));
          std::vector<double> p;
          for (std::int64_t w = first; w < end; ++w) {
            load_reversed(problem, head, w * stride, stride, query.data());
            p.resize(static_cast<std::size_t>(w + 1));
            for (std::int64_t u = 0; u <= w; ++u) {
              p[static_cast<std::size_t>(u)] = scale * dot(query.data(), k + u * length, length);
            }
            softmax(p);
            for (std::int64_t u = 0; u <= w; ++u) {
              mass[static_cast<std::size_t>(u / groups_per_block)] +=
                  p[static_cast<std::size_t>(u)] / static_cast<double>(end - first);
            }
          }
        });
  }
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  /// Queries at positions begin + count - 1 down to begin, zeros for those that are not there.
  static void load_reversed(const AttentionProblem& problem, std::int64_t head, std::int64_t begin,
                            std::int64_t count, float* out) {
    for (std::int64_t s = 0; s < count; ++s, out += problem.head_dim()) {
      const std::int64_t query = begin + count - 1 - s - problem.query_begin();
      if (query >= 0 && query < problem.queries()) {
        problem.q.load_row(head, query, out);
      } else {
        std::fill_n(out, problem.head_dim(), 0.0f);
      }
    }
  }

  XAttentionOptions options_;
};

}  // namespace

PolicyEntry xattention_entry() {
  return {[] {
            return MethodInfo{
                "xattention",
                "blocks with the largest antidiagonal sums; budget=top_p,top_p=0.9 is the "
                "release's own budget, without thresholds for each head; decode attends densely",
                "XAttention, Xu et al., arXiv 2503.16428, and the authors' release",
                "layer, KV head or head", XAttentionOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<XAttentionPolicy>(parse_options<XAttentionOptions>(spec));
          }};
}

}  // namespace sw
