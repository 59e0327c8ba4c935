#include "eval/statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
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

/// Appends what one resample draws from inputs of these sizes: for each place an input, and then as
/// many of its units as it has.
void draw(SplitMix64& rng, const std::vector<std::size_t>& sizes,
          std::vector<std::uint32_t>& draws) {
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::size_t input = sizes.size() == 1 ? 0 : rng.below(sizes.size());
    draws.push_back(static_cast<std::uint32_t>(input));
    for (std::size_t u = 0; u < sizes[input]; ++u) {
      draws.push_back(static_cast<std::uint32_t>(rng.below(sizes[input])));
    }
  }
}

/// All draws of a bootstrap, kept while the shape and the seed stay the same: the cells of a report
/// are drawn alike, and drawing takes longer than summing.
struct KeptDraws {
  std::vector<std::size_t> sizes;
  std::int64_t resamples = 0;
  std::uint64_t seed = 0;
  std::vector<std::uint32_t> draws;

  void prepare(const std::vector<std::size_t>& new_sizes, std::int64_t count,
               std::uint64_t new_seed) {
    if (sizes == new_sizes && resamples == count && seed == new_seed) return;
    sizes = new_sizes;
    resamples = count;
    seed = new_seed;
    draws.clear();
    SplitMix64 rng(seed);
    for (std::int64_t r = 0; r < count; ++r) draw(rng, sizes, draws);
  }
};

/// Resampled means of up to kLanes series of one shape, [lane][resample].
std::array<std::vector<double>, kLanes> resample(
    std::span<const std::vector<std::vector<double>>> series, std::int64_t resamples,
    std::uint64_t seed) {
  const std::size_t inputs = series.front().size();
  std::vector<std::size_t> sizes;
  std::vector<std::vector<Lanes>> units(inputs);  // the values of a unit side by side
  std::size_t most = 0;
  for (std::size_t i = 0; i < inputs; ++i) {
    sizes.push_back(series.front()[i].size());
    most = std::max(most, sizes.back() + 1);
    units[i].resize(sizes.back());
    for (std::size_t lane = 0; lane < series.size(); ++lane) {
      for (std::size_t u = 0; u < units[i].size(); ++u) units[i][u][lane] = series[lane][i][u];
    }
  }
  std::array<std::vector<double>, kLanes> means;
  for (std::size_t lane = 0; lane < series.size(); ++lane) {
    means[lane].resize(static_cast<std::size_t>(resamples));
  }
  constexpr std::size_t kMostKept = std::size_t{1} << 23;  // 32 MiB a thread
  thread_local KeptDraws kept;
  const bool keep = inputs * most <= kMostKept / static_cast<std::size_t>(resamples);
  if (keep) kept.prepare(sizes, resamples, seed);
  SplitMix64 rng(seed);
  std::vector<std::uint32_t> drawn;
  const std::uint32_t* next = kept.draws.data();
  for (std::size_t r = 0; r < static_cast<std::size_t>(resamples); ++r) {
    if (!keep) {
      drawn.clear();
      draw(rng, sizes, drawn);
      next = drawn.data();
    }
    Lanes total{};
    for (std::size_t i = 0; i < inputs; ++i) {
      const std::vector<Lanes>& values = units[*next++];
      Lanes sum{};
      for (std::size_t u = 0; u < values.size(); ++u) {
        const Lanes& unit = values[*next++];
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
