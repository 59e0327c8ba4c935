#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/statistics.hpp"
#include "report/environment.hpp"

/// The report of `sw-eval score` as a value, and its two forms: JSON as results/score_schema.json
/// describes it, and a table. All scores of tasks are times 100, those of samples in [0, 1].
namespace sw {

struct ScoreBucket {
  std::string name;  ///< of lengths: "0-4k"
  std::int64_t samples = 0;
  std::optional<double> score;  ///< as the benchmark rounds it; none without samples
  Interval interval;
};

struct ScoreTask {
  std::string task;
  std::string sha256;   ///< of the file of predictions
  std::string skipped;  ///< why it has no score; then everything below is empty
  std::string metric;
  double score = 0.0;  ///< as the benchmark rounds it
  Interval interval;   ///< of the mean before rounding
  std::vector<ScoreBucket> buckets;
  std::vector<double> scores;  ///< of the samples, in the order of the file
};

struct ScoreReport {
  std::string created;               ///< UTC, ISO 8601
  std::vector<std::string> command;  ///< argv
  Environment environment;
  std::string benchmark;  ///< "longbench" or "longbench-e"
  std::vector<ScoreTask> tasks;
};

inline constexpr int kScoreReportVersion = 1;

/// Mean of the tasks that have a score, each with the same weight. Throws std::invalid_argument
/// when there are none.
Interval score_average(const ScoreReport& report);

/// Bytes that are not UTF-8 (of paths, say) become U+FFFD.
std::string score_json_text(const ScoreReport& report);

/// One row a task with its metric, number of samples, score and 95% interval, then the buckets of
/// lengths, the average, and why tasks were skipped.
std::string score_table(const ScoreReport& report);

}  // namespace sw
