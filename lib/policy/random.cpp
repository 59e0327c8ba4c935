// Random blocks beside the forced sink and window: what a score must beat to mean anything.
#include "core/rng.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

class RandomPolicy final : public Policy {
 public:
  RandomPolicy(const BaselineOptions& options, std::uint64_t seed)
      : options_(options), seed_(seed) {}

  std::string name() const override { return "random"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  Budget budget() const override { return options_.budget; }
  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override {
    return draw(context);
  }
  BlockScores score_decode(const ScoreContext& context, WalkState&, DecodeCache&) const override {
    return draw(context);
  }

 private:
  /// One stream for each (layer, query position of the row's first token): a row's draw does not
  /// depend on the rows before it.
  BlockScores draw(const ScoreContext& context) const {
    const BlockGeometry& g = context.geometry;
    BlockScores scores{1, Matrix(g.rows(), g.key_blocks())};
    for (std::int64_t r = 0; r < g.rows(); ++r) {
      SplitMix64 mix(seed_ ^ static_cast<std::uint64_t>(context.problem.layer));
      SplitMix64 rng(mix.next() + static_cast<std::uint64_t>(g.row_begin(r)));
      for (double& s : scores.values.row(r)) s = rng.uniform();
    }
    return scores;
  }

  BaselineOptions options_;
  std::uint64_t seed_;
};

}  // namespace

PolicyEntry random_entry() {
  return {[] {
            BaselineOptions defaults;
            return MethodInfo{"random", "sink, window, and random blocks for the rest",
                              "baseline; --seed chooses the draw", "layer", defaults.bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t seed) -> std::unique_ptr<Policy> {
            return std::make_unique<RandomPolicy>(parse_options<BaselineOptions>(spec), seed);
          }};
}

}  // namespace sw
