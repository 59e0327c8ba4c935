#include "attention/sketch.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/rng.hpp"

namespace sw {

std::int64_t next_power_of_two(std::int64_t n) {
  std::int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

Sketch::Sketch(const SketchParams& params, std::int64_t layer, std::int64_t head_dim)
    : head_dim_(head_dim),
      padded_(next_power_of_two(head_dim)),
      rank_(params.sketch_dim > 0 ? std::min(params.sketch_dim, padded_) : padded_),
      exact_(params.exact) {
  const auto padded = static_cast<double>(padded_);
  const auto rank = static_cast<double>(rank_);
  vector_scale_ = params.unbiased ? std::sqrt(1.0 / rank) : std::sqrt(rank / padded);
  logit_scale_ = 1.0 / std::sqrt(rank);
  if (params.exact) {
    // The scale that makes r = d' and `exact` the same (section 7).
    logit_scale_ = params.unbiased ? 1.0 / std::sqrt(padded) : std::sqrt(padded);
  }
  SplitMix64 rng(params.seed + SplitMix64::kGamma * static_cast<std::uint64_t>(layer + 1));
  signs_.resize(static_cast<std::size_t>(padded_));
  for (double& s : signs_) s = (rng.next() >> 63) != 0 ? -1.0 : 1.0;
  permutation_.resize(static_cast<std::size_t>(padded_));
  std::iota(permutation_.begin(), permutation_.end(), std::int64_t{0});
  for (auto i = static_cast<std::size_t>(padded_) - 1; i > 0; --i) {
    std::swap(permutation_[i], permutation_[rng.below(i + 1)]);
  }
}

void Sketch::apply(const double* x, double* y) const {
  if (exact_) {
    std::copy(x, x + head_dim_, y);
    return;
  }
  std::vector<double> h(static_cast<std::size_t>(padded_), 0.0);
  for (std::int64_t j = 0; j < head_dim_; ++j) h[j] = signs_[j] * x[j];
  hadamard(h.data(), padded_);
  for (std::int64_t j = 0; j < rank_; ++j) y[j] = vector_scale_ * h[permutation_[j]];
}

}  // namespace sw
