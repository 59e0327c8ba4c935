#include "eval/paired.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

constexpr double kLevel = 0.05;
/// Normal quantiles at 0.975 and 0.8.
constexpr double kPowerFactor = 1.959963985 + 0.841621234;

void check(const PairedTask& task) {
  const auto finite = [](double x) { return std::isfinite(x); };
  if (task.dense.empty() || task.dense.size() != task.sparse.size() ||
      !std::all_of(task.dense.begin(), task.dense.end(), finite) ||
      !std::all_of(task.sparse.begin(), task.sparse.end(), finite)) {
    throw std::invalid_argument("paired comparison: '" + task.task +
                                "' needs as many finite scores of both arms, at least one");
  }
  const auto zero_or_one = [](double x) { return x == 0.0 || x == 1.0; };
  if (task.binary && !(std::all_of(task.dense.begin(), task.dense.end(), zero_or_one) &&
                       std::all_of(task.sparse.begin(), task.sparse.end(), zero_or_one))) {
    throw std::invalid_argument("paired comparison: '" + task.task +
                                "' is binary but has scores other than 0 and 1");
  }
}

std::vector<double> differences(const PairedTask& task) {
  std::vector<double> values(task.dense.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = task.sparse[i] - task.dense[i];
  return values;
}

/// Variance of the mean of `values`; 0 for one value.
double variance_of_mean(const std::vector<double>& values) {
  if (values.size() < 2) return 0.0;
  const double center = mean(values);
  double sum = 0.0;
  for (const double x : values) sum += (x - center) * (x - center);
  const auto n = static_cast<double>(values.size());
  return sum / (n - 1.0) / n;
}

/// Two-sided p of the mean of the tasks' mean differences under random signs of the differences.
double randomisation_test(const std::vector<std::vector<double>>& deltas, double observed,
                          std::int64_t resamples, SplitMix64& rng) {
  // Sums of the same values in another order may differ in the last bits.
  const double at_least = std::abs(observed) * (1.0 - 1e-12);
  std::int64_t extreme = 0;
  for (std::int64_t r = 0; r < resamples; ++r) {
    double value = 0.0;
    std::uint64_t bits = 0;
    int left = 0;
    for (const std::vector<double>& delta : deltas) {
      double sum = 0.0;
      for (const double x : delta) {
        if (left == 0) {
          bits = rng.next();
          left = 64;
        }
        sum += (bits & 1) != 0 ? x : -x;
        bits >>= 1;
        --left;
      }
      value += sum / static_cast<double>(delta.size());
    }
    if (std::abs(value) / static_cast<double>(deltas.size()) >= at_least) ++extreme;
  }
  return (1.0 + static_cast<double>(extreme)) / (1.0 + static_cast<double>(resamples));
}

/// The result for the mean over `tasks` of their mean difference, but for Holm and the verdict.
PairedResult compare(std::span<const PairedTask> tasks, std::int64_t resamples,
                     std::uint64_t seed) {
  PairedResult result;
  const auto count = static_cast<double>(tasks.size());
  std::vector<std::vector<double>> deltas;
  double variance = 0.0;
  std::size_t fewest = SIZE_MAX;  // samples of a task
  for (const PairedTask& task : tasks) {
    check(task);
    deltas.push_back(differences(task));
    result.samples += std::ssize(task.dense);
    result.dense_mean += mean(task.dense) / count;
    result.sparse_mean += mean(task.sparse) / count;
    result.difference.mean += mean(deltas.back()) / count;
    variance += variance_of_mean(deltas.back()) / (count * count);
    fewest = std::min(fewest, task.dense.size());
  }
  SplitMix64 rng(seed);
  if (fewest < 2) {
    result.p_value = randomisation_test(deltas, result.difference.mean, resamples, rng);
    return result;
  }
  const double unseen = 3.0 / static_cast<double>(fewest) / count;  // rule of three
  result.minimum_detectable = std::max(kPowerFactor * std::sqrt(variance), std::min(unseen, 1.0));

  std::vector<double> means(static_cast<std::size_t>(resamples));
  for (double& value : means) {
    value = 0.0;
    for (const std::vector<double>& delta : deltas) {
      double sum = 0.0;
      for (std::size_t i = 0; i < delta.size(); ++i) sum += delta[rng.below(delta.size())];
      value += sum / static_cast<double>(delta.size()) / count;
    }
  }
  set_percentile_interval(result.difference, means);
  result.p_value = randomisation_test(deltas, result.difference.mean, resamples, rng);
  return result;
}

void judge(PairedResult& result, double margin) {
  result.beats_dense = false;
  if (result.p_holm < kLevel && result.difference.mean != 0.0) {
    result.beats_dense = result.difference.mean > 0.0;
    result.verdict = result.beats_dense ? ModelVerdict::kBetter : ModelVerdict::kWorse;
    return;
  }
  const bool within = result.difference.low && *result.difference.low >= -margin &&
                      *result.difference.high <= margin && result.minimum_detectable <= margin;
  result.verdict = within ? ModelVerdict::kTied : ModelVerdict::kUnderpowered;
}

}  // namespace

const char* verdict_name(ModelVerdict verdict) {
  switch (verdict) {
    case ModelVerdict::kBetter:
      return "better";
    case ModelVerdict::kWorse:
      return "worse";
    case ModelVerdict::kTied:
      return "tied";
    default:
      return "underpowered";
  }
}

double mcnemar_exact(std::int64_t only_dense, std::int64_t only_sparse) {
  if (only_dense < 0 || only_sparse < 0) throw std::invalid_argument("McNemar: a count below 0");
  const std::int64_t n = only_dense + only_sparse;
  if (n == 0) return 1.0;
  const std::int64_t k = std::min(only_dense, only_sparse);
  // Sum of the binomial terms 0..k of a fair coin, by logarithms so that large n does not overflow.
  const double total = static_cast<double>(n);
  double tail = 0.0;
  for (std::int64_t i = 0; i <= k; ++i) {
    const auto x = static_cast<double>(i);
    tail += std::exp(std::lgamma(total + 1.0) - std::lgamma(x + 1.0) -
                     std::lgamma(total - x + 1.0) - total * std::log(2.0));
  }
  return std::min(1.0, 2.0 * tail);
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p[a] < p[b]; });
  std::vector<double> adjusted(p.size());
  double largest = 0.0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const double factor = static_cast<double>(p.size() - rank);
    largest = std::max(largest, std::min(1.0, factor * p[order[rank]]));
    adjusted[order[rank]] = largest;
  }
  return adjusted;
}

std::vector<PairedResult> compare_tasks(std::span<const PairedTask> tasks, double margin,
                                        std::int64_t resamples, std::uint64_t seed) {
  std::vector<PairedResult> results;
  std::vector<double> p;
  for (const PairedTask& task : tasks) {
    PairedResult result = compare({&task, 1}, resamples, seed);
    if (task.binary) {
      std::int64_t only_dense = 0;
      std::int64_t only_sparse = 0;
      for (std::size_t i = 0; i < task.dense.size(); ++i) {
        if (task.dense[i] > task.sparse[i]) ++only_dense;
        if (task.dense[i] < task.sparse[i]) ++only_sparse;
      }
      result.mcnemar = mcnemar_exact(only_dense, only_sparse);
      result.p_value = *result.mcnemar;
    }
    p.push_back(result.p_value);
    results.push_back(result);
  }
  const std::vector<double> adjusted = holm(p);
  for (std::size_t i = 0; i < results.size(); ++i) {
    results[i].p_holm = adjusted[i];
    judge(results[i], margin);
  }
  return results;
}

PairedResult compare_stratified(std::span<const PairedTask> tasks, double margin,
                                std::int64_t resamples, std::uint64_t seed) {
  if (tasks.empty()) throw std::invalid_argument("paired comparison: no tasks");
  PairedResult result = compare(tasks, resamples, seed);
  result.p_holm = result.p_value;
  judge(result, margin);
  return result;
}

}  // namespace sw
