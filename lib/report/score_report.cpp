#include "report/score_report.hpp"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "report/json_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

Json nullable(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json interval_json(const Interval& interval) {
  return {
      {"mean", interval.mean}, {"low", nullable(interval.low)}, {"high", nullable(interval.high)}};
}

Json task_json(const ScoreTask& task) {
  if (!task.skipped.empty()) {
    return {{"task", task.task}, {"status", "skipped"}, {"reason", task.skipped}};
  }
  Json buckets = Json::array();
  for (const ScoreBucket& bucket : task.buckets) {
    buckets.push_back({{"bucket", bucket.name},
                       {"samples", bucket.samples},
                       {"score", nullable(bucket.score)},
                       {"interval", bucket.score ? interval_json(bucket.interval) : Json()}});
  }
  return {{"task", task.task},     {"status", "ok"},
          {"metric", task.metric}, {"samples", task.scores.size()},
          {"score", task.score},   {"interval", interval_json(task.interval)},
          {"buckets", buckets},    {"scores", task.scores}};
}

std::string two_digits(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

std::string interval_text(const Interval& interval) {
  if (!interval.low) return "-";
  return "[" + two_digits(*interval.low) + ", " + two_digits(*interval.high) + "]";
}

using Row = std::vector<std::string>;

/// Columns padded to their widest entry: task and metric to the left, numbers to the right.
std::string aligned(const std::vector<Row>& rows) {
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const Row& row : rows) {
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - row[c].size(), ' ');
      if (c > 0) line += "  ";
      line += c < 2 ? row[c] + padding : padding + row[c];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

}  // namespace

Interval score_average(const ScoreReport& report) {
  std::vector<std::vector<double>> tasks;
  for (const ScoreTask& task : report.tasks) {
    if (!task.skipped.empty()) continue;
    std::vector<double>& scores = tasks.emplace_back(task.scores);
    for (double& score : scores) score *= 100;
  }
  return bootstrap_mean(tasks);
}

std::string score_json_text(const ScoreReport& report) {
  Json tasks = Json::array();
  for (const ScoreTask& task : report.tasks) tasks.push_back(task_json(task));
  const Json json = {{"schema_version", kScoreReportVersion},
                     {"created", report.created},
                     {"command", report.command},
                     {"environment", to_json(report.environment)},
                     {"benchmark", report.benchmark},
                     {"statistics",
                      {{"unit", "a task: samples; the average: tasks, then samples"},
                       {"interval", "percentile bootstrap"},
                       {"confidence", kConfidence},
                       {"resamples", kBootstrapResamples},
                       {"seed", kBootstrapSeed}}},
                     {"tasks", tasks},
                     {"average", interval_json(score_average(report))}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string score_table(const ScoreReport& report) {
  std::vector<Row> rows = {{"task", "metric", "samples", "score", "95% interval"}};
  std::string skipped;
  for (const ScoreTask& task : report.tasks) {
    if (!task.skipped.empty()) {
      skipped += "skipped: " + task.task + ": " + task.skipped + "\n";
      continue;
    }
    rows.push_back({task.task, task.metric, std::to_string(task.scores.size()),
                    two_digits(task.score), interval_text(task.interval)});
    for (const ScoreBucket& bucket : task.buckets) {
      rows.push_back({"  " + bucket.name, "", std::to_string(bucket.samples),
                      bucket.score ? two_digits(*bucket.score) : "-",
                      interval_text(bucket.interval)});
    }
  }
  const Interval average = score_average(report);
  rows.push_back({"average", "", "", two_digits(average.mean), interval_text(average)});
  return aligned(rows) + skipped +
         "Scores are times 100. Intervals: bootstrap over samples; of the average, over tasks and "
         "samples.\n";
}

}  // namespace sw
