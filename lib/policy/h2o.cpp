// H2O (Zhang et al., arXiv 2306.14048, and the authors' release): in decode, the heavy hitters, the
// keys with the most attention summed over all queries so far, and as many recent ones. A key that
// is evicted gathers no more attention and never returns. The prefill attends densely and starts
// the sums. In the release each head has its own cache, and recent and heavy keys share it evenly.
// The matched budget follows the context, where H2O's is fixed at the prompt.
// With unit=block a block's sum is that of its keys, and nothing is evicted: every block goes on
// gathering what a dense step would give it and may come back. evict=false does the same for keys.
// Cost: the sums need the attention weights of the dense prefill, which H2O takes from an attention
// that stores them; here two dense passes give them (for blocks one, and one at each step). A step
// costs d multiply-adds for each remaining key of a head, which H2O takes from the attention
// itself.
#include <algorithm>
#include <utility>

#include "policy/head_scores.hpp"
#include "policy/key_eviction.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct H2oOptions : ScoreOptions {
  bool evict = true;

  H2oOptions() {
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kRecentHalf;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit,
             "token: single keys, evicted for good, as in the paper; block: whole blocks, which "
             "gather as if nothing had been evicted and may return");
    set.add("evict", evict, "unit=token: false lets evicted keys gather attention and return");
    add_selection(set);
    return set;
  }
  EvictionRule rule() const {
    return {.granularity = granularity, .budget = budget, .accumulate = true, .evict = evict};
  }
};

/// Attention gathered by each block, [num_heads][blocks].
using Gathered = std::vector<std::vector<double>>;

class H2oPolicy final : public Policy {
 public:
  explicit H2oPolicy(const H2oOptions& options) : options_(options) {}

  std::string name() const override { return "h2o"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool decode_depends_on_density() const override { return single_keys() && options_.evict; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&,
                            DecodeCache* cache) const override {
    if (cache == nullptr) return {};
    if (single_keys()) {
      const StageTimer timer(context.times, Stage::kSketch);
      cache->value = std::make_shared<EvictionCache>(
          options_.rule(), context.problem, attention_received(context.problem, context.backend));
      return {};
    }
    const auto gathered =
        std::make_shared<Gathered>(static_cast<std::size_t>(context.problem.num_heads()));
    gather(context, *gathered);
    cache->value = gathered;
    return {};
  }

  BlockScores score_decode(const ScoreContext& context, WalkState&,
                           DecodeCache& cache) const override {
    if (single_keys()) {
      return std::any_cast<std::shared_ptr<EvictionCache>&>(cache.value)->step(context);
    }
    Gathered& gathered = *std::any_cast<std::shared_ptr<Gathered>&>(cache.value);
    const BlockScores scores =
        add_head_estimates(context, options_.granularity,
                           [&](std::int64_t head, std::int64_t, std::span<double> mass) {
                             const auto& sums = gathered[static_cast<std::size_t>(head)];
                             std::copy(sums.begin(), sums.end(), mass.begin());
                           });
    gather(context, gathered);  // what this step attends to counts from the next one on
    return scores;
  }

 private:
  bool single_keys() const { return options_.unit == Unit::kToken; }

  /// Adds the dense attention of all queries of the problem.
  static void gather(const ScoreContext& context, Gathered& gathered) {
    const StageTimer timer(context.times, Stage::kSketch);
    AttentionOutput output;
    BlockMass mass;
    context.backend.attend_dense(context.problem, context.geometry, output, mass);
    for (std::int64_t h = 0; h < mass.heads; ++h) {
      auto& sums = gathered[static_cast<std::size_t>(h)];
      sums.resize(static_cast<std::size_t>(mass.cols), 0.0);
      for (std::int64_t r = 0; r < mass.rows; ++r) {
        const auto queries =
            static_cast<double>(context.geometry.row_end(r) - context.geometry.row_begin(r));
        const std::span<const float> row = std::as_const(mass).row(h, r);
        for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += queries * row[j];
      }
    }
  }

  H2oOptions options_;
};

}  // namespace

PolicyEntry h2o_entry() {
  return {[] {
            return MethodInfo{"h2o",
                              "decode: recent keys and those that gathered the most attention; "
                              "evicted keys never return; the prefill attends densely",
                              "H2O, Zhang et al., arXiv 2306.14048, and the authors' release",
                              "layer, KV head or head", H2oOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<H2oPolicy>(parse_options<H2oOptions>(spec));
          }};
}

}  // namespace sw
