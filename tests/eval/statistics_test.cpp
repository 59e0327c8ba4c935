// Statistics against values that follow from their definitions.
#include "eval/statistics.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

using Inputs = std::vector<std::vector<double>>;

TEST(Bootstrap, ConstantHasNoWidth) {
  const Interval interval = bootstrap_mean(Inputs{{0.25, 0.25, 0.25}});
  EXPECT_DOUBLE_EQ(interval.mean, 0.25);
  EXPECT_DOUBLE_EQ(*interval.low, 0.25);
  EXPECT_DOUBLE_EQ(*interval.high, 0.25);
}

TEST(Bootstrap, OneValueHasNoInterval) {
  const Interval interval = bootstrap_mean(Inputs{{0.5}});
  EXPECT_DOUBLE_EQ(interval.mean, 0.5);
  EXPECT_FALSE(interval.low.has_value());
  EXPECT_FALSE(interval.high.has_value());
}

TEST(Bootstrap, TwoValues) {
  // Means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the 95% interval is everything.
  const Interval interval = bootstrap_mean(Inputs{{0.0, 1.0}});
  EXPECT_DOUBLE_EQ(interval.mean, 0.5);
  EXPECT_DOUBLE_EQ(*interval.low, 0.0);
  EXPECT_DOUBLE_EQ(*interval.high, 1.0);
}

TEST(Bootstrap, ManyValuesAgreeWithTheNormalApproximation) {
  std::vector<double> values(400);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = double(i) / 400.0;
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / 400.0;
  double variance = 0.0;
  for (double x : values) variance += (x - mean) * (x - mean) / 400.0;
  const double half = 1.959964 * std::sqrt(variance / 400.0);
  const Interval interval = bootstrap_mean(Inputs{values});
  EXPECT_NEAR(interval.mean, mean, 1e-12);
  EXPECT_NEAR(*interval.low, mean - half, 0.05 * half);
  EXPECT_NEAR(*interval.high, mean + half, 0.05 * half);
}

TEST(Bootstrap, IsDeterministic) {
  const Inputs inputs{{0.1, 0.7, 0.3, 0.9, 0.37, 0.01, 0.53, 0.77, 0.62}};
  EXPECT_EQ(*bootstrap_mean(inputs).low, *bootstrap_mean(inputs).low);
  EXPECT_NE(*bootstrap_mean(inputs, 50, 1).low, *bootstrap_mean(inputs, 50, 3).low);
}

TEST(Bootstrap, InputsWeighTheSameAndAreResampled) {
  // Within an input all is equal, so that only the draw of inputs varies: as TwoValues.
  const Interval interval = bootstrap_mean(Inputs{{0.0, 0.0, 0.0, 0.0, 0.0}, {1.0}});
  EXPECT_DOUBLE_EQ(interval.mean, 0.5);
  EXPECT_DOUBLE_EQ(*interval.low, 0.0);
  EXPECT_DOUBLE_EQ(*interval.high, 1.0);
}

TEST(Bootstrap, RefusesNoValues) {
  EXPECT_THROW(bootstrap_mean(Inputs{}), std::invalid_argument);
  EXPECT_THROW(bootstrap_mean(Inputs{{1.0}, {}}), std::invalid_argument);
}

TEST(Quantile, InterpolatesBetweenOrderStatistics) {
  const std::vector<double> sorted = {1.0, 2.0, 4.0, 8.0};
  EXPECT_DOUBLE_EQ(quantile(sorted, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(quantile(sorted, 0.5), 3.0);
  EXPECT_DOUBLE_EQ(quantile(sorted, 0.75), 5.0);
  EXPECT_DOUBLE_EQ(quantile(sorted, 1.0), 8.0);
}

// Selection finds exactly what sorting finds, also where every sixteenth value, of which it takes a
// sample, is unlike the others.
TEST(PercentileInterval, IsThatOfTheSortedMeans) {
  SplitMix64 rng(5);
  const auto make = [&](std::size_t size, auto&& value) {
    std::vector<double> means(size);
    for (std::size_t i = 0; i < size; ++i) means[i] = value(i);
    return means;
  };
  for (const std::size_t size : {1u, 2u, 3u, 16u, 39u, 40u, 41u, 100u, 1000u, 4999u, 10000u}) {
    for (const std::vector<double>& means :
         {make(size, [&](std::size_t) { return rng.uniform(); }),
          make(size, [&](std::size_t) { return static_cast<double>(rng.below(3)); }),
          make(size, [](std::size_t i) { return static_cast<double>(i); }),
          make(size, [](std::size_t i) { return -static_cast<double>(i); }),
          make(size, [](std::size_t) { return 0.25; }),
          make(size, [&](std::size_t i) { return i % 16 == 0 ? -1.0 - rng.uniform() : 1.0; }),
          make(size, [&](std::size_t i) { return i % 16 == 0 ? 9.0 : rng.uniform(); })}) {
      Interval interval;
      set_percentile_interval(interval, means);
      std::vector<double> sorted = means;
      std::sort(sorted.begin(), sorted.end());
      EXPECT_EQ(*interval.low, quantile(sorted, (1.0 - kConfidence) / 2.0)) << size;
      EXPECT_EQ(*interval.high, quantile(sorted, (1.0 + kConfidence) / 2.0)) << size;
    }
  }
}

TEST(Median, AndItsDeviation) {
  EXPECT_DOUBLE_EQ(median({3.0, 1.0, 2.0}), 2.0);
  EXPECT_DOUBLE_EQ(median({4.0, 1.0, 2.0, 3.0}), 2.5);
  EXPECT_DOUBLE_EQ(median_absolute_deviation({1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0}), 1.0);
}

TEST(Bootstrap, TogetherIsOneByOne) {
  // The definition, one quantity at a time: draws in the order of inputs and units, then sorting.
  const auto naive = [](const Inputs& inputs) {
    SplitMix64 rng(kBootstrapSeed);
    std::vector<double> means;
    for (std::int64_t r = 0; r < kBootstrapResamples; ++r) {
      double total = 0.0;
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        const auto& values = inputs[inputs.size() == 1 ? 0 : rng.below(inputs.size())];
        double sum = 0.0;
        for (std::size_t u = 0; u < values.size(); ++u) sum += values[rng.below(values.size())];
        total += sum / static_cast<double>(values.size());
      }
      means.push_back(total / static_cast<double>(inputs.size()));
    }
    std::sort(means.begin(), means.end());
    return std::pair(quantile(means, (1.0 - kConfidence) / 2.0),
                     quantile(means, (1.0 + kConfidence) / 2.0));
  };
  SplitMix64 rng(3);
  for (const std::vector<std::size_t>& shape :
       {std::vector<std::size_t>{7}, std::vector<std::size_t>{3, 5, 2}}) {
    std::vector<Inputs> series(11);
    for (Inputs& inputs : series) {
      for (std::size_t units : shape) {
        auto& values = inputs.emplace_back();
        for (std::size_t u = 0; u < units; ++u) values.push_back(rng.uniform());
      }
    }
    const std::vector<Interval> together = bootstrap_means(series);
    ASSERT_EQ(together.size(), series.size());
    for (std::size_t s = 0; s < series.size(); ++s) {
      const auto [low, high] = naive(series[s]);
      EXPECT_EQ(*together[s].low, low);
      EXPECT_EQ(*together[s].high, high);
    }
  }
  EXPECT_THROW(bootstrap_means(std::vector<Inputs>{{{1.0}}, {{1.0, 2.0}}}), std::invalid_argument);
}

}  // namespace
}  // namespace sw
