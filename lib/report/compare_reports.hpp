#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "report/gate.hpp"
#include "report/report_file.hpp"

/// Two reports of one kind, cell by cell: what changed from A to B, and whether the change is more
/// than chance where the samples behind both are there and can be paired.
namespace sw {

/// One value of a cell in both reports.
struct MetricChange {
  std::string metric;
  bool main = false;  ///< shown without being asked for
  double a = 0.0;
  double b = 0.0;
  /// Of b - a, 95%: paired by query block or step (traces, needs both HDF5 files), by sample
  /// (replies, scores), by token in blocks (texts, both HDF5 files); of the medians for times of at
  /// least five runs.
  std::optional<double> low;
  std::optional<double> high;
  std::optional<double> p_value;  ///< of replies, after Holm over the tasks of a method and density
  /// Of B against A: "better", "worse", "tied" or "underpowered"; "" without samples to pair.
  std::string verdict;
};

struct CellChange {
  const ReportCell* a = nullptr;
  const ReportCell* b = nullptr;
  std::vector<MetricChange> metrics;
  std::string unpaired;  ///< why there are no verdicts; "" when there are
};

/// A fact that differs: of the environment, the protocol or an input.
struct Difference {
  std::string what;
  std::string a;
  std::string b;
};

struct ReportComparison {
  std::vector<CellChange> cells;
  std::vector<const ReportCell*> only_a;
  std::vector<const ReportCell*> only_b;
  std::vector<Difference> differences;
};

/// Matches cells by method, density, phase, variant and input: of traces by file or prompt hash,
/// and only where that fails by file name. Each cell is matched once.
struct CellMatch {
  std::vector<std::pair<const ReportCell*, const ReportCell*>> pairs;  ///< in the order of A
  std::vector<const ReportCell*> only_a;
  std::vector<const ReportCell*> only_b;
};
CellMatch match_cells(const ReportFile& a, const ReportFile& b);

/// Throws Error(kInput) when the reports are of different kinds or share no cell.
ReportComparison compare_reports(const ReportFile& a, const ReportFile& b);

/// Names that gates on a comparison may use: each metric (b - a), "ratio:METRIC" (b / a), and
/// "worse", 1 for a cell with a metric whose verdict is worse, else 0.
std::vector<std::string> comparison_gate_metrics(ReportKind kind);
/// A line for each matched cell in scope for which the condition holds; one when no cell with that
/// metric is in scope. Empty = met.
std::vector<std::string> unmet(const Gate& gate, const ReportComparison& comparison);

/// For a terminal. `all`: every metric, not only the main ones.
std::string comparison_table(const ReportComparison& comparison, bool all);
std::string comparison_json_text(const ReportComparison& comparison, const ReportFile& a,
                                 const ReportFile& b);

}  // namespace sw
