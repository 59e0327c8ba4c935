#include <iostream>
#include <memory>

#include "commands.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "report/html_report.hpp"

namespace sw {
namespace {

struct HtmlOptions {
  std::vector<std::string> reports;
  std::string output;
};

int run_html(const HtmlOptions& options, const CommonOptions& common) {
  PendingFile file(options.output, common.force);
  std::vector<ReportFile> reports;
  for (const std::string& path : options.reports) reports.push_back(ReportFile::read(path));
  const std::string html = html_text(reports);
  file.write(html);
  file.commit();
  std::cout << "wrote " << options.output << " (" << format_bytes(html.size())
            << "); open it in a browser, it needs nothing else\n";
  return 0;
}

}  // namespace

void setup_html(Program& program) {
  const auto options = std::make_shared<HtmlOptions>();
  CLI::App& command = program.add_command(
      "html", "Write one page with a summary, figures and tables that opens anywhere",
      {"sw-report html results/llama.json -o llama.html",
       "sw-report html trace.json model.json timings.json -o all.html"},
      [options](const CommonOptions& common) { return run_html(*options, common); });
  command
      .add_option("reports", options->reports,
                  "Reports (.json); the .h5 beside each gives the maps")
      ->required();
  command.add_option("-o,--output", options->output, "Page to write, .html")->required();
}

}  // namespace sw
