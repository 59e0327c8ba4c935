#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/policy.hpp"
#include "common/cli.hpp"
#include "dataset/task.hpp"
#include "eval/arm.hpp"
#include "eval/evaluate.hpp"
#include "eval/experiment.hpp"
#include "eval/model_run.hpp"
#include "model/checkpoint.hpp"
#include "report/environment.hpp"
#include "report/model_report.hpp"
#include "report/report.hpp"

/// What the programs that evaluate do alike: their options, and what follows from them.
namespace sw {

/// Exit code of a run in which some cells failed (interfaces.md).
inline constexpr int kExitSomeFailed = 3;

/// The options of an experiment but its files, bound to `experiment`.
void add_options(CLI::App& command, TraceExperiment& experiment);
void add_options(CLI::App& command, ModelExperiment& experiment);

/// The policies that SPECs with lists of values stand for, each once. Throws Error(kUsage).
std::vector<std::unique_ptr<Policy>> make_policies(const std::vector<std::string>& specs,
                                                   std::uint64_t seed);

/// This process, its backend and the GPU, if there is one.
Environment describe_environment(const Backend& backend);

/// A trace evaluation, from its options. Throw Error(kUsage).
EvalOptions eval_options(const TraceExperiment& experiment, std::uint64_t seed);
Protocol trace_protocol(const TraceExperiment& experiment, const EvalOptions& options,
                        std::span<const std::unique_ptr<Policy>> policies);
InputRecord describe(const TraceReader& trace);

/// A model evaluation, opened but not run: everything but the weights.
struct ModelSetup {
  std::vector<Arm> arms;  ///< the dense one first, then every method at every density
  std::vector<Task> tasks;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  ModelRunOptions run;
  DType compute = DType::kBf16;
  ModelReport head;  ///< the report without its entries
};
/// Throws Error(kUsage) for options, and what opening and hashing files throws.
ModelSetup open_model(const ModelExperiment& experiment, std::uint64_t seed,
                      const Backend& backend);

std::vector<std::string> task_specs(const std::vector<Task>& tasks);

}  // namespace sw
