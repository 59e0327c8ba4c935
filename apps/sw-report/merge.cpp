#include <iostream>
#include <memory>

#include "commands.hpp"
#include "report/sweep_report.hpp"

namespace sw {
namespace {

struct MergeOptions {
  std::string output;
  std::vector<std::string> journals;
};

int run_merge(const MergeOptions& options, const CommonOptions& common) {
  constexpr int kExitSomeFailed = 3;
  const ReportPaths paths = report_paths(options.output);
  check_report_paths(paths, common.force);
  const SweepOutcome outcome = write_sweep_report(options.journals, paths, common.force);
  for (const std::string& note : outcome.notes) std::cerr << "note: " << note << "\n";
  std::cout << outcome.table << "Report: " << paths.json << " (every number), " << paths.hdf5
            << " (arrays), from " << options.journals.size()
            << (options.journals.size() == 1 ? " journal\n" : " journals\n");
  if (outcome.failed == 0) return 0;
  std::cerr << outcome.failed << " of " << outcome.cells
            << " cells failed; the report has the reasons\n";
  return kExitSomeFailed;
}

}  // namespace

void setup_merge(Program& program) {
  const auto options = std::make_shared<MergeOptions>();
  CLI::App& command = program.add_command(
      "merge", "Join the journals of a sweep's shards to the report that one process would write",
      {"sw-report merge out.json out.shard-*-of-4.journal",
       "sw-report merge again.json out.journal     # the report of a finished sweep once more"},
      [options](const CommonOptions& common) { return run_merge(*options, common); });
  command.add_option("output", options->output, "Report: writes OUT.json and OUT.h5")->required();
  command.add_option("journals", options->journals, "Journals of all shards (sw-sweep --shard)")
      ->required();
}

}  // namespace sw
