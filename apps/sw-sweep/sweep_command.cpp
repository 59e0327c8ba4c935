#include "sweep_command.hpp"

#include <algorithm>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/evaluation.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "mpi_queue.hpp"
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

std::vector<std::size_t> finished_units(const Sweep& sweep, const std::vector<std::size_t>& units) {
  std::vector<std::size_t> finished;
  std::copy_if(units.begin(), units.end(), std::back_inserter(finished),
               [&](std::size_t unit) { return sweep.finished(unit); });
  return finished;
}

/// An identity as a journal holds it: what is not UTF-8 is replaced.
std::string text_of(const nlohmann::json& identity) {
  return identity.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// Takes note of what ranks did that an earlier MPI job had and this run, of `ranks`, has not, and
/// adds their journals to `journals`.
void note_absent_ranks(SweepJob& job, const ReportPaths& paths, int ranks,
                       std::vector<std::string>& journals) {
  for (const auto& [rank, path] : find_rank_journals(paths)) {
    if (rank < ranks) continue;
    const JournalReader reader(path);
    const std::string differences = journal_differences(
        reader.identity(), nlohmann::json::parse(text_of(job.identity(Shard()))));
    if (!differences.empty()) {
      throw Error(ErrorKind::kUsage, "'" + path + "' is of another run: " + differences,
                  "choose another -o, or delete the journal to start again");
    }
    reader.read([&](nlohmann::json&& entry) { job.sweep().note(entry); });
    journals.push_back(path);
  }
}

/// The same for the other ranks of this job, once it has ended.
void note_ranks(SweepJob& job, const ReportPaths& paths, int ranks,
                std::vector<std::string>& journals) {
  for (int rank = 1; rank < ranks; ++rank) {
    journals.push_back(rank_journal_path(paths, rank));
    JournalReader(journals.back()).read([&](nlohmann::json&& entry) { job.sweep().note(entry); });
  }
}

void say_begin(std::size_t units, std::size_t finished, const std::string& where) {
  std::cerr << units << " units of work" << where << ", " << finished << " of them finished\n";
}

int finish_shard(const Shard& shard, const ReportPaths& paths, const std::string& journal) {
  const std::string stem = paths.json.substr(0, paths.json.size() - 5);
  std::cout << "Shard " << shard.text() << " is finished: " << journal << "\n"
            << "When all are: sw-report merge " << paths.json << " " << stem << ".shard-*-of-"
            << shard.count << ".journal\n";
  return 0;
}

int finish_report(OpenJournal& open, const std::vector<std::string>& journals,
                  const ReportPaths& paths, bool force) {
  const bool replace = force || open.reported;
  if (!open.reported) open.journal->append(report_mark());
  const SweepOutcome outcome = write_sweep_report(journals, paths, replace);
  for (const std::string& note : outcome.notes) std::cerr << "note: " << note << "\n";
  std::cout << outcome.table << "Report: " << paths.json << " (every number), " << paths.hdf5
            << " (arrays), " << open.journal->path() << " (what ran)\n";
  if (outcome.failed == 0) return 0;
  std::cerr << outcome.failed << " of " << outcome.cells
            << " cells failed; the report has the reasons\n";
  return kExitSomeFailed;
}

/// Says why a sweep ended before it was finished, and returns the exit code that says so too.
int say_unfinished(SweepEnd end, std::size_t finished, std::size_t units,
                   const std::string& command, const std::string& journal) {
  const char* reason = end == SweepEnd::kStopped     ? "stopped by a signal"
                       : end == SweepEnd::kOutOfTime ? "out of time"
                                                     : "another process was stopped";
  std::cerr << reason << ": " << finished << " of " << units << " units are finished and safe in '"
            << journal << "'\ngo on with: " << command << "\n";
  return end == SweepEnd::kStopped ? 128 + signal_received() : kExitOutOfTime;
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
  command.add_flag("--mpi", options.mpi,
                   "Share the work among the processes that mpirun started; each keeps a journal, "
                   "OUT.journal and OUT.rank-R.journal");
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
  if (options.mpi && !shard.whole()) {
    throw Error(ErrorKind::kUsage, "--mpi shares all of the work, and --shard names a part of it",
                "use one of them");
  }
  const ReportPaths paths = report_paths(options.output.empty() ? "OUT" : options.output);
  const std::unique_ptr<MpiQueue> queue = options.mpi ? join_mpi() : nullptr;
  const int rank = queue ? queue->rank() : 0;
  const int ranks = queue ? queue->size() : 1;
  const bool leads = rank == 0;
  const bool reports = leads && shard.whole();
  if (!options.dry_run && reports) const PendingFile checked(paths.json, common.force);

  watch_signals();
  const std::unique_ptr<SweepJob> job = open_job(experiment, common, paths);
  if (options.dry_run) {
    if (leads) job->print_plan(std::cout, shard);
    return 0;
  }
  OpenJournal open;
  open_journal(open, *job, leads ? journal_path(paths, shard) : rank_journal_path(paths, rank),
               shard);
  std::vector<std::string> journals = {open.journal->path()};
  if (reports) {
    const PendingFile checked(paths.hdf5, common.force || open.reported);
    note_absent_ranks(*job, paths, ranks, journals);
  }
  Sweep& sweep = job->sweep();
  const std::vector<std::size_t> units = shard_units(sweep.units(), shard);
  const std::vector<std::size_t> finished = finished_units(sweep, units);
  if (queue) {
    if (!queue->begin(text_of(job->identity(shard)), units.size(), finished)) return 0;
    if (!common.quiet && leads) {
      say_begin(units.size(), units.size() - queue->known().size(),
                " for " + std::to_string(ranks) + " processes");
    }
  } else if (!common.quiet) {
    say_begin(units.size(), finished.size(), shard.whole() ? "" : " in shard " + shard.text());
  }
  run.quiet = common.quiet || !leads;
  UnitList list(units);
  const SweepEnd end =
      run_sweep(sweep, queue ? static_cast<UnitSource&>(*queue) : list, *open.journal, run);
  std::string command = shell_line(argv);
  if (queue) {
    if (!leads) open.journal.reset();
    const bool all_well = queue->end();
    if (!leads) return 0;
    command = "mpirun -n " + std::to_string(ranks) + " " + command;
    if (!all_well) {
      std::cerr << "a process failed; go on with: " << command << "\n";
      return 0;  // for the code of the job to be that of the process that failed
    }
    note_ranks(*job, paths, ranks, journals);
  }
  const std::size_t now = finished_units(sweep, units).size();
  if (now < units.size()) {
    return say_unfinished(end, now, units.size(), command, open.journal->path());
  }
  return reports ? finish_report(open, journals, paths, common.force)
                 : finish_shard(shard, paths, open.journal->path());
}

}  // namespace sw
