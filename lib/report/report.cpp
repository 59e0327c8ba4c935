#include "report/report.hpp"

#include <ctime>

namespace sw {

ReportSummary summarize_report(const Report& report) {
  ReportSummary summary{summarize_cells(report.cells), {}};
  // The summary over one input is that of its cells.
  summary.inputs = report.inputs.size() > 1 ? summarize_inputs(report.cells) : summary.cells;
  return summary;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace sw
