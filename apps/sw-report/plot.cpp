#include <iostream>
#include <map>
#include <memory>

#include "commands.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "report/figure.hpp"
#include "report/gnuplot.hpp"

namespace sw {
namespace {

struct PlotOptions {
  std::string report;
  std::string against;
  FigureRequest request;
  double density = 0.0;
  bool script = false;
  std::string output;
};

const std::map<std::string, FigureKind> kKinds = {{"density", FigureKind::kDensity},
                                                  {"layer", FigureKind::kLayers},
                                                  {"tokens", FigureKind::kLength}};

int run_plot(const PlotOptions& options, const CommonOptions& common) {
  const ReportFile report = ReportFile::read(options.report);
  FigureRequest request = options.request;
  request.kind = !options.against.empty()                ? kKinds.at(options.against)
                 : report.kind() == ReportKind::kProfile ? FigureKind::kLength
                                                         : FigureKind::kDensity;
  if (options.density > 0.0) request.density = options.density;
  const Figure figure = make_figure(report, request);
  const FigureFormat format = options.script ? FigureFormat::kSvg : figure_format(options.output);
  PendingFile file(options.output, common.force);
  const std::string script = gnuplot_script(figure, format);
  file.write(options.script ? script : run_gnuplot(script));
  file.commit();
  std::cout << "wrote " << options.output << " (" << figure.panels.size()
            << (figure.panels.size() == 1 ? " panel)\n" : " panels)\n");
  return 0;
}

}  // namespace

void setup_plot(Program& program) {
  const auto options = std::make_shared<PlotOptions>();
  CLI::App& command = program.add_command(
      "plot", "Draw a figure for a paper (SVG, PNG or PDF, by gnuplot)",
      {"sw-report plot results/llama.json -o recall.svg",
       "sw-report plot results/llama.json --value error --method sketchwalk:preset=release "
       "sink_window -o error.pdf",
       "sw-report plot results/llama.json --against layer --value gap --density 0.2 -o gap.png",
       "sw-report plot results/h100.json --phase prefill -o times.svg"},
      [options](const CommonOptions& common) { return run_plot(*options, common); });
  command.add_option("report", options->report, "Report (.json)")->required();
  command
      .add_option("--against", options->against,
                  "density: realised density (default); layer: each layer; tokens: length of the "
                  "context (reports of sw-profile, their default)")
      ->check(CLI::IsMember({"density", "layer", "tokens"}));
  command.add_option("--value", options->request.value,
                     "What to draw: recall, gap, topk, error, cosine, ln_ratio, kl, top, score, "
                     "time_ms, ... (an unknown one lists what the report has)");
  command.add_option("--phase", options->request.phase, "Only cells of this phase");
  command.add_option("--input", options->request.input, "Only this trace or task");
  command.add_option("--method", options->request.methods, "Only these methods (canonical SPECs)");
  command
      .add_option("--density", options->density, "Only this requested density (--against layer)")
      ->check(CLI::Range(1e-9, 1.0));
  command.add_flag("--script", options->script, "Write gnuplot's script with the data instead");
  command.add_option("-o,--output", options->output, "Figure to write: .svg, .png or .pdf")
      ->required();
}

}  // namespace sw
