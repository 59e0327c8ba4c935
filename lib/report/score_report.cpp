#include "report/score_report.hpp"

#include <nlohmann/json.hpp>

#include "report/columns.hpp"
#include "report/json_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

Json task_json(const ScoreTask& task) {
  if (!task.skipped.empty()) {
    return {{"task", task.task},
            {"sha256", task.sha256},
            {"status", "skipped"},
            {"reason", task.skipped}};
  }
  Json buckets = Json::array();
  for (const ScoreBucket& bucket : task.buckets) {
    buckets.push_back({{"bucket", bucket.name},
                       {"samples", bucket.samples},
                       {"score", nullable(bucket.score)},
                       {"interval", bucket.score ? to_json(bucket.interval) : Json()}});
  }
  return {{"task", task.task},
          {"sha256", task.sha256},
          {"status", "ok"},
          {"metric", task.metric},
          {"samples", task.scores.size()},
          {"score", task.score},
          {"interval", to_json(task.interval)},
          {"buckets", buckets},
          {"scores", task.scores}};
}

std::string interval_text(const Interval& interval) {
  if (!interval.low) return "-";
  return "[" + fixed(*interval.low, 2) + ", " + fixed(*interval.high, 2) + "]";
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
                     {"average", to_json(score_average(report))}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string score_table(const ScoreReport& report) {
  Columns columns({"task", "metric", "samples", "score", "95% interval"}, 2);
  std::string skipped;
  for (const ScoreTask& task : report.tasks) {
    if (!task.skipped.empty()) {
      skipped += "skipped: " + task.task + ": " + task.skipped + "\n";
      continue;
    }
    columns.add({task.task, task.metric, std::to_string(task.scores.size()), fixed(task.score, 2),
                 interval_text(task.interval)});
    for (const ScoreBucket& bucket : task.buckets) {
      columns.add({"  " + bucket.name, "", std::to_string(bucket.samples),
                   bucket.score ? fixed(*bucket.score, 2) : "-", interval_text(bucket.interval)});
    }
  }
  const Interval average = score_average(report);
  columns.add({"average", "", "", fixed(average.mean, 2), interval_text(average)});
  return columns.text() + skipped +
         "Scores are times 100. Intervals: bootstrap over samples; of the average, over tasks and "
         "samples.\n";
}

}  // namespace sw
