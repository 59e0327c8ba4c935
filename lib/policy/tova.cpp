// TOVA (Oren et al., arXiv 2401.06104, and the authors' release): in decode, the keys that the
// query before attended to most, averaged over the heads of a layer. A key that is evicted never
// returns. Nothing is forced but the newest key. The prefill attends densely, and its last query
// chooses first, as in the release. The matched budget follows the context, where TOVA's is fixed.
// With unit=block a block's weight is that of its keys, the newest key's block is always kept, and
// nothing is evicted: each step ranks by what a dense step gave the query before. evict=false does
// the same for keys.
// Cost: TOVA reads the weights of the attention that runs anyway; here d multiply-adds for each
// remaining key of a head compute them again (for blocks a dense step).
#include <algorithm>
#include <utility>

#include "policy/head_scores.hpp"
#include "policy/key_eviction.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct TovaOptions : ScoreOptions {
  bool evict = true;

  TovaOptions() {
    granularity = Granularity::kLayer;
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit,
             "token: single keys, evicted for good, as in the paper; block: whole blocks, as if "
             "evicted ones could return");
    set.add("evict", evict, "unit=token: false lets evicted keys return");
    add_selection(set);
    return set;
  }
  EvictionRule rule() const {
    return {.granularity = granularity, .budget = budget, .accumulate = false, .evict = evict};
  }
};

class TovaPolicy final : public Policy {
 public:
  explicit TovaPolicy(const TovaOptions& options) : options_(options) {}

  std::string name() const override { return "tova"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool decode_depends_on_density() const override { return single_keys() && options_.evict; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&,
                            DecodeCache* cache) const override {
    if (cache == nullptr) return {};
    if (single_keys()) {
      const StageTimer timer(context.times, Stage::kSketch);
      Matrix last(context.problem.num_heads(), context.problem.tokens());
      last_query_probabilities(context.problem, 1,
                               [&](std::int64_t head, std::int64_t, std::span<const double> p) {
                                 std::copy(p.begin(), p.end(), last.row(head).begin());
                               });
      cache->value = std::make_shared<EvictionCache>(options_.rule(), context.problem, last);
    } else {
      cache->value = std::make_shared<BlockMass>(last_query_mass(context));
    }
    return {};
  }

  BlockScores score_decode(const ScoreContext& context, WalkState&,
                           DecodeCache& cache) const override {
    if (single_keys()) {
      return std::any_cast<std::shared_ptr<EvictionCache>&>(cache.value)->step(context);
    }
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
  bool single_keys() const { return options_.unit == Unit::kToken; }

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
                              "decode: keys that the query before attended to most; evicted keys "
                              "never return; the prefill attends densely",
                              "TOVA, Oren et al., arXiv 2401.06104, and the authors' release",
                              "layer, KV head or head", TovaOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<TovaPolicy>(parse_options<TovaOptions>(spec));
          }};
}

}  // namespace sw
