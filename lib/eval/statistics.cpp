#include "eval/statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

/// Quantities that are resampled together.
constexpr std::size_t kLanes = 8;
using Lanes = std::array<double, kLanes>;

/// An order statistic and the next one, and with them the quantile at q; `values` is reordered so
/// that everything from `begin` on is at least what stood before it.
double select_quantile(std::vector<double>& values, std::size_t begin, double q) {
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(below);
  std::nth_element(values.begin() + static_cast<std::ptrdiff_t>(begin), at, values.end());
  const double above = at + 1 == values.end() ? *at : *std::min_element(at + 1, values.end());
  return std::lerp(*at, above, position - static_cast<double>(below));
}

/// Resampled means of up to kLanes series of one shape, [lane][resample].
std::array<std::vector<double>, kLanes> resample(
    std::span<const std::vector<std::vector<double>>> series, std::int64_t resamples,
    std::uint64_t seed) {
  const std::size_t inputs = series.front().size();
  std::vector<std::vector<Lanes>> units(inputs);  // the values of a unit side by side
  for (std::size_t i = 0; i < inputs; ++i) {
    units[i].resize(series.front()[i].size());
    for (std::size_t lane = 0; lane < series.size(); ++lane) {
      for (std::size_t u = 0; u < units[i].size(); ++u) units[i][u][lane] = series[lane][i][u];
    }
  }
  std::array<std::vector<double>, kLanes> means;
  for (std::size_t lane = 0; lane < series.size(); ++lane) {
    means[lane].resize(static_cast<std::size_t>(resamples));
  }
  SplitMix64 rng(seed);
  for (std::size_t r = 0; r < static_cast<std::size_t>(resamples); ++r) {
    Lanes total{};
    for (std::size_t i = 0; i < inputs; ++i) {
      const auto& values = units[inputs == 1 ? 0 : rng.below(inputs)];
      Lanes sum{};
      for (std::size_t u = 0; u < values.size(); ++u) {
        const Lanes& unit = values[rng.below(values.size())];
        for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += unit[lane];
      }
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        total[lane] += sum[lane] / static_cast<double>(values.size());
      }
    }
    for (std::size_t lane = 0; lane < series.size(); ++lane) {
      means[lane][r] = total[lane] / static_cast<double>(inputs);
    }
  }
  return means;
}

}  // namespace

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void set_percentile_interval(Interval& interval, std::vector<double> means) {
  constexpr double kTail = (1.0 - kConfidence) / 2.0;
  interval.low = select_quantile(means, 0, kTail);
  const auto sorted = static_cast<std::size_t>(kTail * static_cast<double>(means.size() - 1));
  interval.high = select_quantile(means, sorted, (1.0 + kConfidence) / 2.0);
}

std::vector<Interval> bootstrap_means(std::span<const std::vector<std::vector<double>>> series,
                                      std::int64_t resamples, std::uint64_t seed) {
  std::vector<Interval> intervals;
  std::size_t units = 0;
  for (const auto& inputs : series) {
    if (inputs.empty()) throw std::invalid_argument("bootstrap_means: no inputs");
    units = 0;
    Interval& interval = intervals.emplace_back();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].empty() || inputs.size() != series.front().size() ||
          inputs[i].size() != series.front()[i].size()) {
        throw std::invalid_argument("bootstrap_means: an input without values, or other shapes");
      }
      interval.mean += mean(inputs[i]) / static_cast<double>(inputs.size());
      units += inputs[i].size();
    }
  }
  if (units < 2) return intervals;
  for (std::size_t first = 0; first < series.size(); first += kLanes) {
    const std::size_t count = std::min(kLanes, series.size() - first);
    auto means = resample(series.subspan(first, count), resamples, seed);
    for (std::size_t lane = 0; lane < count; ++lane) {
      Interval& interval = intervals[first + lane];
      if (std::isfinite(interval.mean)) set_percentile_interval(interval, std::move(means[lane]));
    }
  }
  return intervals;
}

Interval bootstrap_mean(std::span<const std::vector<double>> inputs, std::int64_t resamples,
                        std::uint64_t seed) {
  const std::vector<std::vector<double>> series(inputs.begin(), inputs.end());
  return bootstrap_means({&series, 1}, resamples, seed).front();
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
