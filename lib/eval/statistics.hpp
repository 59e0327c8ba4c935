#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

/// Means with intervals, and robust timings (metrics.md, Statistics and Latency). Deterministic:
/// the only randomness is a seeded SplitMix64.
namespace sw {

inline constexpr std::int64_t kBootstrapResamples = 10000;
inline constexpr double kConfidence = 0.95;
inline constexpr std::uint64_t kBootstrapSeed = 20260207;

struct Interval {
  double mean = 0.0;
  std::optional<double> low;  ///< none when there are fewer than two units to resample
  std::optional<double> high;
};

/// Mean over the inputs of the mean over the units of each input, with its 95% percentile bootstrap
/// interval. Each resample draws inputs with replacement, and within each drawn input its units
/// with replacement; with one input only its units are drawn. `inputs` holds the values of the
/// units (query blocks or decode steps), none empty. Throws std::invalid_argument on no values.
Interval bootstrap_mean(std::span<const std::vector<double>> inputs,
                        std::int64_t resamples = kBootstrapResamples,
                        std::uint64_t seed = kBootstrapSeed);

/// The same for several quantities that were measured on the same units: `series` holds the inputs
/// of each, all of one shape. Each interval is exactly that of bootstrap_mean, but the units are
/// drawn once for all. Throws std::invalid_argument on no values and on different shapes.
std::vector<Interval> bootstrap_means(std::span<const std::vector<std::vector<double>>> series,
                                      std::int64_t resamples = kBootstrapResamples,
                                      std::uint64_t seed = kBootstrapSeed);

/// Sum over number; `values` is not empty.
double mean(std::span<const double> values);

/// Sets low and high of `interval` to the 95% percentile interval of resampled means.
void set_percentile_interval(Interval& interval, std::span<const double> means);

/// Quantile in [0, 1] by linear interpolation between order statistics (numpy's default). `sorted`
/// ascends and is not empty.
double quantile(std::span<const double> sorted, double q);

double median(std::vector<double> values);
/// Median of the absolute deviations from the median.
double median_absolute_deviation(const std::vector<double>& values);

}  // namespace sw
