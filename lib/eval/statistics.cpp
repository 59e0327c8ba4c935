#include "eval/statistics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "core/rng.hpp"

namespace sw {
namespace {

/// Quantities that are resampled together.
constexpr std::size_t kLanes = 8;
using Lanes = std::array<double, kLanes>;

/// The values of both ends of a distribution: at least the `count` smallest and the `count`
/// largest.
struct Ends {
  std::vector<double> low;
  std::vector<double> high;
};

/// A sample says outside of which bounds the wanted values lie; then one pass finds them, without
/// branches, which nobody could predict.
Ends select_ends(std::span<const double> values, std::size_t count) {
  constexpr std::size_t kStride = 16;
  Ends ends;
  // Of the sample, twice as many as the wanted ones would be, and some for small numbers.
  const std::size_t rank = 2 * count / kStride + 16;
  std::vector<double> sample;
  for (std::size_t i = 0; i < values.size(); i += kStride) sample.push_back(values[i]);
  if (sample.size() > 2 * rank) {
    const auto low = sample.begin() + static_cast<std::ptrdiff_t>(rank);
    const auto high = sample.end() - 1 - static_cast<std::ptrdiff_t>(rank);
    std::nth_element(sample.begin(), low, sample.end());
    std::nth_element(low, high, sample.end());
    const double most = *low;
    const double least = *high;
    thread_local std::vector<double> lows, highs;
    if (lows.size() < values.size()) lows.resize(values.size());
    if (highs.size() < values.size()) highs.resize(values.size());
    std::size_t num_lows = 0;
    std::size_t num_highs = 0;
    for (const double value : values) {
      lows[num_lows] = value;
      num_lows += value <= most ? 1 : 0;
      highs[num_highs] = value;
      num_highs += value >= least ? 1 : 0;
    }
    ends.low.assign(lows.data(), lows.data() + num_lows);
    ends.high.assign(highs.data(), highs.data() + num_highs);
  }
  // The sample misled, or there are too few values for one.
  if (ends.low.size() < count) ends.low.assign(values.begin(), values.end());
  if (ends.high.size() < count) ends.high.assign(values.begin(), values.end());
  return ends;
}

/// The value of rank `k`, and that of the next one; the last one is its own next.
template <class Less>
std::pair<double, double> at_rank(std::vector<double>& values, std::size_t k, Less less) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(values.begin(), at, values.end(), less);
  return {*at, at + 1 == values.end() ? *at : *std::min_element(at + 1, values.end(), less)};
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
    constexpr std::size_t kTogether = 2;  // more do not fit into the registers
    const std::vector<Lanes>& values = units.front();
    while (r + kTogether <= static_cast<std::size_t>(resamples)) {
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
  const std::size_t above_high = last - std::min(under_high + 1, last);
  Ends ends = select_ends(means, std::min(std::max(under_low, above_high) + 2, means.size()));
  const auto [a, b] = at_rank(ends.low, under_low, std::less<>());
  interval.low = std::lerp(a, b, low - static_cast<double>(under_low));
  const auto [d, c] = at_rank(ends.high, above_high, std::greater<>());
  interval.high = std::lerp(c, d, high - static_cast<double>(under_high));
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
