#include "sweep_command.hpp"

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/evaluation.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "report/report_file.hpp"
#include "report/sweep_head.hpp"
#include "report/sweep_report.hpp"
#include "signals.hpp"
#include "sweep_job.hpp"

namespace sw {
namespace {

/// A journal that is open, and what stood in it.
struct OpenJournal {
  std::optional<Journal> journal;
  bool begun = false;
  bool reported = false;  ///< its report was written, or was about to be
};

void open_journal(OpenJournal& open, SweepJob& job, const std::string& path, const Shard& shard) {
  open.journal.emplace(path, job.identity(shard), [&](nlohmann::json&& entry) {
    open.begun = open.begun || is_begin_entry(entry);
    open.reported = open.reported || is_report_mark(entry);
    job.sweep().note(entry);
  });
  if (!open.begun) open.journal->append(job.begin());
}

std::size_t count_finished(const Sweep& sweep, const std::vector<std::size_t>& units) {
  return static_cast<std::size_t>(std::count_if(
      units.begin(), units.end(), [&](std::size_t unit) { return sweep.finished(unit); }));
}

int finish_report(OpenJournal& open, const ReportPaths& paths, bool force) {
  const bool replace = force || open.reported;
  if (!open.reported) open.journal->append(report_mark());
  const std::string path = open.journal->path();
  const SweepOutcome outcome = write_sweep_report({&path, 1}, paths, replace);
  std::cout << outcome.table << "Report: " << paths.json << " (every number), " << paths.hdf5
            << " (arrays), " << path << " (what ran)\n";
  if (outcome.failed == 0) return 0;
  std::cerr << outcome.failed << " of " << outcome.cells
            << " cells failed; the report has the reasons\n";
  return kExitSomeFailed;
}

}  // namespace

void add_options(CLI::App& command, SweepOptions& options) {
  command.add_option("-o,--output", options.output,
                     "Report: writes OUT.json and OUT.h5, and OUT.journal while it runs");
  command
      .add_option("--shard", options.shard,
                  "Run part i of N, i/N, into OUT.shard-i-of-N.journal; sw-report merge joins "
                  "them to the report")
      ->capture_default_str();
  command.add_option("--max-time", options.max_time,
                     "Stop before a unit of work that would end later than this (90s, 30m, 1h30m); "
                     "exit code 124");
  command.add_flag("--dry-run", options.dry_run,
                   "Show cells, units of work, time and memory, and stop");
}

int run_sweep_command(const Experiment& experiment, const SweepOptions& options,
                      const CommonOptions& common, const std::vector<std::string>& argv) {
  const Shard shard = Shard::parse(options.shard);
  SweepRunOptions run;
  run.quiet = common.quiet;
  run.stop = [] { return signal_received() != 0; };
  if (!options.max_time.empty()) run.max_seconds = parse_duration(options.max_time, "--max-time");
  if (options.output.empty() && !options.dry_run) {
    throw Error(ErrorKind::kUsage, "there is no place for the report", "give one with -o OUT");
  }
  const ReportPaths paths = report_paths(options.output.empty() ? "OUT" : options.output);
  if (!options.dry_run && shard.whole()) const PendingFile checked(paths.json, common.force);

  watch_signals();
  const std::unique_ptr<SweepJob> job = open_job(experiment, common, paths);
  if (options.dry_run) {
    job->print_plan(std::cout, shard);
    return 0;
  }
  OpenJournal open;
  open_journal(open, *job, journal_path(paths, shard), shard);
  if (shard.whole()) const PendingFile checked(paths.hdf5, common.force || open.reported);
  Sweep& sweep = job->sweep();
  const std::vector<std::size_t> units = shard_units(sweep.units(), shard);
  const std::size_t before = count_finished(sweep, units);
  if (!common.quiet) {
    std::cerr << units.size() << " units of work";
    if (!shard.whole()) std::cerr << " in shard " << shard.text();
    std::cerr << ", " << before << " of them finished in '" << open.journal->path() << "'\n";
  }
  const SweepEnd end = run_sweep(sweep, units, *open.journal, run);
  if (end != SweepEnd::kDone) {
    std::cerr << (end == SweepEnd::kStopped ? "stopped by a signal" : "out of time") << ": "
              << count_finished(sweep, units) << " of " << units.size()
              << " units are finished and safe in '" << open.journal->path() << "'\n"
              << "go on with: " << shell_line(argv) << "\n";
    return end == SweepEnd::kStopped ? 128 + signal_received() : kExitOutOfTime;
  }
  if (shard.whole()) return finish_report(open, paths, common.force);
  std::string stem = paths.json.substr(0, paths.json.size() - 5);
  std::cout << "Shard " << shard.text() << " is finished: " << open.journal->path() << "\n"
            << "When all are: sw-report merge " << paths.json << " " << stem << ".shard-*-of-"
            << shard.count << ".journal\n";
  return 0;
}

}  // namespace sw
