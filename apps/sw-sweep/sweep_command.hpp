#pragma once

#include <string>
#include <vector>

#include "common/cli.hpp"
#include "eval/experiment.hpp"

/// What the subcommands of sw-sweep do alike.
namespace sw {

/// Exit code of a sweep that --max-time ended before it was finished, as of timeout(1). A signal
/// gives 128 plus its number, as shells have it.
inline constexpr int kExitOutOfTime = 124;

struct SweepOptions {
  std::string output;
  std::string shard = "1/1";
  bool mpi = false;
  std::string max_time;
  bool dry_run = false;
};
void add_options(CLI::App& command, SweepOptions& options);

/// Runs, resumes or plans a sweep and returns the exit code.
int run_sweep_command(const Experiment& experiment, const SweepOptions& options,
                      const CommonOptions& common, const std::vector<std::string>& argv);

}  // namespace sw
