// TOVA (Oren et al., arXiv 2401.06104, and the authors' release): in decode, the keys that the
// query before attended to most, averaged over heads. Nothing is forced; here the block of the
// newest token always is. The prefill attends densely.
// At block granularity: a block's weight is that of its keys. Left out: that an evicted key never
// returns. Scores here do not depend on the budget, so each step ranks by what a dense step gave
// the query before, and a block may come back: TOVA with ideal weights.
// Cost: TOVA reads the weights of the attention that runs anyway; here a dense step is repeated
// for them.
#include <algorithm>
#include <utility>

#include "policy/head_scores.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct TovaOptions : ScoreOptions {
  TovaOptions() {
    granularity = Granularity::kLayer;
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    return set;
  }
};

class TovaPolicy final : public Policy {
 public:
  explicit TovaPolicy(const TovaOptions& options) : options_(options) {}

  std::string name() const override { return "tova"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&,
                            DecodeCache* cache) const override {
    if (cache != nullptr) cache->value = std::make_shared<BlockMass>(last_query_mass(context));
    return {};
  }

  BlockScores score_decode(const ScoreContext& context, WalkState&,
                           DecodeCache& cache) const override {
    BlockMass& before = *std::any_cast<std::shared_ptr<BlockMass>&>(cache.value);
    const BlockScores scores =
        add_head_estimates(context, options_.granularity,
                           [&](std::int64_t head, std::int64_t, std::span<double> mass) {
                             const std::span<const float> row = std::as_const(before).row(head, 0);
                             std::copy(row.begin(), row.end(), mass.begin());
                           });
    before = last_query_mass(context);
    return scores;
  }

 private:
  static BlockMass last_query_mass(const ScoreContext& context) {
    const StageTimer timer(context.times, Stage::kSketch);
    AttentionProblem last = context.problem;
    last.q = last.q.tokens_slice(last.queries() - 1, last.queries());
    AttentionOutput output;
    BlockMass mass;
    context.backend.attend_dense(last, last.geometry(context.geometry.block), output, mass);
    return mass;
  }

  TovaOptions options_;
};

}  // namespace

PolicyEntry tova_entry() {
  return {[] {
            return MethodInfo{"tova",
                              "decode: blocks that the query before attended to most, at block "
                              "granularity, as if evicted blocks could return; the prefill attends "
                              "densely",
                              "TOVA, Oren et al., arXiv 2401.06104, and the authors' release",
                              "layer, KV head or head", TovaOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<TovaPolicy>(parse_options<TovaOptions>(spec));
          }};
}

}  // namespace sw
