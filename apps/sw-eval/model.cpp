#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "common/evaluation.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/journal.hpp"
#include "eval/model_run.hpp"
#include "model/checkpoint.hpp"
#include "report/model_report.hpp"

namespace sw {
namespace {

struct ModelOptions {
  ModelExperiment experiment;
  std::string predictions;
  std::string output;
};

/// Everything that decides the results, so that a journal is continued only by the same run.
nlohmann::json identity_of(const ModelReport& report, const std::vector<Task>& tasks) {
  nlohmann::json files = nlohmann::json::object();
  for (const SourceFile& file : report.inputs) {
    files[file.role + " " + std::filesystem::path(file.path).filename().string()] = file.sha256;
  }
  nlohmann::json arms = nlohmann::json::array();
  for (const ArmInfo& arm : report.arms) arms.push_back(arm.label);
  return {{"kind", "model"},
          {"program", sha256_of_file("/proc/self/exe")},
          {"files", files},
          {"tasks", task_specs(tasks)},
          {"arms", arms},
          {"backend", report.environment.backend + " " + report.environment.backend_detail},
          {"protocol", nlohmann::json(to_json(report.protocol))}};
}

/// Where the replies of an arm to a task go: TASK.jsonl in a folder for each arm.
std::filesystem::path predictions_path(const std::string& folder, std::string arm,
                                       const Task& task) {
  std::replace_if(
      arm.begin(), arm.end(), [](char c) { return c == '/' || c == ' ' || c == ':'; }, '_');
  return std::filesystem::path(folder) / arm / (task.benchmark_name() + ".jsonl");
}

/// Throws Error(kOutput) when one of the files exists already: to be found out before the work.
void check_predictions(const std::vector<ArmInfo>& arms, const std::vector<Task>& tasks,
                       const std::string& folder) {
  for (const ArmInfo& arm : arms) {
    for (const Task& task : tasks) {
      const std::string path = predictions_path(folder, arm.label, task).string();
      std::error_code ignored;
      if (task.scorer() == nullptr || !std::filesystem::exists(path, ignored)) continue;
      throw Error(ErrorKind::kOutput, "'" + path + "' exists already",
                  "use --force to replace it, or another folder for --predictions");
    }
  }
}

void write_predictions(const ModelReport& report, const std::vector<Task>& tasks,
                       const std::string& folder, bool force) {
  for (const ArmInfo& arm : report.arms) {
    for (const Task& task : tasks) {
      if (task.scorer() == nullptr) continue;
      const std::filesystem::path path = predictions_path(folder, arm.label, task);
      std::error_code error;
      std::filesystem::create_directories(path.parent_path(), error);
      if (error) {
        throw Error(ErrorKind::kOutput, "cannot write '" + path.string() + "': " + error.message(),
                    "choose another folder for --predictions");
      }
      write_file(path.string(), predictions_jsonl(report, task.name(), arm.label), force);
    }
  }
}

int run_model_command(const ModelOptions& options, const CommonOptions& common,
                      const std::vector<std::string>& argv) {
  if (options.output.empty()) {
    throw Error(ErrorKind::kUsage, "there is no place for the report", "give one with -o OUT");
  }
  const ReportPaths paths = report_paths(options.output);
  { const PendingFile checked(paths.json, common.force); }
  const auto backend = make_backend(common.backend, common.cpu_isa);
  ModelSetup setup = open_model(options.experiment, common.seed, *backend);
  const std::vector<Task>& tasks = setup.tasks;
  const ModelConfig& config = setup.checkpoint->config();
  ModelReport report = std::move(setup.head);
  report.command = argv;

  const std::string journal_path = paths.json.substr(0, paths.json.size() - 5) + ".journal";
  Journal journal(journal_path, identity_of(report, tasks));
  // The JSON file comes last: with this mark, an HDF5 file or replies alone are what a killed run
  // left behind.
  const bool interrupted = std::ranges::any_of(journal.entries(), is_report_mark);
  const bool replace = common.force || interrupted;
  { const PendingFile checked(paths.hdf5, replace); }
  const bool predicts = !options.predictions.empty();
  if (predicts && !replace) check_predictions(report.arms, tasks, options.predictions);
  if (!common.quiet) {
    if (!journal.entries().empty()) {
      std::cerr << "resuming: " << journal.entries().size() << " results stand in '" << journal_path
                << "'\n";
    }
    std::cerr << config.name << ": " << config.layers << " layers, " << config.heads << "/"
              << config.kv_heads << " heads of " << config.head_dim << "; context "
              << setup.run.context << " of " << config.context_length << "; " << setup.arms.size()
              << " arms, " << tasks.size() << (tasks.size() == 1 ? " task" : " tasks") << "\n"
              << "a run that is stopped goes on with the same command\n";
  }
  {
    const Model model(setup.checkpoint, setup.compute);
    run_model(model, *setup.tokenizer, tasks, setup.arms, *backend, setup.run, journal,
              common.quiet);
  }
  for (const nlohmann::json& json : journal.entries()) {
    if (is_report_mark(json)) continue;
    report.entries.push_back(run_entry_from_json(json));
    report.seconds += report.entries.back().prefill_seconds + report.entries.back().decode_seconds;
  }
  if (!interrupted) journal.append(report_mark());
  const ModelSummary summary = summarize_model(report.entries, report.tasks, report.arms);
  if (predicts) write_predictions(report, tasks, options.predictions, replace);
  write_report(report, summary, paths, replace);
  std::cout << report_table(report, summary);
  std::int64_t truncated = 0;
  for (const RunEntry& entry : report.entries) {
    if (entry.arm == report.arms.front().label && entry.prompt.tokens < entry.prompt.untruncated) {
      ++truncated;
    }
  }
  if (truncated > 0) {
    std::cout << truncated << (truncated == 1 ? " prompt was" : " prompts were")
              << " longer than the context of " << setup.run.context
              << " tokens and lost the middle\n";
  }
  std::cout << "Report: " << paths.json << " (every number), " << paths.hdf5
            << " (values of each sample and token), " << journal_path << " (what ran)\n";
  return 0;
}

}  // namespace

void setup_model(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<ModelOptions>();
  CLI::App& command = program.add_command(
      "model", "Run a whole model dense and sparse: perplexity, KL, LongBench, RULER, needles",
      {"sw-eval model smollm2.gguf --task perplexity=book.txt --kl --context 8192 --limit 2 -o ppl",
       "sw-eval model qwen/ --task longbench:trec=trec.jsonl --density 0.1 0.2 --limit 50 -o trec",
       "sw-eval model qwen/ --task niah:lengths=4096+8192,depths=0+0.5+1 --context 8192 "
       "--method sketchwalk sink_window -o needles",
       "sw-eval model qwen/ --task ruler:vt=vt_16384.jsonl --context 16384 --phase prefill -o vt"},
      [options, argv](const CommonOptions& common) {
        return run_model_command(*options, common, argv);
      });
  command
      .add_option(
          "model", options->experiment.model,
          "A Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a GGUF file")
      ->required();
  add_options(command, options->experiment);
  command.get_option("--task")->required();
  command.add_option("--predictions", options->predictions,
                     "Folder for the replies as JSON lines, as LongBench's eval.py reads them");
  command.add_option("-o,--output", options->output,
                     "Report: writes OUT.json and OUT.h5, and OUT.journal while it runs");
}

}  // namespace sw
