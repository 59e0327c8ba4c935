#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "eval/evaluate.hpp"
#include "eval/record.hpp"
#include "eval/summary.hpp"
#include "report/environment.hpp"

/// A whole report as a value: what ran, where, on what, and the records that came out. The JSON,
/// the HDF5 file and the table are pure functions of it.
namespace sw {

/// How a trace evaluation was run.
struct Protocol {
  std::string phase;                 ///< "prefill", "decode" or "both"
  std::vector<std::string> methods;  ///< canonical SPECs
  std::vector<double> densities;
  std::int64_t block = 64;
  std::optional<std::pair<std::int64_t, std::int64_t>> layers;  ///< [first, end), none = all
  std::uint64_t seed = 0;
  bool output_error = true;
  bool attribution = true;
  bool save_selection = false;
};

struct Report {
  std::string created;               ///< UTC, ISO 8601
  double seconds = 0.0;              ///< wall time of the evaluation
  std::vector<std::string> command;  ///< argv
  Environment environment;
  Protocol protocol;
  std::vector<InputRecord> inputs;
  std::vector<CellRecord> cells;
  std::optional<LayerSeconds> work;  ///< of sweeps: where the seconds went, all units together
};

/// What the JSON file, the table and gates say of the cells; resampling makes it dear, so it is
/// computed once.
struct ReportSummary {
  std::vector<Summary> cells;   ///< one a cell
  std::vector<Summary> inputs;  ///< over all inputs, one a method, density and phase
};
ReportSummary summarize_report(const Report& report);

inline constexpr int kReportVersion = 1;

/// "2026-02-07T12:00:00Z"
std::string utc_now();

}  // namespace sw
