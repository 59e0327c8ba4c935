#include <memory>

#include "commands.hpp"
#include "common/evaluation.hpp"
#include "sweep_command.hpp"

namespace sw {

void setup_trace(Program& program, const std::vector<std::string>& argv) {
  struct Options {
    TraceExperiment experiment;
    SweepOptions sweep;
  };
  const auto options = std::make_shared<Options>();
  CLI::App& command = program.add_command(
      "trace", "Sweep dumped traces: every method at every density, as sw-eval trace does",
      {"sw-sweep trace llama.h5 --density 0.05:0.5:0.05 -o results/llama",
       "sw-sweep trace a.h5 b.h5 --method 'sketchwalk:damping=0|0.25,sketch_dim=32|64' "
       "sink_window --density 0.1 0.2 -o out",
       "sw-sweep trace llama.h5 --density 0.05:0.5:0.05 --dry-run",
       "sw-sweep trace llama.h5 --shard 2/4 -o out     # then: sw-report merge out.json "
       "out.shard-*.journal",
       "sw-sweep trace llama.h5 --max-time 30m -o out  # 124: not finished; the same command goes "
       "on"},
      [options, argv](const CommonOptions& common) {
        return run_sweep_command(options->experiment, options->sweep, common, argv);
      });
  command
      .add_option("files", options->experiment.files,
                  "Traces, HDF5 or safetensors (sw-trace makes them)")
      ->required();
  add_options(command, options->experiment);
  add_options(command, options->sweep);
}

}  // namespace sw
