// Adamas (Yan et al., arXiv 2510.18413, and the authors' release): in decode, the keys nearest to
// the query in Manhattan distance, after a Hadamard transform of both and a quantisation of each
// element to 2 bits by three thresholds. The transform spreads outliers over all elements, so that
// one threshold fits them. The prefill attends densely, and the first two layers do, as in the
// release.
// The thresholds are -t, 0, t with t = threshold (1) root mean squares: of all elements of a KV
// head's keys in the prompt, and of the query's own. (The release has two forms: 10 for the
// unnormalised transform, about one standard deviation on Llama, and later multiples of the
// standard deviation of the layer's keys and queries.) Head dimensions that are no power of two are
// padded with zeros. A score is the largest distance, 3 d', minus the distance; heads that share a
// selection add up theirs, where the release takes the nearest. With unit=block a block is as near
// as its nearest key.
// Cost: n d' comparisons of 2 bits a head and step, an eighth of the bytes of a bf16 step's QK; a
// transform, d' log d' additions, for each key once and a query each step. Here a byte an element.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "attention/sketch.hpp"
#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct AdamasOptions : ScoreOptions {
  double threshold = 1.0;

  AdamasOptions() {
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit,
             "token: single keys, as in the paper; block: the blocks that hold the nearest");
    add_selection(set);
    set.add("threshold", threshold, 0.0, 100.0, true,
            "outer thresholds of the 2 bits, in root mean squares of the transformed elements");
    return set;
  }
};

class TwoBitKeys final : public KeySummary {
 public:
  TwoBitKeys(double threshold, std::int64_t block, std::int64_t dim)
      : threshold_(threshold), block_(block), dim_(dim), padded_(next_power_of_two(dim)) {}

  void append(const float* keys, std::int64_t count) override {
    if (codes_.empty()) outer_ = outer_threshold(keys, count);
    for (const float* key = keys; key != keys + count * dim_; key += dim_) {
      encode(key, outer_, codes_);
    }
  }

  void score(const float* query, std::span<double> scores) const override {
    std::vector<std::uint8_t> code;
    encode(query, outer_threshold(query, 1), code);
    const std::int64_t tokens = static_cast<std::int64_t>(codes_.size()) / padded_;
    for (std::size_t j = 0; j < scores.size(); ++j) {
      const std::int64_t begin = static_cast<std::int64_t>(j) * block_;
      std::int64_t nearest = 3 * padded_;
      for (std::int64_t t = begin; t < std::min(begin + block_, tokens); ++t) {
        nearest = std::min(nearest, distance(code.data(), codes_.data() + t * padded_));
      }
      scores[j] = static_cast<double>(3 * padded_ - nearest);
    }
  }

 private:
  /// The transform multiplies the sum of squares by d', and has d' elements.
  float outer_threshold(const float* x, std::int64_t count) const {
    double squares = 0.0;
    for (std::int64_t i = 0; i < count * dim_; ++i) squares += double{x[i]} * x[i];
    return static_cast<float>(threshold_ * std::sqrt(squares / static_cast<double>(count)));
  }

  /// Appends the codes 0 .. 3 of the transformed x.
  void encode(const float* x, float outer, std::vector<std::uint8_t>& codes) const {
    std::vector<float> y(x, x + dim_);
    y.resize(static_cast<std::size_t>(padded_), 0.0f);
    hadamard(y.data(), padded_);
    for (const float value : y) {
      codes.push_back(static_cast<std::uint8_t>((value > -outer ? 1 : 0) + (value > 0.0f ? 1 : 0) +
                                                (value > outer ? 1 : 0)));
    }
  }

  std::int64_t distance(const std::uint8_t* x, const std::uint8_t* y) const {
    int sum = 0;
    for (std::int64_t i = 0; i < padded_; ++i) sum += std::abs(int{x[i]} - int{y[i]});
    return sum;
  }

  double threshold_;
  std::int64_t block_;
  std::int64_t dim_;
  std::int64_t padded_;
  float outer_ = 0.0f;               // of the keys
  std::vector<std::uint8_t> codes_;  // [tokens, padded]
};

}  // namespace

PolicyEntry adamas_entry() {
  return {[] {
            return MethodInfo{"adamas",
                              "decode: the keys nearest to the query in Manhattan distance, after "
                              "a Hadamard transform and in 2 bits; the prefill attends densely",
                              "Adamas, Yan et al., arXiv 2510.18413, and the authors' release",
                              "layer, KV head or head", AdamasOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            const auto options = parse_options<AdamasOptions>(spec);
            SummaryMethod method{
                spec.name, spec_of(spec.name, options), options, 0,
                [threshold = options.threshold](std::int64_t block, std::int64_t dim) {
                  return std::make_unique<TwoBitKeys>(threshold, block, dim);
                }};
            method.logits = false;
            return make_summary_policy(std::move(method));
          }};
}

}  // namespace sw
