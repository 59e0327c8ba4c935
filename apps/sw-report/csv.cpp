#include <iostream>
#include <memory>

#include "commands.hpp"
#include "core/file.hpp"
#include "report/report_file.hpp"

namespace sw {
namespace {

struct CsvOptions {
  std::string report;
  std::string output;
};

int run_csv(const CsvOptions& options, const CommonOptions& common) {
  const ReportFile report = ReportFile::read(options.report);
  write_file(options.output, csv_text(report), common.force);
  std::cout << "wrote " << options.output << " (" << report.cells().size() << " rows)\n";
  return 0;
}

}  // namespace

void setup_csv(Program& program) {
  const auto options = std::make_shared<CsvOptions>();
  CLI::App& command = program.add_command(
      "csv", "Write one row a cell with every scalar of a report",
      {"sw-report csv results/llama.json -o llama.csv"},
      [options](const CommonOptions& common) { return run_csv(*options, common); });
  command.add_option("report", options->report, "Report (.json)")->required();
  command.add_option("-o,--output", options->output, "Table to write, .csv")->required();
}

}  // namespace sw
