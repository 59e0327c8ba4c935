#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "common/evaluation.hpp"
#include "core/error.hpp"
#include "eval/evaluate.hpp"
#include "report/files.hpp"
#include "report/gate.hpp"
#include "report/json_report.hpp"
#include "report/table.hpp"

namespace sw {
namespace {

constexpr int kExitGate = 4;

struct TraceOptions {
  TraceExperiment experiment;
  bool json = false;
  std::string output;
  std::vector<std::string> fail_if;
};

/// Throws when there is nothing to report: every cell failed.
void require_some_values(const std::vector<CellRecord>& cells) {
  const auto failed = [](const CellRecord& cell) { return cell.status == CellStatus::kFailed; };
  if (!std::all_of(cells.begin(), cells.end(), failed)) return;
  throw Error(ErrorKind::kInput,
              "every cell failed, so there is nothing to report; the first one: " +
                  cells.front().method + ": " + cells.front().reason);
}

void print_next_steps(const ReportPaths& paths, const TraceOptions& options) {
  const std::string& file = options.experiment.files.front();
  std::cout << "\nReport: " << paths.json << " (every number), " << paths.hdf5
            << " (arrays by layer, head and query block)\n"
            << "What to try next:\n"
            << "  sw-eval methods                      all methods and their options\n";
  if (!options.experiment.save_selection) {
    std::cout << "  sw-eval trace " << file
              << " --save-selection -o OUT   keep the selections too\n";
  }
  std::cout
      << "  sw-eval trace " << file
      << " --method sink_window sketchwalk:hadamard=unbiased,temperature=1,causal_sketch=true,"
         "key_pool=1,walk=none --density 0.2 -o OUT\n";
}

int run_trace(const TraceOptions& options, const CommonOptions& common,
              const std::vector<std::string>& argv) {
  if (options.output.empty() && !options.json) {
    throw Error(ErrorKind::kUsage, "there is no place for the report",
                "give one with -o OUT, or print it with --json");
  }
  const TraceExperiment& experiment = options.experiment;
  const EvalOptions eval = eval_options(experiment, common.seed);
  const auto policies = make_policies(experiment.methods, common.seed);
  std::vector<Gate> gates;
  for (const std::string& text : options.fail_if) gates.push_back(Gate::parse(text));
  const auto backend = make_backend(common.backend, common.cpu_isa);
  const ReportPaths paths = report_paths(options.output);
  if (!options.output.empty()) check_report_paths(paths, common.force);
  std::vector<TraceReader> traces;
  for (const std::string& file : experiment.files) traces.emplace_back(file);

  Report report;
  report.created = utc_now();
  report.command = argv;
  report.environment = describe_environment(*backend);
  report.protocol = trace_protocol(experiment, eval, policies);

  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < traces.size(); ++i) {
    const TraceReader& trace = traces[i];
    const TraceInfo& info = trace.info();
    if (!common.quiet) {
      std::cerr << trace.path() << " (" << i + 1 << " of " << traces.size() << "): layers "
                << info.first_layer << " to " << info.last_layer() << ", " << info.num_heads << "/"
                << info.num_kv_heads << " heads of " << info.head_dim << ", " << info.prefill_tokens
                << " tokens\n";
      if (experiment.phase == "both" && info.total_tokens == info.prefill_tokens) {
        std::cerr << "  it has no decode steps: prefill only\n";
      }
    }
    report.inputs.push_back(describe(trace));
    auto cells = evaluate_trace(trace, i, policies, eval, *backend, common.quiet);
    std::move(cells.begin(), cells.end(), std::back_inserter(report.cells));
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  require_some_values(report.cells);

  const ReportSummary summaries = summarize_report(report);
  if (!options.output.empty()) write_report(report, summaries, paths, common.force);
  if (options.json) {
    std::cout << to_json_text(report, summaries);
  } else {
    std::cout << report_table(report, summaries);
    print_next_steps(paths, options);
  }

  int code = 0;
  for (const CellRecord& cell : report.cells) {
    if (cell.status == CellStatus::kFailed) code = kExitSomeFailed;
  }
  if (code == kExitSomeFailed) std::cerr << "some cells failed; the report has the reasons\n";
  if (gates.empty()) return code;
  for (const Gate& gate : gates) {
    const std::vector<std::string> lines = unmet(gate, summaries.cells);
    if (lines.empty()) continue;
    code = kExitGate;
    std::cerr << "gate not met: --fail-if '" << gate.text << "'\n";
    for (const std::string& line : lines) std::cerr << "  " << line << "\n";
  }
  return code;
}

}  // namespace

void setup_trace(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<TraceOptions>();
  CLI::App& command = program.add_command(
      "trace", "Evaluate dumped traces of q, k and v: recall, output error, density, latency",
      {"sw-eval trace llama.h5 -o results/llama",
       "sw-eval trace a.h5 b.safetensors --method sink_window sketchwalk:preset=preprint "
       "--density 0.1 0.2 -o out",
       "sw-eval trace llama.h5 --phase decode --save-selection -o out",
       "sw-eval trace llama.h5 --fail-if 'mass_recall<0.8@sketchwalk@0.2' -o out"},
      [options, argv](const CommonOptions& common) { return run_trace(*options, common, argv); });
  command
      .add_option("files", options->experiment.files,
                  "Traces, HDF5 or safetensors (sw-trace makes them)")
      ->required();
  add_options(command, options->experiment);
  command.add_option("-o,--output", options->output, "Report: writes OUT.json and OUT.h5");
  command.add_flag("--json", options->json, "Print the JSON report instead of the table");
  command.add_option("--fail-if", options->fail_if,
                     "Exit with 4 if metric<value (or <=, >, >=) holds for a cell; "
                     "@METHOD or @METHOD@DENSITY behind it narrows the cells");
}

}  // namespace sw
