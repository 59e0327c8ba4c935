#pragma once

#include <string>

#include "report/report.hpp"

namespace sw {

/// The report as text for a terminal: for each phase one row a method and density, over all inputs,
/// with the realised density, mass recall with its interval, oracle gap, output error, cosine, the
/// verdict against sink_window and, for a single input, times; then where Sketch&Walk loses mass.
/// Failed and skipped cells are listed with their reasons.
std::string report_table(const Report& report, const ReportSummary& summaries);

}  // namespace sw
