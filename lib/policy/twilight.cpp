// Twilight (Lin et al., arXiv 2502.02770, and the authors' release): in decode, the fewest keys
// whose estimated attention reaches the share top_p (0.85), estimated with keys of 4 bits. Each key
// is quantised by its own minimum and maximum over the head dimension, in 2^bits - 1 steps. With
// unit=block a block's weight is the sum over its keys. Left out: the selector in front
// (Quest with a large budget), which only saves time, so the estimate sees all keys. By default the
// share is calibrated to the density asked for (budget=calibrated), one for all heads of a step, so
// that what adapts is how much each head keeps; budget=top_p takes the paper's share and keeps what
// it keeps, and with budget=matched it is a low-bit scorer at a given density. The prefill attends
// densely, and the first two layers do, as in the release. Cost: n d multiply-adds a head and step
// on keys of `bits` bits: a quarter of the bytes of a dense step's QK. Here the quantised keys are
// kept as f32.
#include <algorithm>
#include <cmath>

#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct TwilightOptions : ScoreOptions {
  std::int64_t bits = 4;

  TwilightOptions() {
    unit = Unit::kToken;
    budget.kind = Budget::Kind::kCalibrated;
    budget.top_p = 0.85;
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit, "token: single keys, as in the paper; block: whole blocks");
    add_selection(set);
    add_budget(set);
    set.add("bits", bits, 1, 8, "bits of a quantised key's elements");
    return set;
  }
};

class QuantizedKeys final : public KeySummary {
 public:
  QuantizedKeys(std::int64_t bits, std::int64_t block, std::int64_t dim)
      : steps_(static_cast<float>((1 << bits) - 1)), block_(block), dim_(dim) {}

  void append(const float* keys, std::int64_t count) override {
    for (const float* key = keys; key != keys + count * dim_; key += dim_) {
      const auto [low, high] = std::minmax_element(key, key + dim_);
      const float step = std::max(*high - *low, 1e-9f) / steps_;
      for (std::int64_t x = 0; x < dim_; ++x) {
        keys_.push_back(std::nearbyint((key[x] - *low) / step) * step + *low);
      }
    }
  }

  /// ln of the sum of exp(logits) of each block's keys.
  void score(const float* query, std::span<double> logits) const override {
    const std::int64_t tokens = static_cast<std::int64_t>(keys_.size()) / dim_;
    std::vector<double> x;
    for (std::size_t j = 0; j < logits.size(); ++j) {
      const std::int64_t begin = static_cast<std::int64_t>(j) * block_;
      x.clear();
      for (std::int64_t t = begin; t < std::min(begin + block_, tokens); ++t) {
        x.push_back(dot(query, keys_.data() + t * dim_, dim_));
      }
      logits[j] = log_sum_exp(x);
    }
  }

 private:
  float steps_;
  std::int64_t block_;
  std::int64_t dim_;
  std::vector<float> keys_;  // [tokens, dim]
};

}  // namespace

PolicyEntry twilight_entry() {
  return {
      [] {
        return MethodInfo{
            "twilight",
            "decode: the fewest keys that hold the share top_p of the attention "
            "that keys of 4 bits predict, without a selector in front; the share is "
            "calibrated to the density, or given (budget=top_p; the paper: 0.85); the "
            "prefill attends densely",
            "Twilight, Lin et al., arXiv 2502.02770, and the authors' release",
            "layer, KV head or head", TwilightOptions().bind().list()};
      },
      [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
        const auto options = parse_options<TwilightOptions>(spec);
        return make_summary_policy({spec.name, spec_of(spec.name, options), options, 0,
                                    [bits = options.bits](std::int64_t block, std::int64_t dim) {
                                      return std::make_unique<QuantizedKeys>(bits, block, dim);
                                    }});
      }};
}

}  // namespace sw
