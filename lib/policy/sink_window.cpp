// Sink and window: the leading blocks and the most recent ones, no scores (StreamingLLM, Xiao et
// al., arXiv 2309.17453), at the block counts of sketchwalk.md section 3.
#include "policy/registry.hpp"

namespace sw {
namespace {

struct SinkWindowOptions {
  std::int64_t dense_layers = 2;

  OptionSet bind() {
    OptionSet set;
    set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
    return set;
  }
};

class SinkWindowPolicy final : public Policy {
 public:
  explicit SinkWindowPolicy(const SinkWindowOptions& options) : options_(options) {}

  std::string name() const override { return "sink_window"; }
  std::string spec() const override {
    SinkWindowOptions actual = options_;
    SinkWindowOptions defaults;
    return canonical_spec(name(), actual.bind(), defaults.bind());
  }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  Budget budget() const override { return {.forced = Budget::Forced::kSinkAndRecent}; }
  BlockScores score_prefill(const ScoreContext&, WalkState&, DecodeCache*) const override {
    return {};
  }
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  SinkWindowOptions options_;
};

}  // namespace

PolicyEntry sink_window_entry() {
  return {[] {
            SinkWindowOptions defaults;
            return MethodInfo{"sink_window", "leading and most recent blocks only",
                              "StreamingLLM, arXiv 2309.17453", "layer", defaults.bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            SinkWindowOptions options;
            OptionSet set = options.bind();
            apply_options(spec, set);
            return std::make_unique<SinkWindowPolicy>(options);
          }};
}

}  // namespace sw
