// Oracle: blocks ranked by the dense attention mass that they hold, the upper bound of every
// block policy at the same granularity and number of blocks (metrics.md, oracle_gap); in decode
// also single keys, ranked by their dense probability.
#include <algorithm>
#include <cassert>
#include <utility>

#include "policy/head_scores.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct OracleOptions {
  Granularity granularity = Granularity::kLayer;
  Unit unit = Unit::kBlock;
  bool forced = false;
  std::int64_t dense_layers = 2;
  Budget budget;

  OptionSet bind() {
    OptionSet set;
    add_granularity(set, granularity);
    add_unit(set, unit, "block, or in decode (the prefill keeps blocks) token: single keys");
    set.add("forced", forced, "also force the sink and window blocks of the matched budget");
    set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
    add_matched(set, budget);
    return set;
  }
};

class OraclePolicy final : public Policy {
 public:
  explicit OraclePolicy(const OracleOptions& options) : options_(options) {}

  std::string name() const override { return "oracle"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool needs_mass() const override { return true; }
  Budget budget() const override {
    Budget budget = options_.budget;
    budget.forced = options_.forced ? Budget::Forced::kSinkAndWindow : Budget::Forced::kDiagonal;
    return budget;
  }
  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override {
    return rank(context);
  }
  BlockScores score_decode(const ScoreContext& context, WalkState&, DecodeCache&) const override {
    if (options_.unit == Unit::kBlock) return rank(context);
    AttentionOutput output;
    BlockMass mass;
    context.backend.attend_dense(context.problem, context.problem.geometry(1), output, mass);
    return add_key_estimates(context, options_.granularity,
                             [&](std::int64_t head, std::span<double> p) {
                               const std::span<const float> row = std::as_const(mass).row(head, 0);
                               std::copy(row.begin(), row.end(), p.begin());
                             });
  }

 private:
  BlockScores rank(const ScoreContext& context) const {
    assert(context.mass != nullptr);
    return scores_of_mass(*context.mass, row_sets(options_.granularity, context.problem));
  }

  OracleOptions options_;
};

}  // namespace

PolicyEntry oracle_entry() {
  return {[] {
            OracleOptions defaults;
            return MethodInfo{"oracle",
                              "blocks with the most dense attention mass: the upper bound",
                              "definition: the most mass at the same number of blocks",
                              "layer, KV head or head", defaults.bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<OraclePolicy>(parse_options<OracleOptions>(spec));
          }};
}

}  // namespace sw
