#include <iostream>
#include <memory>

#include "commands.hpp"
#include "report/compare_reports.hpp"

namespace sw {
namespace {

constexpr int kExitGate = 4;

struct CompareOptions {
  std::string a;
  std::string b;
  bool all = false;
  bool json = false;
  std::vector<std::string> fail_if;
};

int run_compare(const CompareOptions& options) {
  const ReportFile a = ReportFile::read(options.a);
  const ReportFile b = ReportFile::read(options.b);
  std::vector<Gate> gates;
  for (const std::string& text : options.fail_if) {
    gates.push_back(Gate::parse(text, comparison_gate_metrics(a.kind())));
  }
  const ReportComparison comparison = compare_reports(a, b);
  if (options.json) {
    std::cout << comparison_json_text(comparison, a, b);
  } else {
    std::cout << "A: " << options.a << "\nB: " << options.b << "\n\n"
              << comparison_table(comparison, options.all);
  }
  int code = 0;
  for (const Gate& gate : gates) {
    const std::vector<std::string> lines = unmet(gate, comparison);
    if (lines.empty()) continue;
    code = kExitGate;
    std::cerr << "gate not met: --fail-if '" << gate.text << "'\n";
    for (const std::string& line : lines) std::cerr << "  " << line << "\n";
  }
  return code;
}

}  // namespace

void setup_compare(Program& program) {
  const auto options = std::make_shared<CompareOptions>();
  CLI::App& command = program.add_command(
      "compare", "Compare two reports cell by cell, paired where their samples are there",
      {"sw-report compare before.json after.json",
       "sw-report compare main.json change.json --fail-if 'worse>0' 'ratio:attention_ms>1.2'",
       "sw-report compare a.json b.json --fail-if 'mass_recall<-0.005@sketchwalk@0.2'"},
      [options](const CommonOptions&) { return run_compare(*options); });
  command.add_option("a", options->a, "First report (.json)")->required();
  command.add_option("b", options->b, "Second report (.json)")->required();
  command.add_flag("--all", options->all, "Show every metric, not only the main ones");
  command.add_flag("--json", options->json, "Print JSON instead of the table");
  command.add_option("--fail-if", options->fail_if,
                     "Exit with 4 if metric<value (or <=, >, >=) holds for a cell: metric is the "
                     "change B - A, ratio:metric is B / A, worse is 1 where a verdict is worse; "
                     "@METHOD or @METHOD@DENSITY behind it narrows the cells");
}

}  // namespace sw
