#include <nlohmann/json.hpp>

#include "fuzz.hpp"
#include "report/compare_reports.hpp"
#include "report/report_file.hpp"

/// A report of any kind: the file, its table as CSV, and the comparison with itself.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("report.json", sw::fuzz::text_of(data, size));
  sw::fuzz::parse([&] {
    const auto report = sw::ReportFile::read(path);
    sw::csv_text(report);
    sw::shell_line(report.command());
    const sw::ReportComparison comparison = sw::compare_reports(report, report);
    sw::comparison_table(comparison, true);
    sw::comparison_json_text(comparison, report, report);
  });
  return 0;
}
