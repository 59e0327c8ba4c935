// Sink and window: the leading blocks and the most recent ones, no scores (StreamingLLM, Xiao et
// al., arXiv 2309.17453), at the block counts of sketchwalk.md section 3.
#include "policy/registry.hpp"

namespace sw {
namespace {

class SinkWindowPolicy final : public Policy {
 public:
  explicit SinkWindowPolicy(const BaselineOptions& options) : options_(options) {
    options_.budget.forced = Budget::Forced::kSinkAndRecent;
  }

  std::string name() const override { return "sink_window"; }
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
  BaselineOptions options_;
};

}  // namespace

PolicyEntry sink_window_entry() {
  return {[] {
            BaselineOptions defaults;
            return MethodInfo{"sink_window", "leading and most recent blocks only",
                              "StreamingLLM, arXiv 2309.17453", "layer", defaults.bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<SinkWindowPolicy>(parse_options<BaselineOptions>(spec));
          }};
}

}  // namespace sw
