#include <memory>

#include "commands.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "sweep_command.hpp"

namespace sw {
namespace {

struct RunOptions {
  std::string file;
  std::vector<std::string> inputs;
  std::vector<std::string> tasks;
  std::string longbench_dir;
  SweepOptions sweep;
};

/// The experiment of a file, with what the command line says in its stead.
Experiment read_experiment(const RunOptions& options) {
  constexpr std::uint64_t kLargest = 1 << 20;
  Experiment experiment =
      parse_experiment(read_file(options.file, kLargest), "'" + options.file + "'");
  if (auto* trace = std::get_if<TraceExperiment>(&experiment)) {
    if (!options.tasks.empty() || !options.longbench_dir.empty()) {
      throw Error(ErrorKind::kUsage, "'" + options.file + "' is of traces, which have no tasks");
    }
    if (!options.inputs.empty()) trace->files = options.inputs;
    if (trace->files.empty()) {
      throw Error(ErrorKind::kUsage, "'" + options.file + "' names no traces",
                  "give them behind it: sw-sweep run " + options.file + " llama.h5 -o OUT");
    }
    return experiment;
  }
  auto& model = std::get<ModelExperiment>(experiment);
  if (!options.tasks.empty()) model.tasks = options.tasks;
  if (!options.longbench_dir.empty()) model.longbench_dir = options.longbench_dir;
  if (options.inputs.size() > 1) {
    throw Error(ErrorKind::kUsage, "'" + options.file + "' runs one model, and more are given");
  }
  if (!options.inputs.empty()) model.model = options.inputs.front();
  if (model.model.empty()) {
    throw Error(ErrorKind::kUsage, "'" + options.file + "' names no model",
                "give it behind it: sw-sweep run " + options.file + " model.gguf -o OUT");
  }
  return experiment;
}

}  // namespace

void setup_run(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<RunOptions>();
  CLI::App& command = program.add_command(
      "run", "Run an experiment file, as configs/experiments has them",
      {"sw-sweep run configs/experiments/paper-traces.json llama.h5 -o results/paper",
       "sw-sweep run configs/experiments/paper-longbench.json llama/ --longbench-dir longbench "
       "-o results/longbench",
       "sw-sweep run configs/experiments/ablation-sketch-dim.json llama.h5 --dry-run"},
      [options, argv](const CommonOptions& common) {
        return run_sweep_command(read_experiment(*options), options->sweep, common, argv);
      });
  command
      .add_option("experiment", options->file,
                  "JSON object with \"command\": \"trace\" or \"model\", and its long options as "
                  "keys")
      ->required();
  command.add_option("inputs", options->inputs,
                     "Traces, or the model, in the place of those that the file names");
  command.add_option("--task", options->tasks, "Tasks in the place of those of the file");
  command.add_option("--longbench-dir", options->longbench_dir,
                     "Folder with NAME.jsonl for longbench:NAME");
  add_options(command, options->sweep);
}

}  // namespace sw
