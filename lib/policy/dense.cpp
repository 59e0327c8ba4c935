// Dense attention: every causal block, at every layer.
#include "policy/registry.hpp"

namespace sw {
namespace {

class DensePolicy final : public Policy {
 public:
  std::string name() const override { return "dense"; }
  std::string spec() const override { return "dense"; }
  bool takes_density() const override { return false; }
  Budget budget() const override { return {.kind = Budget::Kind::kAll}; }
  BlockScores score_prefill(const ScoreContext&, WalkState&, DecodeCache*) const override {
    return {};
  }
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }
};

}  // namespace

PolicyEntry dense_entry() {
  return {[] {
            return MethodInfo{"dense",
                              "full causal attention, the reference of every comparison",
                              "definition",
                              "layer",
                              {}};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            OptionSet none;
            apply_options(spec, none);
            return std::make_unique<DensePolicy>();
          }};
}

}  // namespace sw
