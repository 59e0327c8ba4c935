#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/sha256.hpp"
#include "dataset/jsonl.hpp"
#include "dataset/longbench.hpp"
#include "dataset/scorers.hpp"
#include "report/files.hpp"
#include "report/report.hpp"
#include "report/score_report.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;

struct ScoreOptions {
  std::string predictions;
  bool longbench = false;
  bool longbench_e = false;
  CodeRatio code_ratio = CodeRatio::kLevenshtein;
  bool json = false;
  std::string output;
};

struct Prediction {
  std::string text;
  std::vector<std::string> answers;
  std::int64_t length = 0;
};

/// The predictions of a file; `classes` become those of its last record, which eval.py takes for
/// all of them.
std::vector<Prediction> read_predictions(const JsonlFile& file, bool needs_length,
                                         std::vector<std::string>& classes) {
  std::vector<Prediction> predictions;
  for (std::int64_t i = 0; i < file.size(); ++i) {
    const nlohmann::json record = file.record(i);
    const std::string where = file.where(i);
    Prediction prediction;
    prediction.text = text_field(record, "pred", where);
    prediction.answers = texts_field(record, "answers", where);
    if (prediction.answers.empty()) {
      throw Error(ErrorKind::kInput, where + ": the field 'answers' is empty",
                  "a prediction is scored against one reference or more");
    }
    prediction.length = int_field(record, "length", where, -1);
    if (needs_length && prediction.length < 0) {
      throw Error(ErrorKind::kInput, where + ": no length, or one below 0, in the field 'length'",
                  "LongBench-E sorts its records by it; leave out --longbench-e for plain scores");
    }
    classes = texts_field(record, "all_classes", where, {});
    predictions.push_back(std::move(prediction));
  }
  return predictions;
}

/// Mean of scores in [0, 1], times 100, with its interval.
Interval percent_interval(std::vector<double> scores) {
  for (double& score : scores) score *= 100;
  return bootstrap_mean({&scores, 1});
}

std::vector<ScoreBucket> score_buckets(const std::vector<Prediction>& predictions,
                                       const std::vector<double>& scores) {
  std::map<std::string_view, std::vector<double>> by_length;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    by_length[length_bucket(predictions[i].length)].push_back(scores[i]);
  }
  std::vector<ScoreBucket> buckets;
  for (const std::int64_t length : {0, 4000, 8000}) {
    const std::vector<double>& values = by_length[length_bucket(length)];
    ScoreBucket bucket;
    bucket.name = length_bucket(length);
    bucket.samples = static_cast<std::int64_t>(values.size());
    if (!values.empty()) {
      bucket.score = longbench_bucket_score(values);
      bucket.interval = percent_interval(values);
    }
    buckets.push_back(std::move(bucket));
  }
  return buckets;
}

/// Scores one file of predictions, which is named after its task.
ScoreTask score_file(const fs::path& path, const ScoreOptions& options) {
  ScoreTask result;
  result.task = path.stem().string();
  result.sha256 = sha256_of_file(path.string());
  const Scorer* scorer = nullptr;
  try {
    scorer = &longbench_scorer(result.task, options.code_ratio);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUnsupported) {
      throw Error(error.kind(), path.string() + ": " + error.what(), error.hint());
    }
    result.skipped = error.what();
    return result;
  }
  result.metric = scorer->name;

  const JsonlFile file(path.string());
  std::vector<std::string> classes;
  const std::vector<Prediction> predictions = read_predictions(file, options.longbench_e, classes);
  if (scorer->name == "classification" && classes.empty()) {
    throw Error(ErrorKind::kInput,
                file.where(file.size() - 1) + ": the field 'all_classes' names no class",
                "the classes of the task are needed to score it");
  }
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    const std::string text = longbench_prediction(result.task, predictions[i].text);
    try {
      result.scores.push_back(scorer->score(text, predictions[i].answers, classes));
    } catch (const Error& error) {
      throw Error(error.kind(), file.where(static_cast<std::int64_t>(i)) + ": " + error.what(),
                  error.hint());
    }
  }
  result.score = longbench_task_score(result.scores);
  result.interval = percent_interval(result.scores);
  if (options.longbench_e) result.buckets = score_buckets(predictions, result.scores);
  return result;
}

/// The .jsonl files of a folder, by name.
std::vector<fs::path> prediction_files(const std::string& folder) {
  std::vector<fs::path> files;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".jsonl") files.push_back(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::kInput,
                "cannot read the folder '" + folder + "': " + error.code().message(),
                "--predictions takes a folder with one file TASK.jsonl for each task");
  }
  if (files.empty()) {
    throw Error(ErrorKind::kInput, "the folder '" + folder + "' holds no .jsonl file",
                "predictions are one file for each task, such as hotpotqa.jsonl");
  }
  std::sort(files.begin(), files.end());
  return files;
}

int run_score(const ScoreOptions& options, const CommonOptions& common,
              const std::vector<std::string>& argv) {
  if (!options.longbench && !options.longbench_e) {
    throw Error(ErrorKind::kUsage, "no benchmark says how to score",
                "give --longbench, or --longbench-e for LongBench-E with its buckets of lengths");
  }
  if (options.output.empty() && !options.json) {
    throw Error(ErrorKind::kUsage, "there is no place for the report",
                "give one with -o OUT, or print it with --json");
  }
  const std::string path = report_paths(options.output).json;
  if (!options.output.empty()) const PendingFile check(path, common.force);

  ScoreReport report;
  report.created = utc_now();
  report.command = argv;
  report.environment = current_environment();
  report.environment.backend = "none";
  report.environment.backend_detail = "scores texts, runs no model";
  report.environment.libraries.emplace_back("CLI11", CLI11_VERSION);
  report.benchmark = options.longbench_e ? "longbench-e" : "longbench";
  for (const fs::path& file : prediction_files(options.predictions)) {
    report.tasks.push_back(score_file(file, options));
  }
  if (std::all_of(report.tasks.begin(), report.tasks.end(),
                  [](const ScoreTask& task) { return !task.skipped.empty(); })) {
    throw Error(ErrorKind::kUnsupported,
                "every task was skipped, so there is nothing to report; "
                "the first one: " +
                    report.tasks.front().skipped);
  }

  const std::string text = score_json_text(report);
  if (!options.output.empty()) write_file(path, text, common.force);
  if (options.json) {
    std::cout << text;
  } else {
    std::cout << score_table(report) << "\nReport: " << path << " (every sample's score)\n";
  }
  return 0;
}

}  // namespace

void setup_score(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<ScoreOptions>();
  CLI::App& command = program.add_command(
      "score", "Score predictions that any program wrote, as the benchmark itself does",
      {"sw-eval score --predictions pred/llama --longbench -o results/llama-longbench",
       "sw-eval score --predictions pred_e/llama --longbench-e --json"},
      [options, argv](const CommonOptions& common) { return run_score(*options, common, argv); });
  command
      .add_option("--predictions", options->predictions,
                  "Folder with a file TASK.jsonl for each task; each line has pred, answers, "
                  "all_classes and length")
      ->required();
  command.add_flag("--longbench", options->longbench, "Score as LongBench v1");
  command.add_flag("--longbench-e", options->longbench_e,
                   "Score as LongBench-E: also by length, 0-4k, 4-8k and 8k+");
  command
      .add_option("--code-ratio", options->code_ratio,
                  "How lines of code are compared (lcc, repobench-p): as fuzzywuzzy does with the "
                  "package Levenshtein (the published scores) or without it (difflib)")
      ->transform(CLI::CheckedTransformer(std::map<std::string, CodeRatio>{
          {"levenshtein", CodeRatio::kLevenshtein}, {"difflib", CodeRatio::kDifflib}}))
      ->default_str("levenshtein");
  command.add_option("-o,--output", options->output, "Report: writes OUT.json");
  command.add_flag("--json", options->json, "Print the JSON report instead of the table");
}

}  // namespace sw
