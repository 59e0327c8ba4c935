#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/report_file.hpp"

/// Figures for papers, as plain values: what is drawn, not how. `gnuplot.hpp` draws them.
namespace sw {

struct FigurePoint {
  double x = 0.0;
  double y = 0.0;
  double low = 0.0;  ///< ends of the interval, y itself where there is none
  double high = 0.0;
};

struct FigureSeries {
  std::string label;
  std::vector<FigurePoint> points;  ///< ascending in x
  bool level = false;               ///< one value for all x: a line across the panel
};

struct FigurePanel {
  std::string title;
  std::vector<FigureSeries> series;
};

struct Figure {
  std::string x_label;
  std::string y_label;
  bool log_x = false;  ///< to base 2
  bool log_y = false;
  std::vector<FigurePanel> panels;
};

enum class FigureKind {
  kDensity,  ///< a value against the realised density; one panel an input
  kLayers,   ///< a value against the layer, at one density; one panel an input
  kLength,   ///< a value against the length of the context; reports of timings
};

/// What to draw; empty fields stand for everything, or for the report's first value.
struct FigureRequest {
  FigureKind kind = FigureKind::kDensity;
  std::string value = {};                 ///< key of a column (cell_columns.hpp)
  std::string phase = {};                 ///< "prefill", "decode" or "both"
  std::string input = {};                 ///< name of a trace or task
  std::vector<std::string> methods = {};  ///< canonical SPECs
  std::optional<double> density = {};     ///< kLayers: requested density
};

/// Cells that are not ok, or lack the value, are left out. Throws Error(kUsage) when nothing is
/// left to draw or the request names what the report does not have (the message says what it has),
/// Error(kInput) for a damaged report.
Figure make_figure(const ReportFile& report, const FigureRequest& request);

}  // namespace sw
