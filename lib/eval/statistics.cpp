#include "eval/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void set_percentile_interval(Interval& interval, std::vector<double> means) {
  std::sort(means.begin(), means.end());
  interval.low = quantile(means, (1.0 - kConfidence) / 2.0);
  interval.high = quantile(means, (1.0 + kConfidence) / 2.0);
}

Interval bootstrap_mean(std::span<const std::vector<double>> inputs, std::int64_t resamples,
                        std::uint64_t seed) {
  if (inputs.empty()) throw std::invalid_argument("bootstrap_mean: no inputs");
  Interval interval;
  std::size_t units = 0;
  for (const auto& values : inputs) {
    if (values.empty()) throw std::invalid_argument("bootstrap_mean: an input without values");
    interval.mean += mean(values) / static_cast<double>(inputs.size());
    units += values.size();
  }
  if (units < 2 || !std::isfinite(interval.mean)) return interval;

  std::vector<double> means(static_cast<std::size_t>(resamples));
  SplitMix64 rng(seed);
  for (double& resampled : means) {
    double total = 0.0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto& values = inputs[inputs.size() == 1 ? 0 : rng.below(inputs.size())];
      double sum = 0.0;
      for (std::size_t u = 0; u < values.size(); ++u) sum += values[rng.below(values.size())];
      total += sum / static_cast<double>(values.size());
    }
    resampled = total / static_cast<double>(inputs.size());
  }
  set_percentile_interval(interval, std::move(means));
  return interval;
}

double quantile(std::span<const double> sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], position - static_cast<double>(below));
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return quantile(values, 0.5);
}

double median_absolute_deviation(const std::vector<double>& values) {
  const double center = median(values);
  std::vector<double> deviations;
  deviations.reserve(values.size());
  for (double value : values) deviations.push_back(std::abs(value - center));
  return median(std::move(deviations));
}

}  // namespace sw
