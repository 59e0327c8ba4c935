#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

/// What an evaluation is to run, as a value: the same fields come from a command line and from an
/// experiment file, and lead back to a command line in the report.
namespace sw {

/// Defaults are those of `sw-eval trace`.
struct TraceExperiment {
  std::vector<std::string> files;
  std::vector<std::string> methods = {"dense",       "sketchwalk", "sketchwalk:preset=preprint",
                                      "sink_window", "oracle",     "random"};
  std::vector<std::string> densities = {"0.05", "0.1", "0.2", "0.3"};
  std::string phase = "both";  ///< prefill, decode or both
  std::string layers;          ///< "first:end", "layer" or "" for all
  std::int64_t block = 64;
  bool no_output_error = false;
  bool no_attribution = false;
  bool save_selection = false;
};

/// Defaults are those of `sw-eval model`.
struct ModelExperiment {
  std::string model;
  std::vector<std::string> tasks;
  std::vector<std::string> methods = {"sketchwalk", "sketchwalk:preset=preprint", "sink_window",
                                      "oracle", "random"};
  std::vector<std::string> densities = {"0.1", "0.2"};
  std::string phase = "both";  ///< where attention is sparse: prefill, decode or both
  std::int64_t context = 0;    ///< 0: 4096, or the model's own if that is shorter
  std::int64_t limit = 0;      ///< 0: all samples
  std::int64_t max_new_tokens = 0;
  std::int64_t block = 64;
  std::int64_t stride = 0;
  std::int64_t decode_tokens = 128;
  bool kl = false;
  std::string protocol = "longbench";
  std::string chat_template = "auto";
  std::string compute = "bf16";
  std::string longbench_dir;
  std::string prompts;
};

using Experiment = std::variant<TraceExperiment, ModelExperiment>;

/// Reads an experiment file: an object with "command" ("trace" or "model"), perhaps a
/// "description", and fields named as the long options of that command, "files" or "model" for what
/// stands without a name there. `title` begins the messages. Throws Error(kInput) for what is no
/// such object and Error(kUsage) for unknown keys, with the nearest one, and for values that the
/// command would refuse before it opens a file.
Experiment parse_experiment(std::string_view text, const std::string& title);

/// Throws Error(kUsage) for the values of choices and counts that no evaluation takes.
void check(const TraceExperiment& experiment);
void check(const ModelExperiment& experiment);

/// The arguments that stand for an experiment: "trace", its files, every option that is not at its
/// default, and --method and --density always.
std::vector<std::string> to_arguments(const Experiment& experiment);

}  // namespace sw
