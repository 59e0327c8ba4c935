#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "eval/sweep.hpp"
#include "report/files.hpp"

/// Reports of sweeps from their journals alone: of one process, or of all shards together. The same
/// entries give the same bytes, whoever wrote them and in which order.
namespace sw {

struct SweepOutcome {
  std::string table;               ///< for a terminal
  std::size_t cells = 0;           ///< of the report
  std::size_t failed = 0;          ///< of those
  std::vector<std::string> notes;  ///< what shards had not in common
};

/// Reads the journals and writes the report. Throws Error(kInput) when a unit is missing or there
/// twice, when journals are of different sweeps (the messages name them) or damaged, Error(kOutput)
/// when a file cannot be written.
SweepOutcome write_sweep_report(std::span<const std::string> journals, const ReportPaths& paths,
                                bool force);

/// The journal of a shard beside the report that it is for: "OUT.journal", or
/// "OUT.shard-2-of-4.journal".
std::string journal_path(const ReportPaths& paths, const Shard& shard);

/// The journal of a rank of an MPI job that is not the first, "OUT.rank-2.journal"; that of the
/// first is OUT.journal. Whoever does the work, they are journals of the whole sweep.
std::string rank_journal_path(const ReportPaths& paths, int rank);
/// The journals of ranks that there are and in which something was begun, by rank.
std::vector<std::pair<int, std::string>> find_rank_journals(const ReportPaths& paths);

}  // namespace sw
