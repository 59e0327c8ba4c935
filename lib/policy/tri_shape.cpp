// Tri-shape (SCBench, Li et al., arXiv 2412.10319; in the MInference release): sink and window for
// all rows, and dense attention for the last rows of the prompt, where the question is. Without
// those rows (last_rows=0) it is the A-shape of MInference, which `sink_window` also gives.
// At block granularity: the release's 100 last queries are 2 block rows; its 128 first and 3968
// recent tokens become the sink and window blocks of the matched budget. The other rows keep so
// much less that the whole has the density asked for. Where it does not pay for all last rows while
// the others keep their own block, fewer of them are dense: at 5% of 4,096 tokens one, and none of
// 1,000. Decode attends densely, as in the release. Cost: none.
#include "policy/registry.hpp"

namespace sw {
namespace {

struct TriShapeOptions {
  Budget budget{.forced = Budget::Forced::kSinkAndRecent,
                .dense_last_rows = 2,
                .dense_phase = Phase::kDecode};
  std::int64_t dense_layers = 2;

  OptionSet bind() {
    OptionSet set;
    set.add("last_rows", budget.dense_last_rows, 0, kNoLimit,
            "block rows at the end of the prompt that attend densely, if the density pays for "
            "them; 0 is the A-shape");
    add_matched(set, budget);
    set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
    return set;
  }
};

class TriShapePolicy final : public Policy {
 public:
  explicit TriShapePolicy(const TriShapeOptions& options) : options_(options) {}

  std::string name() const override { return "tri_shape"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  Budget budget() const override { return options_.budget; }
  BlockScores score_prefill(const ScoreContext&, WalkState&, DecodeCache*) const override {
    return {};
  }
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  TriShapeOptions options_;
};

}  // namespace

PolicyEntry tri_shape_entry() {
  return {[] {
            return MethodInfo{
                "tri_shape",
                "leading and most recent blocks, and dense last rows, which the other "
                "rows pay for; last_rows=0 is the A-shape; decode attends densely",
                "SCBench, Li et al., arXiv 2412.10319, and the MInference release", "layer",
                TriShapeOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<TriShapePolicy>(parse_options<TriShapeOptions>(spec));
          }};
}

}  // namespace sw
