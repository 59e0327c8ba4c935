#include "report/figure.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/cell_columns.hpp"

namespace sw {
namespace {

constexpr std::size_t kMostPanels = 9;

[[noreturn]] void refuse(const ReportFile& report, const std::string& what,
                         const std::vector<std::string>& choices) {
  std::string known;
  for (const std::string& choice : choices) known += (known.empty() ? "" : ", ") + choice;
  throw Error(ErrorKind::kUsage, what + " in " + report.path(),
              known.empty() ? "draw another report" : "it has: " + known);
}

/// Values of `field` among the cells, each once, in their order.
template <class Field>
std::vector<std::string> distinct(const ReportFile& report, Field field) {
  std::vector<std::string> list;
  for (const ReportCell& cell : report.cells()) {
    const std::string value = field(cell);
    if (std::ranges::find(list, value) == list.end()) list.push_back(value);
  }
  return list;
}

template <class Field>
void require_known(const ReportFile& report, const char* what, const std::string& wanted,
                   Field field) {
  if (wanted.empty()) return;
  const std::vector<std::string> known = distinct(report, field);
  if (std::ranges::find(known, wanted) == known.end()) {
    refuse(report, std::string("no ") + what + " '" + wanted + "'", known);
  }
}

const CellColumn& chosen_column(const ReportFile& report, const FigureRequest& request) {
  const std::vector<CellColumn>& columns = cell_columns(report.kind());
  const auto drawn = [&](const CellColumn& column) {
    if (column.text) return false;
    return std::ranges::any_of(report.cells(), [&](const ReportCell& cell) {
      return cell.status == "ok" && report.number(*cell.json, column.path);
    });
  };
  std::vector<std::string> names;
  for (const CellColumn& column : columns) {
    if (drawn(column)) names.push_back(column.key);
  }
  if (!request.value.empty()) {
    const auto it = std::ranges::find(columns, std::string_view(request.value), &CellColumn::key);
    if (it == columns.end() || !drawn(*it)) {
      refuse(report, "no value '" + request.value + "'", names);
    }
    return *it;
  }
  for (const char* key : {"recall", "ln_ratio", "score", "time_ms"}) {
    const auto it = std::ranges::find(columns, std::string_view(key), &CellColumn::key);
    if (it != columns.end() && drawn(*it)) return *it;
  }
  refuse(report, "nothing to draw", names);
}

/// Cells that the request asks for, by panel and series.
class Collector {
 public:
  Collector(const ReportFile& report, const FigureRequest& request)
      : report_(report), request_(request), column_(chosen_column(report, request)) {}

  Figure figure() {
    Figure figure;
    figure.y_label = column_.label;
    for (const ReportCell& cell : report_.cells()) {
      if (wanted(cell)) add(cell, figure);
    }
    std::erase_if(figure.panels, [](const FigurePanel& panel) { return panel.series.empty(); });
    if (figure.panels.empty()) {
      refuse(report_, "no cell has what this figure needs",
             distinct(report_, [](const ReportCell& cell) { return cell.method; }));
    }
    if (figure.panels.size() > kMostPanels) {
      refuse(report_, "more than " + std::to_string(kMostPanels) + " panels: name an input",
             distinct(report_, [](const ReportCell& cell) { return cell.input; }));
    }
    for (FigurePanel& panel : figure.panels) {
      for (FigureSeries& series : panel.series) {
        std::ranges::stable_sort(series.points, {}, &FigurePoint::x);
      }
    }
    switch (request_.kind) {
      case FigureKind::kDensity:
        figure.x_label = "Realised density";
        break;
      case FigureKind::kLayers:
        figure.x_label = "Layer";
        break;
      case FigureKind::kLength:
        figure.x_label = "Tokens";
        figure.log_x = true;
        figure.log_y = true;
        break;
    }
    return figure;
  }

 private:
  bool wanted(const ReportCell& cell) const {
    if (cell.status != "ok") return false;
    if (!request_.phase.empty() && cell.phase != request_.phase) return false;
    if (!request_.input.empty() && cell.input != request_.input) return false;
    if (!request_.methods.empty() &&
        std::ranges::find(request_.methods, cell.method) == request_.methods.end()) {
      return false;
    }
    return request_.kind != FigureKind::kLayers || !request_.density || !cell.density ||
           std::abs(*cell.density - *request_.density) < 1e-9;
  }

  void add(const ReportCell& cell, Figure& figure) const {
    switch (request_.kind) {
      case FigureKind::kDensity:
        return add_density(cell, figure);
      case FigureKind::kLayers:
        return add_layers(cell, figure);
      case FigureKind::kLength:
        return add_length(cell, figure);
    }
  }

  std::optional<FigurePoint> value(const ReportCell& cell) const {
    const auto read = [&](const std::string& path) { return report_.number(*cell.json, path); };
    const auto y = read(column_.path);
    if (!y || !std::isfinite(*y)) return std::nullopt;
    const std::string interval = column_.interval;
    const auto low = interval.empty() ? std::nullopt : read(interval + ".low");
    const auto high = interval.empty() ? std::nullopt : read(interval + ".high");
    const double scale = column_.scale;
    return FigurePoint{0.0, *y * scale, low.value_or(*y) * scale, high.value_or(*y) * scale};
  }

  void add_density(const ReportCell& cell, Figure& figure) const {
    auto point = value(cell);
    if (!point) return;
    FigureSeries& series = series_of(cell, cell.method, figure);
    if (cell.method == "dense") {
      series.level = true;
    } else {
      auto x = report_.number(*cell.json, cell.phase == "decode" ? "realised_density.decode"
                                                                 : "realised_density.sparse");
      if (!x) x = cell.density;
      if (!x) return;
      point->x = *x;
    }
    series.points.push_back(*point);
  }

  void add_layers(const ReportCell& cell, Figure& figure) const {
    // A metric's value is "metrics.NAME.mean"; its layers stand beside it.
    const std::string path = column_.path;
    const std::size_t end = path.rfind(".mean");
    if (end == std::string::npos) return;
    const std::vector<double> values =
        report_.numbers(*cell.json, path.substr(0, end) + ".per_layer");
    const std::vector<double> layers = report_.numbers(*cell.json, "layers");
    if (values.empty() || values.size() != layers.size()) return;
    std::string label = cell.method;
    if (cell.density && !request_.density) label += " at " + format_double(*cell.density);
    FigureSeries& series = series_of(cell, label, figure);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double y = values[i] * column_.scale;
      if (std::isfinite(y)) series.points.push_back({layers[i], y, y, y});
    }
  }

  void add_length(const ReportCell& cell, Figure& figure) const {
    auto point = value(cell);
    const auto tokens = report_.number(*cell.json, "shape.tokens");
    if (!point || !tokens) return;
    if (report_.text(*cell.json, "part") != "total") return;
    std::string label =
        report_.text(*cell.json, "implementation").value_or(cell.variant) + ": " + cell.method;
    if (cell.density) label += " at " + format_double(*cell.density);
    point->x = *tokens;
    series_of(cell, label, figure).points.push_back(*point);
  }

  FigureSeries& series_of(const ReportCell& cell, const std::string& label, Figure& figure) const {
    std::string title = cell.input;
    if (request_.kind == FigureKind::kLength) {  // a shape: "8192 tokens, 32/8 heads of 128, bf16"
      title = title.substr(std::min(title.find(", ") + 2, title.size()));
    }
    if (!cell.phase.empty()) title += ", " + cell.phase;
    auto panel = std::ranges::find(figure.panels, title, &FigurePanel::title);
    if (panel == figure.panels.end()) {
      panel = figure.panels.insert(figure.panels.end(), FigurePanel{title, {}});
    }
    auto series = std::ranges::find(panel->series, label, &FigureSeries::label);
    if (series == panel->series.end()) {
      series = panel->series.insert(panel->series.end(), FigureSeries{label, {}, false});
    }
    return *series;
  }

  const ReportFile& report_;
  const FigureRequest& request_;
  const CellColumn& column_;
};

}  // namespace

Figure make_figure(const ReportFile& report, const FigureRequest& request) {
  if ((request.kind == FigureKind::kLength) != (report.kind() == ReportKind::kProfile)) {
    throw Error(ErrorKind::kUsage,
                "this figure does not fit the report " + report.path() + " (" +
                    report_kind_name(report.kind()) + ")",
                "reports of timings are drawn against the length, others against density or layer");
  }
  require_known(report, "phase", request.phase, [](const ReportCell& cell) { return cell.phase; });
  require_known(report, "input", request.input, [](const ReportCell& cell) { return cell.input; });
  for (const std::string& method : request.methods) {
    require_known(report, "method", method, [](const ReportCell& cell) { return cell.method; });
  }
  return Collector(report, request).figure();
}

}  // namespace sw
