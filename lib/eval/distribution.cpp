#include "eval/distribution.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

/// Sum and number of the values of one block of consecutive tokens.
struct BlockSum {
  double sum = 0.0;
  std::int64_t count = 0;
};

/// Mean of value(window, token) over all tokens, with the interval that resamples blocks.
Interval block_bootstrap(std::span<const TokenStream> windows,
                         const std::function<double(const TokenStream&, std::size_t)>& value) {
  std::vector<BlockSum> blocks;
  BlockSum total;
  for (const TokenStream& window : windows) {
    for (std::size_t t = 0; t < window.nll_sparse.size(); ++t) {
      if (t % kTokenBlock == 0) blocks.emplace_back();
      const double x = value(window, t);
      blocks.back().sum += x;
      ++blocks.back().count;
      total.sum += x;
      ++total.count;
    }
  }
  Interval interval;
  interval.mean = total.sum / static_cast<double>(total.count);
  if (blocks.size() < 2) return interval;
  std::vector<double> means(static_cast<std::size_t>(kBootstrapResamples));
  SplitMix64 rng(kBootstrapSeed);
  for (double& resampled : means) {
    BlockSum drawn;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const BlockSum& block = blocks[rng.below(blocks.size())];
      drawn.sum += block.sum;
      drawn.count += block.count;
    }
    resampled = drawn.sum / static_cast<double>(drawn.count);
  }
  set_percentile_interval(interval, means);
  return interval;
}

}  // namespace

TokenComparison compare_logits(std::span<const float> dense, std::span<const float> sparse,
                               std::int32_t token) {
  const auto top_dense = std::max_element(dense.begin(), dense.end());
  const auto top_sparse = std::max_element(sparse.begin(), sparse.end());
  double sum_dense = 0.0;
  double sum_sparse = 0.0;
  double weighted = 0.0;  // sum of exp(dense - top) * (dense - sparse)
  for (std::size_t i = 0; i < dense.size(); ++i) {
    const float e = std::exp(dense[i] - *top_dense);
    sum_dense += e;
    if (e > 0.0f) weighted += e * (double{dense[i]} - sparse[i]);
    sum_sparse += std::exp(sparse[i] - *top_sparse);
  }
  const double lse_dense = *top_dense + std::log(sum_dense);
  const double lse_sparse = *top_sparse + std::log(sum_sparse);
  const auto at = static_cast<std::size_t>(token);
  const double nll_dense = lse_dense - dense[at];
  const double nll_sparse = lse_sparse - sparse[at];
  TokenComparison result;
  result.nll_dense = static_cast<float>(nll_dense);
  result.nll_sparse = static_cast<float>(nll_sparse);
  const double kl = weighted / sum_dense - lse_dense + lse_sparse;
  result.kl = static_cast<float>(kl < 0.0 ? 0.0 : kl);  // unlike std::max, keeps NaN
  result.delta_p = static_cast<float>(std::exp(-nll_sparse) - std::exp(-nll_dense));
  result.same_top = top_dense - dense.begin() == top_sparse - sparse.begin();
  return result;
}

DistributionSummary summarize_distribution(std::span<const TokenStream> windows) {
  double loss_dense = 0.0;
  double loss_sparse = 0.0;
  std::int64_t tokens = 0;
  bool compared = true;
  for (const TokenStream& window : windows) {
    const std::size_t n = window.nll_sparse.size();
    const bool has_kl = !window.kl.empty();
    if (window.nll_dense.size() != n ||
        (has_kl &&
         (window.kl.size() != n || window.delta_p.size() != n || window.same_top.size() != n))) {
      throw std::invalid_argument("summarize_distribution: arrays of different lengths");
    }
    const auto finite = [](const std::vector<float>& values) {
      return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    };
    if (!finite(window.nll_dense) || !finite(window.nll_sparse) || !finite(window.kl) ||
        !finite(window.delta_p)) {
      throw std::invalid_argument("summarize_distribution: values that are not finite");
    }
    compared = compared && has_kl;
    for (std::size_t t = 0; t < n; ++t) {
      loss_dense += window.nll_dense[t];
      loss_sparse += window.nll_sparse[t];
    }
    tokens += static_cast<std::int64_t>(n);
  }
  if (tokens == 0) throw std::invalid_argument("summarize_distribution: no tokens");
  const auto count = static_cast<double>(tokens);
  DistributionSummary summary;
  summary.ppl_dense = std::exp(loss_dense / count);
  summary.ppl_sparse = std::exp(loss_sparse / count);
  const auto ratio = [](const TokenStream& w, std::size_t t) {
    return double{w.nll_sparse[t]} - w.nll_dense[t];
  };
  summary.ln_ratio_interval = block_bootstrap(windows, ratio);
  summary.ln_ratio = summary.ln_ratio_interval.mean;
  double squares = 0.0;
  for (const TokenStream& window : windows) {
    for (std::size_t t = 0; t < window.nll_sparse.size(); ++t) {
      squares += std::pow(ratio(window, t) - summary.ln_ratio, 2);
    }
  }
  if (tokens > 1) summary.ln_ratio_se = std::sqrt(squares / (count - 1.0) / count);
  if (!compared) return summary;

  summary.kl_mean =
      block_bootstrap(windows, [](const TokenStream& w, std::size_t t) { return w.kl[t]; });
  summary.same_top =
      block_bootstrap(windows, [](const TokenStream& w, std::size_t t) { return w.same_top[t]; });
  std::vector<double> kl;
  double sum_p = 0.0;
  double squared_p = 0.0;
  for (const TokenStream& window : windows) {
    kl.insert(kl.end(), window.kl.begin(), window.kl.end());
    for (const float p : window.delta_p) {
      sum_p += p;
      squared_p += double{p} * p;
    }
  }
  std::sort(kl.begin(), kl.end());
  summary.kl_min = kl.front();
  summary.kl_max = kl.back();
  for (const double percent : kKlPercents) {
    summary.kl_percentiles.emplace_back(percent, quantile(kl, percent / 100.0));
  }
  summary.delta_p_mean = sum_p / count;
  summary.delta_p_rms = std::sqrt(squared_p / count);
  return summary;
}

}  // namespace sw
