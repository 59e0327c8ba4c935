#include "eval/statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

/// Quantities that are resampled together.
constexpr std::size_t kLanes = 8;
using Lanes = std::array<double, kLanes>;

/// The `count` smallest of `values` by `less`, in order, and perhaps more after them. Most values
/// are passed over once: a sample of them says below which one the wanted ones lie.
template <class Less>
std::vector<double> smallest(std::span<const double> values, std::size_t count, Less less) {
  constexpr std::size_t kStride = 16;
  std::vector<double> found;
  if (values.size() / kStride > 2 * count / kStride + 32) {
    for (std::size_t i = 0; i < values.size(); i += kStride) found.push_back(values[i]);
    // Of the sample, twice as many as the wanted ones would be, and some for small numbers.
    const auto at = found.begin() + static_cast<std::ptrdiff_t>(2 * count / kStride + 16);
    std::nth_element(found.begin(), at, found.end(), less);
    const double limit = *at;
    found.resize(values.size());
    std::size_t size = 0;
    for (double value : values) {
      found[size] = value;
      size += less(limit, value) ? 0 : 1;
    }
    found.resize(size);
  }
  // The sample misled, or there are too few values for one.
  if (found.size() < count) found.assign(values.begin(), values.end());
  std::partial_sort(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end(),
                    less);
  return found;
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

/// Adds up units that N resamples drew from one input, each by itself in the order of its draws.
/// Side by side, because one sum alone waits for each addition.
template <std::size_t N>
std::array<Lanes, N> sum_units(const std::vector<Lanes>& values,
                               const std::array<const std::uint32_t*, N>& draws) {
  std::array<Lanes, N> sums{};
  for (std::size_t u = 0; u < values.size(); ++u) {
    for (std::size_t n = 0; n < N; ++n) {
      const Lanes& unit = values[draws[n][u]];
      for (std::size_t lane = 0; lane < kLanes; ++lane) sums[n][lane] += unit[lane];
    }
  }
  return sums;
}

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
  std::size_t r = 0;
  const auto set_means = [&](const Lanes& total) {
    for (std::size_t lane = 0; lane < series.size(); ++lane) {
      means[lane][r] = total[lane] / static_cast<double>(inputs);
    }
    ++r;
  };
  if (keep && inputs == 1) {
    constexpr std::size_t kTogether = 4;
    const std::vector<Lanes>& values = units.front();
    for (; r + kTogether <= static_cast<std::size_t>(resamples);) {
      std::array<const std::uint32_t*, kTogether> draws;
      for (std::size_t n = 0; n < kTogether; ++n, next += values.size() + 1) draws[n] = next + 1;
      for (Lanes& sum : sum_units<kTogether>(values, draws)) {
        for (double& x : sum) x /= static_cast<double>(values.size());
        set_means(sum);
      }
    }
  }
  while (r < static_cast<std::size_t>(resamples)) {
    if (!keep) {
      drawn.clear();
      draw(rng, sizes, drawn);
      next = drawn.data();
    }
    Lanes total{};
    for (std::size_t i = 0; i < inputs; ++i) {
      const std::vector<Lanes>& values = units[*next++];
      const Lanes sum = sum_units<1>(values, {next}).front();
      next += values.size();
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        total[lane] += sum[lane] / static_cast<double>(values.size());
      }
    }
    set_means(total);
  }
  return means;
}

}  // namespace

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void set_percentile_interval(Interval& interval, std::span<const double> means) {
  // Linear interpolation between order statistics, as quantile() below has it.
  const std::size_t last = means.size() - 1;
  const double low = (1.0 - kConfidence) / 2.0 * static_cast<double>(last);
  const double high = (1.0 + kConfidence) / 2.0 * static_cast<double>(last);
  const auto under_low = static_cast<std::size_t>(low);
  const auto under_high = static_cast<std::size_t>(high);
  const std::size_t over_low = std::min(under_low + 1, last);
  const std::size_t over_high = std::min(under_high + 1, last);
  const std::vector<double> bottom = smallest(means, over_low + 1, std::less<>());
  interval.low =
      std::lerp(bottom[under_low], bottom[over_low], low - static_cast<double>(under_low));
  const std::vector<double> top = smallest(means, last - under_high + 1, std::greater<>());
  interval.high = std::lerp(top[last - under_high], top[last - over_high],
                            high - static_cast<double>(under_high));
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
    const auto means = resample(series.subspan(first, count), resamples, seed);
    for (std::size_t lane = 0; lane < count; ++lane) {
      Interval& interval = intervals[first + lane];
      if (std::isfinite(interval.mean)) set_percentile_interval(interval, means[lane]);
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
