#include "eval/distribution.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/rng.hpp"
#include "model/transformer.hpp"

namespace sw {
namespace {

std::vector<float> random_logits(std::uint64_t seed, std::size_t n, double scale) {
  SplitMix64 rng(seed);
  std::vector<float> values(n);
  for (float& x : values) x = static_cast<float>(scale * rng.normal());
  return values;
}

/// Probabilities by definition, in long double.
std::vector<long double> softmax(const std::vector<float>& logits) {
  long double top = -1e30L, sum = 0.0L;
  for (const float x : logits) top = std::max<long double>(top, x);
  std::vector<long double> p;
  for (const float x : logits) p.push_back(std::exp(static_cast<long double>(x) - top));
  for (const long double x : p) sum += x;
  for (long double& x : p) x /= sum;
  return p;
}

TEST(CompareLogits, AgreesWithTheDefinition) {
  for (const double scale : {0.1, 1.0, 5.0, 30.0}) {
    const auto dense = random_logits(1, 5000, scale);
    auto sparse = dense;
    const auto noise = random_logits(2, 5000, 0.3 * scale);
    for (std::size_t i = 0; i < sparse.size(); ++i) sparse[i] += noise[i];
    const auto p = softmax(dense);
    const auto q = softmax(sparse);
    long double kl = 0.0L;
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] > 0.0L) kl += p[i] * (std::log(p[i]) - std::log(q[i]));
    }
    for (const std::int32_t token : {0, 17, 4999}) {
      const TokenComparison c = compare_logits(dense, sparse, token);
      const auto near = [](double x) { return 2e-6 * std::max(1.0, std::abs(x)); };
      EXPECT_NEAR(c.kl, static_cast<double>(kl), near(static_cast<double>(kl)));
      const double nll = -static_cast<double>(std::log(q[token]));
      EXPECT_NEAR(c.nll_sparse, nll, near(nll));
      EXPECT_NEAR(c.nll_dense, -static_cast<double>(std::log(p[token])), near(nll));
      EXPECT_NEAR(c.delta_p, static_cast<double>(q[token] - p[token]), 1e-6);
      EXPECT_EQ(c.same_top, std::max_element(p.begin(), p.end()) - p.begin() ==
                                std::max_element(q.begin(), q.end()) - q.begin());
    }
  }
}

TEST(CompareLogits, EqualRowsGiveExactlyZero) {
  const auto row = random_logits(3, 1000, 4.0);
  const TokenComparison c = compare_logits(row, row, 5);
  EXPECT_EQ(c.kl, 0.0f);
  EXPECT_EQ(c.delta_p, 0.0f);
  EXPECT_EQ(c.nll_dense, c.nll_sparse);
  EXPECT_TRUE(c.same_top);
}

TEST(CompareLogits, LossesRoundAsTheDenseArmsDo) {
  const auto dense = random_logits(4, 3000, 4.0);
  const auto sparse = random_logits(5, 3000, 4.0);
  for (const std::int32_t token : {0, 1500, 2999}) {
    const TokenComparison c = compare_logits(dense, sparse, token);
    EXPECT_EQ(c.nll_dense, static_cast<float>(negative_log_likelihood(dense, token)));
    EXPECT_EQ(c.nll_sparse, static_cast<float>(negative_log_likelihood(sparse, token)));
  }
}

TEST(CompareLogits, ExcludedTokensAndBrokenRows) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  // p = (1/2, 1/2, 0), q = (1/4, 3/4, 0): KL = ln(2)/2 + ln(2/3)/2.
  const std::vector<float> p = {0.0f, 0.0f, -infinity};
  const std::vector<float> q = {0.0f, std::log(3.0f), -infinity};
  EXPECT_NEAR(compare_logits(p, q, 0).kl, 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3.0), 1e-7);
  // What the sparse run excludes and the dense one does not costs without bound.
  EXPECT_EQ(compare_logits({{0.0f, 0.0f}}, {{0.0f, -infinity}}, 0).kl, infinity);
  // A NaN never looks like agreement.
  EXPECT_TRUE(std::isnan(compare_logits({{0.0f, 1.0f}}, {{0.0f, nan}}, 0).kl));
  EXPECT_TRUE(std::isnan(compare_logits({{0.0f, nan}}, {{0.0f, 1.0f}}, 0).kl));
}

TEST(SummarizeDistribution, NumbersByHand) {
  TokenStream window;
  window.nll_dense = {1.0f, 2.0f, 3.0f, 2.0f};
  window.nll_sparse = {1.5f, 2.0f, 3.5f, 2.0f};
  window.kl = {0.0f, 0.1f, 0.2f, 0.3f};
  window.delta_p = {0.1f, -0.1f, 0.3f, 0.1f};
  window.same_top = {1, 1, 0, 1};
  const std::vector<TokenStream> windows = {window};
  const DistributionSummary s = summarize_distribution(windows);
  EXPECT_NEAR(s.ppl_dense, std::exp(2.0), 1e-9);
  EXPECT_NEAR(s.ppl_sparse, std::exp(2.25), 1e-9);
  EXPECT_NEAR(s.ln_ratio, 0.25, 1e-9);
  // Differences 0.5, 0, 0.5, 0: variance 4 * 0.0625 / 3.
  EXPECT_NEAR(s.ln_ratio_se, std::sqrt(0.25 / 3.0 / 4.0), 1e-9);
  EXPECT_FALSE(s.ln_ratio_interval.low.has_value());  // a single block cannot be resampled
  EXPECT_NEAR(s.kl_mean.mean, 0.15, 1e-7);
  EXPECT_NEAR(s.kl_max, 0.3, 1e-7);
  EXPECT_EQ(s.kl_min, 0.0);
  ASSERT_EQ(s.kl_percentiles.size(), 9u);
  EXPECT_EQ(s.kl_percentiles[4].first, 50.0);
  EXPECT_NEAR(s.kl_percentiles[4].second, 0.15, 1e-7);
  EXPECT_NEAR(s.same_top.mean, 0.75, 1e-12);
  EXPECT_NEAR(s.delta_p_mean, 0.1, 1e-7);
  EXPECT_NEAR(s.delta_p_rms, std::sqrt(0.12 / 4.0), 1e-7);
}

TEST(SummarizeDistribution, BlocksWidenTheIntervalOfDependentTokens) {
  // Runs of 64 equal differences: the effective number of samples is that of the blocks.
  TokenStream window;
  SplitMix64 rng(9);
  for (int block = 0; block < 100; ++block) {
    const double shift = 0.1 * rng.normal();
    for (int i = 0; i < 64; ++i) {
      window.nll_dense.push_back(2.0f);
      window.nll_sparse.push_back(static_cast<float>(2.0 + shift));
    }
  }
  const std::vector<TokenStream> windows = {window};
  const DistributionSummary s = summarize_distribution(windows);
  const double half = (*s.ln_ratio_interval.high - *s.ln_ratio_interval.low) / 2.0;
  EXPECT_NEAR(half, 1.96 * 8.0 * s.ln_ratio_se, 0.2 * half);
  EXPECT_TRUE(s.kl_percentiles.empty());
}

TEST(SummarizeDistribution, RefusesRaggedEmptyAndBrokenStreams) {
  EXPECT_THROW(summarize_distribution({}), std::invalid_argument);
  TokenStream window;
  window.nll_dense = {1.0f};
  window.nll_sparse = {1.0f, 2.0f};
  EXPECT_THROW(summarize_distribution(std::vector<TokenStream>{window}), std::invalid_argument);
  window.nll_sparse = {std::numeric_limits<float>::quiet_NaN()};
  EXPECT_THROW(summarize_distribution(std::vector<TokenStream>{window}), std::invalid_argument);
}

}  // namespace
}  // namespace sw
