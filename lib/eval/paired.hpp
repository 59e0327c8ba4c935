#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/statistics.hpp"

/// A sparse arm against the dense one, sample by sample (metrics.md, Statistics). Scores are in
/// [0, 1]. Deterministic: the only randomness is a seeded SplitMix64.
namespace sw {

/// Scores of the samples of one task, in the same order for both arms.
struct PairedTask {
  std::string task;
  bool binary = false;  ///< scores are 0 or 1
  std::vector<double> dense;
  std::vector<double> sparse;
};

enum class ModelVerdict { kBetter, kWorse, kTied, kUnderpowered };
/// "better", "worse", "tied" or "underpowered".
const char* verdict_name(ModelVerdict verdict);

struct PairedResult {
  std::int64_t samples = 0;
  double dense_mean = 0.0;
  double sparse_mean = 0.0;
  /// sparse - dense: 95% percentile interval of the paired bootstrap. Without ends when a task has
  /// fewer than two samples, because nothing is known of its spread.
  Interval difference;
  /// Two-sided. Of the 0/1 scores of one task McNemar's exact test, else the paired randomisation
  /// test (Fisher 1935): the share of resamples, each with random signs of the samples'
  /// differences, whose mean difference is at least as far from 0; one is added to counts and
  /// resamples so that it is never 0. Unlike a level taken from the bootstrap it stays honest for
  /// few samples.
  double p_value = 1.0;
  double p_holm = 1.0;            ///< after Holm's correction across the tasks given together
  std::optional<double> mcnemar;  ///< of 0/1 scores
  /// Smallest difference found with 80% power at a two-sided level of 5%: (1.95996 + 0.84162)
  /// standard errors of the mean difference, and at least 3 / samples, because that many samples
  /// without a difference still leave a share of 3 / samples possible (rule of three). Over T tasks
  /// of n_t samples that is 3 / (T min n_t), the largest mean of shares p_t with sum(n_t p_t) <= 3.
  /// 1 when a task has fewer than two samples.
  double minimum_detectable = 1.0;
  /// Better or worse: p_holm < 0.05. Tied: not so, and both the interval and the minimum detectable
  /// effect lie within the margin. Underpowered: all else, so that nothing can be said.
  ModelVerdict verdict = ModelVerdict::kUnderpowered;
  bool beats_dense = false;  ///< better: to be checked for a fault of the protocol
};

/// One result a task. `margin`: the difference that counts as none. Throws std::invalid_argument on
/// tasks without samples, of different lengths, with values that are not finite, or called binary
/// with scores other than 0 and 1.
std::vector<PairedResult> compare_tasks(std::span<const PairedTask> tasks, double margin,
                                        std::int64_t resamples = kBootstrapResamples,
                                        std::uint64_t seed = kBootstrapSeed);

/// All tasks together: the mean of the tasks' mean differences, samples resampled within each task
/// (stratified). `samples` is their sum; there is no McNemar test and no correction.
PairedResult compare_stratified(std::span<const PairedTask> tasks, double margin,
                                std::int64_t resamples = kBootstrapResamples,
                                std::uint64_t seed = kBootstrapSeed);

/// McNemar's exact test (1947; binomial form): two-sided p of a fair coin over the pairs where only
/// one of the two arms is right. 1 when there are none. Throws std::invalid_argument on counts
/// below 0.
double mcnemar_exact(std::int64_t only_dense, std::int64_t only_sparse);

/// Holm's step-down adjusted p-values (1979), in the order given.
std::vector<double> holm(std::span<const double> p);

}  // namespace sw
