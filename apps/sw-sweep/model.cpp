#include <memory>

#include "commands.hpp"
#include "common/evaluation.hpp"
#include "sweep_command.hpp"

namespace sw {

void setup_model(Program& program, const std::vector<std::string>& argv) {
  struct Options {
    ModelExperiment experiment;
    SweepOptions sweep;
  };
  const auto options = std::make_shared<Options>();
  CLI::App& command = program.add_command(
      "model", "Sweep a whole model over tasks: every method at every density, as sw-eval model",
      {"sw-sweep model qwen/ --task longbench:trec=trec.jsonl longbench:samsum=samsum.jsonl "
       "--density 0.1 0.2 -o longbench",
       "sw-sweep model smollm2.gguf --task perplexity=book.txt --kl "
       "--method 'sketchwalk:degree=1|3' sink_window --density 0.05:0.3:0.05 -o ppl",
       "sw-sweep model qwen/ --task niah --shard 1/8 -o needles"},
      [options, argv](const CommonOptions& common) {
        return run_sweep_command(options->experiment, options->sweep, common, argv);
      });
  command
      .add_option("model", options->experiment.model,
                  "A Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a GGUF "
                  "file")
      ->required();
  add_options(command, options->experiment);
  command.get_option("--task")->required();
  add_options(command, options->sweep);
}

}  // namespace sw
