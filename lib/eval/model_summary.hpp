#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/distribution.hpp"
#include "eval/paired.hpp"
#include "eval/run_entry.hpp"
#include "eval/statistics.hpp"
#include "eval/summary.hpp"

/// The numbers of a model evaluation, computed from journal entries alone.
namespace sw {

/// A task of the run, as its report needs it.
struct TaskInfo {
  std::string name;    ///< Task::name()
  std::string metric;  ///< of the scorer; "perplexity"
  bool binary = false;
};

/// An arm of the run, as its report needs it.
struct ArmInfo {
  std::string label;   ///< Arm::label()
  std::string method;  ///< canonical SPEC
  std::string name;    ///< of the policy
  std::optional<double> density;
};

/// Scores of the samples of one part of a task.
struct GroupScore {
  std::string group;
  std::int64_t samples = 0;
  double mean = 0.0;  ///< in [0, 1]
};

/// Where greedy replies leave the dense ones.
struct Divergence {
  std::int64_t replies = 0;
  std::int64_t identical = 0;
  std::optional<double> median_token;  ///< first differing token, over those that differ
};

/// One method at one density on one task.
struct ModelCell {
  std::size_t task = 0;
  std::size_t arm = 0;
  std::int64_t samples = 0;    ///< replies or windows; 0: nothing was run, all else is empty
  std::string failure;         ///< of the first sample that could not be run; samples is 0 then
  std::int64_t truncated = 0;  ///< prompts that lost a part
  DensitySummary density;
  std::vector<double> density_per_layer;  ///< prefill
  // Tasks with replies.
  std::optional<Interval> score;  ///< in [0, 1]
  std::vector<GroupScore> groups;
  std::optional<Divergence> divergence;  ///< from the dense replies
  std::optional<PairedResult> paired;    ///< against dense
  // Texts.
  std::optional<double> perplexity;
  std::optional<DistributionSummary> distribution;  ///< against dense
  bool has_kl = false;
  std::vector<double> hidden_error;  ///< a layer, mean over windows; empty without --kl
  // Raw samples, one an entry.
  std::vector<double> prefill_seconds;
  std::vector<double> decode_seconds_per_token;
  std::vector<const RunEntry*> entries;  ///< in the order of the samples
};

/// One arm over all tasks with replies, against dense.
struct ArmOverall {
  std::size_t arm = 0;
  PairedResult paired;
};

struct ModelSummary {
  std::vector<ModelCell> cells;     ///< tasks outside, arms inside
  std::vector<ArmOverall> overall;  ///< arms other than dense, when there are tasks with replies
};

/// Largest difference of scores, in [0, 1], that still counts as a tie: two points of a hundred.
inline constexpr double kTieMargin = 0.02;

/// Throws Error(kInput) when two arms of a sample had different prompts, stop sets or templates:
/// their scores cannot be compared (metrics.md, protocol guard). `entries` have to outlive the
/// result.
ModelSummary summarize_model(std::span<const RunEntry> entries, std::span<const TaskInfo> tasks,
                             std::span<const ArmInfo> arms);

}  // namespace sw
