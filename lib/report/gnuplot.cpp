#include "report/gnuplot.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

// Okabe and Ito's palette: told apart by readers who do not see all colours.
constexpr std::array<const char*, 8> kColors = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                "#E69F00", "#56B4E9", "#000000", "#8C8C8C"};
constexpr int kPanelWidth = 620;
constexpr int kPanelHeight = 420;

/// A text in single quotes, in which gnuplot reads nothing but a doubled quote.
std::string in_quotes(std::string_view text) {
  std::string out = "'";
  for (char c : to_valid_utf8(text)) {
    if (c == '\'') out += '\'';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "'";
}

std::string terminal(FigureFormat format, std::size_t columns, std::size_t rows) {
  const auto width = static_cast<int>(columns) * kPanelWidth;
  const auto height = static_cast<int>(rows) * kPanelHeight;
  const auto size = [&](double scale) {
    return format_double(width * scale) + "," + format_double(height * scale);
  };
  switch (format) {
    case FigureFormat::kSvg:
      return "svg noenhanced background 'white' font 'Helvetica,12' size " + size(1);
    case FigureFormat::kPng:
      return "pngcairo noenhanced background 'white' font 'Helvetica,18' size " + size(1.5);
    default:
      return "pdfcairo noenhanced font 'Helvetica,10' size " + size(1.0 / 96);
  }
}

std::string axis_of_lengths(const FigurePanel& panel) {
  std::vector<double> lengths;
  for (const FigureSeries& series : panel.series) {
    for (const FigurePoint& point : series.points) lengths.push_back(point.x);
  }
  std::ranges::sort(lengths);
  const auto last = std::unique(lengths.begin(), lengths.end());
  lengths.erase(last, lengths.end());
  std::string tics;
  for (double x : lengths) tics += (tics.empty() ? "" : ", ") + format_double(x);
  // A margin beside the first and last length, or gnuplot drops their labels.
  const std::string range =
      format_double(lengths.front() / 1.1) + ":" + format_double(lengths.back() * 1.1);
  return "set xtics (" + tics + ")\nset xrange [" + range + "]\n";
}

std::string panel_script(const Figure& figure, const FigurePanel& panel, std::size_t index) {
  std::string script;
  std::string plots;
  for (std::size_t i = 0; i < panel.series.size(); ++i) {
    const FigureSeries& series = panel.series[i];
    const std::string name = "$p" + std::to_string(index) + "s" + std::to_string(i);
    script += name + " << EOD\n";
    for (const FigurePoint& p : series.points) {
      for (double value : {p.x, p.y, p.low, p.high}) script += format_double(value) + " ";
      script += "\n";
    }
    script += "EOD\n";
    const std::string style = std::string(" linecolor rgb '") + kColors[i % kColors.size()] +
                              "' dashtype " + std::to_string(1 + i / kColors.size());
    plots += plots.empty() ? "plot " : ", \\\n     ";
    if (series.level) {
      plots += format_double(series.points.front().y) + " with lines linewidth 1" + style;
    } else {
      const bool intervals = std::ranges::any_of(
          series.points, [](const FigurePoint& p) { return p.low != p.y || p.high != p.y; });
      plots +=
          name + (intervals ? " using 1:2:3:4 with yerrorlines" : " using 1:2 with linespoints");
      plots += " linewidth 1.5 pointsize 0.6 pointtype " + std::to_string(4 + i % 10) + style;
    }
    plots += " title " + in_quotes(series.label);
  }
  script += "set title " + in_quotes(panel.title) + "\n";
  if (figure.log_x) script += axis_of_lengths(panel);
  return script + plots + "\n";
}

}  // namespace

FigureFormat figure_format(std::string_view path) {
  const std::string ending = std::filesystem::path(path).extension().string();
  if (ending == ".svg") return FigureFormat::kSvg;
  if (ending == ".png") return FigureFormat::kPng;
  if (ending == ".pdf") return FigureFormat::kPdf;
  throw Error(ErrorKind::kUsage, "cannot draw '" + std::string(path) + "'",
              "name the figure .svg, .png or .pdf");
}

std::string gnuplot_script(const Figure& figure, FigureFormat format) {
  const auto columns =
      static_cast<std::size_t>(std::ceil(std::sqrt(static_cast<double>(figure.panels.size()))));
  const std::size_t rows = (figure.panels.size() + columns - 1) / columns;
  std::string script = "set encoding utf8\nset terminal " + terminal(format, columns, rows) + "\n";
  script += "set xlabel " + in_quotes(figure.x_label) + "\nset ylabel " +
            in_quotes(figure.y_label) + "\n";
  script +=
      "set grid linewidth 0.5 linecolor rgb '#cccccc'\nset border 3\nset xtics nomirror\nset ytics "
      "nomirror\n";
  script += "set key outside below left Left reverse samplen 2\n";
  script += figure.log_x ? "set logscale x 2\n"
                         : "set autoscale xfix\nset offsets graph 0.04, graph 0.04, 0, 0\n";
  if (figure.log_y) script += "set logscale y\n";
  if (figure.panels.size() > 1) {
    script += "set multiplot layout " + std::to_string(rows) + "," + std::to_string(columns) + "\n";
  }
  for (std::size_t i = 0; i < figure.panels.size(); ++i) {
    script += panel_script(figure, figure.panels[i], i);
  }
  if (figure.panels.size() > 1) script += "unset multiplot\n";
  return script;
}

std::string run_gnuplot(const std::string& script) {
  // gnuplot reads the script from a file of our own, whose name no report can choose.
  const std::string folder = std::filesystem::temp_directory_path().string();
  PendingFile file(folder + "/sw-report-" + std::to_string(getpid()) + ".gnuplot", false);
  file.write(script);
  // In the C locale gnuplot warns that it has no degree sign.
  const std::string command = "LC_ALL=C.UTF-8 gnuplot '" + file.temporary_path() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) {
    throw Error(ErrorKind::kResource, "cannot start gnuplot",
                "try again with fewer programs running");
  }
  std::string image;
  std::array<char, 65536> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    image.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (code == 127) {
    throw Error(ErrorKind::kUnsupported, "gnuplot is not installed, and it draws the figures",
                "install it (Debian and Ubuntu: gnuplot-nox), or write its script with --script");
  }
  if (code != 0 || image.empty()) {
    throw Error(ErrorKind::kResource, "gnuplot failed",
                "its own message stands above; --script writes what it was given");
  }
  return image;
}

}  // namespace sw
