#include "report/html_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <vector>

#include "core/base64.hpp"
#include "core/error.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "report/cell_columns.hpp"
#include "report/columns.hpp"
#include "report/findings.hpp"
#include "report/page_assets.hpp"
#include "report/report_arrays.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

// A page of 1,000 cells stays below 5 MB: maps that do not fit into these are left out.
constexpr std::size_t kHeatMapBytes = 2'000'000;
constexpr std::size_t kSelectionBytes = 800'000;
constexpr std::int64_t kSelectionBins = 96;
constexpr std::size_t kSelectionLayers = 4;

constexpr std::string_view kDigits64 =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : to_valid_utf8(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

/// JSON for the inside of a script element, where nothing may look like markup.
std::string script_json(const Json& json) {
  std::string out;
  for (char c : json.dump(-1, ' ', false, Json::error_handler_t::replace)) {
    if (c == '<' || c == '>' || c == '&') {
      static constexpr char kHex[] = "0123456789abcdef";
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  return out;
}

/// Base64 of the SHA-256 of a script, as a content security policy names it.
std::string script_hash(std::string_view script) {
  const std::string hex = sha256(std::as_bytes(std::span(script)));
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::strtoul(hex.substr(i, 2).c_str(), nullptr, 16)));
  }
  return to_base64(bytes);
}

/// Shortest number with about five digits, to keep pages small, whole numbers (tokens) exact; null
/// for what no axis can show.
Json rounded(double value) {
  if (!(std::abs(value) < 1e30)) return nullptr;
  if (std::abs(value) < 1e-30) return 0.0;
  if (value == std::trunc(value) && std::fabs(value) < 0x1p53) {
    return static_cast<std::int64_t>(value);
  }
  char text[32];
  std::snprintf(text, sizeof text, "%.5g", value);
  return std::strtod(text, nullptr);
}

Json rounded(const std::optional<double>& value) { return value ? rounded(*value) : Json(nullptr); }

/// A share of [0, 1] as two digits of base 64; ".." for values that are not there.
void append_share(std::string& text, double share) {
  if (!std::isfinite(share)) {
    text += "..";
    return;
  }
  const auto level = static_cast<std::size_t>(std::lround(std::clamp(share, 0.0, 1.0) * 4095));
  text += kDigits64[level >> 6];
  text += kDigits64[level & 63];
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

/// Makes the page's data of one report.
class PageData {
 public:
  PageData(const ReportFile& report, std::size_t& heat_bytes, std::size_t& selection_bytes)
      : report_(report), heat_bytes_(heat_bytes), selection_bytes_(selection_bytes) {
    if (report.kind() == ReportKind::kTrace && report.arrays_path()) {
      try {
        arrays_.emplace(report);
      } catch (const Error& error) {
        notes_.push_back(std::string(error.what()) + ": no maps by head, no selections.");
      }
    } else if (report.kind() == ReportKind::kTrace) {
      notes_.push_back("The HDF5 file is not beside this report: no maps by head, no selections.");
    }
  }

  Json json() {
    Json columns = Json::array();
    for (const CellColumn& column : cell_columns(report_.kind())) {
      columns.push_back({{"key", column.key},
                         {"label", column.label},
                         {"digits", column.digits},
                         {"help", column.help},
                         {"text", column.text}});
    }
    Json cells = Json::array();
    for (const ReportCell& cell : report_.cells()) cells.push_back(cell_json(cell));
    if (left_out_) notes_.push_back("Some maps are left out to keep this page small.");
    Json json = {{"kind", report_kind_name(report_.kind())},
                 {"file", file_name(report_.path())},
                 {"columns", columns},
                 {"cells", cells}};
    if (report_.kind() == ReportKind::kProfile) add_profile(json);
    json["notes"] = notes_;
    return json;
  }

 private:
  Json cell_json(const ReportCell& cell) {
    Json json = {
        {"id", cell.id},        {"method", cell.method}, {"density", rounded(cell.density)},
        {"input", cell.input},  {"phase", cell.phase},   {"variant", cell.variant},
        {"status", cell.status}};
    if (cell.status != "ok") {
      json["reason"] = cell.reason;
      return json;
    }
    Json values = Json::object();
    for (const CellColumn& column : cell_columns(report_.kind())) {
      if (column.text) {
        if (const auto text = report_.text(*cell.json, column.path)) values[column.key] = *text;
        continue;
      }
      const auto mean = scaled(cell, column.path, column.scale);
      if (!mean || rounded(*mean).is_null()) continue;
      const std::string interval = column.interval;
      const auto low =
          interval.empty() ? std::nullopt : scaled(cell, interval + ".low", column.scale);
      const auto high =
          interval.empty() ? std::nullopt : scaled(cell, interval + ".high", column.scale);
      const bool known = !rounded(low).is_null() && !rounded(high).is_null();
      values[column.key] =
          known ? Json::array({rounded(*mean), rounded(*low), rounded(*high)}) : rounded(*mean);
    }
    json["values"] = values;
    if (report_.kind() == ReportKind::kTrace) add_trace(cell, json);
    if (report_.kind() == ReportKind::kModel) add_model(cell, json);
    return json;
  }

  std::optional<double> scaled(const ReportCell& cell, const std::string& path,
                               double scale) const {
    auto x = report_.number(*cell.json, path);
    if (x) *x *= scale;
    return x;
  }

  Json rounded_list(const ReportCell& cell, const std::string& path) const {
    Json list = Json::array();
    for (double x : report_.numbers(*cell.json, path)) list.push_back(rounded(x));
    return list;
  }

  /// Milliseconds of each stage of a timing object; null when there is none.
  Json stages(const ReportCell& cell, const std::string& path, const std::string& leaf) const {
    if (!report_.find(*cell.json, path)) return nullptr;
    Json list = Json::array();
    for (const char* stage : {"pool", "sketch", "walk", "select", "attention"}) {
      list.push_back(rounded(scaled(cell, path + "." + stage + leaf, 1e3)));
    }
    return list;
  }

  void add_trace(const ReportCell& cell, Json& json) {
    const std::vector<double> layers = report_.numbers(*cell.json, "layers");
    json["layers"] = layers;
    json["recall"] = rounded_list(cell, "metrics.mass_recall.per_layer");
    json["gap"] = rounded_list(cell, "metrics.oracle_gap.per_layer");
    json["error"] = rounded_list(cell, "metrics.output_error.per_layer");
    json["stages"] = stages(cell, "latency.stages", ".median");
    add_loss(cell, json);
    if (!arrays_) return;
    add_heat_map(cell, layers.size(), json);
    add_selections(cell, json);
  }

  /// Parts of the loss of mass: the finest that the report has.
  void add_loss(const ReportCell& cell, Json& json) {
    const nlohmann::json* mean = report_.find(*cell.json, "attribution.mean");
    if (!mean) return;
    std::vector<std::string> names = {"block_mean", "sketch", "walk"};
    if (report_.number(*mean, "forced")) {
      names = {"forced",      "query_pooling", "key_pooling", "mask", "temperature",
               "aggregation", "interaction",   "sketch",      "walk"};
    }
    const auto parts_of = [&](const nlohmann::json& from) {
      Json parts = Json::array();
      for (const std::string& name : names) parts.push_back(rounded(report_.number(from, name)));
      return parts;
    };
    Json layers = Json::array();
    const nlohmann::json* per_layer = report_.find(*cell.json, "attribution.per_layer");
    if (per_layer && per_layer->is_array()) {
      for (const nlohmann::json& layer : *per_layer) layers.push_back(parts_of(layer));
    }
    json["loss"] = {{"parts", parts_of(*mean)},
                    {"layers", layers},
                    {"total", rounded(report_.number(*mean, "total"))},
                    {"sharing", rounded(report_.number(*mean, "sharing"))}};
  }

  /// Mass recall of each layer and head.
  void add_heat_map(const ReportCell& cell, std::size_t layers, Json& json) {
    if (cell.method == "dense") return;
    const auto array = arrays_->read(cell, "mass_recall");
    if (!array || array->shape.size() != 3 || array->values.empty() ||
        array->shape[0] != static_cast<std::int64_t>(layers)) {
      return;
    }
    const auto heads = static_cast<std::size_t>(array->shape[1]);
    const auto width = static_cast<std::size_t>(array->shape[2]);
    if (2 * layers * heads > heat_bytes_) {
      left_out_ = true;
      return;
    }
    std::string text;
    for (std::size_t row = 0; row < layers * heads; ++row) {
      double sum = 0;
      for (std::size_t c = 0; c < width; ++c) sum += array->values[row * width + c];
      append_share(text, sum / static_cast<double>(width));
    }
    heat_bytes_ -= text.size();
    json["heads"] = heads;
    json["heat"] = text;
  }

  /// The selections of some layers, spread over all that were saved.
  void add_selections(const ReportCell& cell, Json& json) {
    if (cell.phase != "prefill") return;
    const std::vector<std::int64_t> saved = arrays_->selection_layers(cell);
    const auto units = report_.number(*cell.json, "units");
    if (saved.empty() || !units || !(*units >= 1) || !(*units <= 1 << 20)) return;
    Json maps = Json::array();
    const std::size_t number = std::min(saved.size(), kSelectionLayers);
    for (std::size_t i = 0; i < number; ++i) {
      const std::size_t at = number == 1 ? 0 : i * (saved.size() - 1) / (number - 1);
      const auto blocks = static_cast<std::int64_t>(*units);
      const std::int64_t bins = std::min(blocks, kSelectionBins);
      const auto size = static_cast<std::size_t>(bins * (bins + 1) / 2);
      if (size > selection_bytes_) {
        left_out_ = true;
        break;
      }
      const SelectionMap map = arrays_->selection(cell, saved[at], blocks, kSelectionBins);
      std::string text;
      for (std::int64_t q = 0; q < map.bins; ++q) {
        for (std::int64_t k = 0; k <= q; ++k) {
          const double kept = map.kept[static_cast<std::size_t>(q * map.bins + k)];
          text += kDigits64[static_cast<std::size_t>(std::lround(std::clamp(kept, 0.0, 1.0) * 63))];
        }
      }
      selection_bytes_ -= text.size();
      maps.push_back({{"layer", map.layer}, {"blocks", blocks}, {"bins", bins}, {"kept", text}});
    }
    json["selections"] = maps;
  }

  void add_model(const ReportCell& cell, Json& json) const {
    json["prefill_stages"] = stages(cell, "latency.prefill_stages", "");
    json["decode_stages"] = stages(cell, "latency.decode_token_stages", "");
    json["hidden"] = rounded_list(cell, "hidden_error");
    const auto* groups = report_.find(*cell.json, "groups");
    if (!groups || !groups->is_array()) return;
    Json list = Json::array();
    for (const auto& group : *groups) {
      list.push_back({report_.text(group, "group").value_or(""),
                      rounded(report_.number(group, "score")),
                      rounded(report_.number(group, "samples"))});
    }
    json["groups"] = list;
  }

  void add_profile(Json& json) {
    Json crossovers = Json::array();
    if (const auto* list = report_.find(report_.json(), "crossovers"); list && list->is_array()) {
      for (const auto& item : *list) {
        crossovers.push_back({{"phase", report_.text(item, "phase").value_or("")},
                              {"method", report_.text(item, "method").value_or("")},
                              {"implementation", report_.text(item, "implementation").value_or("")},
                              {"density", rounded(report_.number(item, "density"))},
                              {"tokens", rounded(report_.number(item, "tokens"))}});
      }
    }
    json["crossovers"] = crossovers;
    if (const auto* list = report_.find(report_.json(), "notes"); list && list->is_array()) {
      for (const auto& note : *list) {
        if (note.is_string()) notes_.push_back(note.get<std::string>());
      }
    }
  }

  const ReportFile& report_;
  std::size_t& heat_bytes_;
  std::size_t& selection_bytes_;
  std::optional<ReportArrays> arrays_;
  std::vector<std::string> notes_;
  bool left_out_ = false;
};

/// Sentences with the names in back quotes as code.
std::string sentence_html(const std::string& text) {
  std::string html;
  bool inside = false;
  for (const std::string& part : split(text, '`')) {
    html += inside ? "<code>" + escaped(part) + "</code>" : escaped(part);
    inside = !inside;
  }
  return html;
}

std::string title_of(const ReportFile& report) {
  switch (report.kind()) {
    case ReportKind::kTrace: {
      std::string title = "Attention on traces";
      if (!report.cells().empty() && report.cells().front().input_json) {
        const auto model = report.text(*report.cells().front().input_json, "model");
        if (model) title += ": " + *model;
      }
      return title;
    }
    case ReportKind::kModel:
      return "Whole model: " + report.text(report.json(), "protocol.model").value_or("");
    case ReportKind::kProfile:
      return "Timings";
    default:
      return "Scores: " + report.text(report.json(), "benchmark").value_or("");
  }
}

std::string pairs_html(const std::vector<ReportScalar>& list) {
  std::string html = "<dl>";
  for (const ReportScalar& scalar : list) {
    html += "<dt>" + escaped(scalar.path) + "</dt><dd>" + escaped(scalar.text) + "</dd>";
  }
  return html + "</dl>\n";
}

std::string inputs_html(const ReportFile& report) {
  const auto* inputs = report.find(report.json(), "inputs");
  if (!inputs || !inputs->is_array() || inputs->empty()) return "";
  std::string html = "<h4>Inputs</h4>\n";
  for (const auto& input : *inputs) {
    if (input.is_object()) html += pairs_html(scalars(input));
  }
  return html;
}

std::string provenance_html(const ReportFile& report, std::size_t index) {
  const std::string id = std::to_string(index);
  std::string html = "<section class=\"made\" id=\"made-" + id + "\" aria-label=\"How report " +
                     id + " was made\">\n<h3>How this was made</h3>\n";
  const std::string seconds =
      report.number(report.json(), "seconds")
          ? " in " + fixed(*report.number(report.json(), "seconds"), 1) + " s"
          : "";
  html += "<p>" + escaped(file_name(report.path())) + ", " + escaped(report.created()) + seconds +
          ". This command makes every number and figure of the section:</p>\n";
  html += "<div class=\"command\"><pre><code id=\"command-" + id + "\">" +
          escaped(shell_line(report.command())) +
          "</code></pre><button type=\"button\" class=\"copy\" data-copy=\"command-" + id +
          "\">Copy</button></div>\n";
  html += "<details><summary>Environment, inputs and protocol</summary>\n<h4>Environment</h4>\n";
  html += pairs_html(scalars(*report.find(report.json(), "environment")));
  html += inputs_html(report);
  if (const auto* protocol = report.find(report.json(), "protocol")) {
    html += "<h4>Protocol</h4>\n" + pairs_html(scalars(*protocol));
  }
  return html + "</details>\n</section>\n";
}

}  // namespace

std::string_view html_unavailable() { return kPlotMissing; }

std::string html_text(const std::vector<ReportFile>& reports) {
  if (!html_unavailable().empty()) {
    throw Error(ErrorKind::kUnsupported,
                "this build has no plotting library (missing: " + std::string(kPlotMissing) + ")",
                "install node-d3-scale, node-d3-axis, node-d3-shape and node-d3-selection, or give "
                "-D SW_D3_DIR=node_modules to cmake, and build again");
  }
  std::size_t heat_bytes = kHeatMapBytes;
  std::size_t selection_bytes = kSelectionBytes;
  Json data = Json::array();
  std::string summary;
  std::string sections;
  std::string contents;
  for (std::size_t i = 0; i < reports.size(); ++i) {
    const ReportFile& report = reports[i];
    const std::string id = std::to_string(i);
    const std::string title = title_of(report);
    data.push_back(PageData(report, heat_bytes, selection_bytes).json());
    summary += "<article><h3><a href=\"#report-" + id + "\">" + escaped(title) + "</a></h3>\n<ul>";
    const std::vector<Finding> list = findings(report);
    for (const Finding& finding : list) {
      summary += std::string("<li class=\"finding ") + tone_name(finding.tone) + "\"><span>" +
                 sentence_html(finding.text) + "</span>";
      if (!finding.details.empty()) {
        summary += "<ul>";
        for (const std::string& detail : finding.details) {
          summary += "<li>" + sentence_html(detail) + "</li>";
        }
        summary += "</ul>";
      }
      summary += "</li>\n";
    }
    if (list.empty()) {
      summary += "<li class=\"finding neutral\"><span>No method is compared here.</span></li>";
    }
    summary += "</ul></article>\n";
    contents += "<a href=\"#report-" + id + "\">" + escaped(title) + "</a>\n";
    sections += "<section class=\"report\" id=\"report-" + id + "\" aria-labelledby=\"title-" + id +
                "\">\n<h2 id=\"title-" + id + "\">" + escaped(title) +
                "</h2>\n<div class=\"content\" data-report=\"" + id + "\"></div>\n" +
                provenance_html(report, i) + "</section>\n";
  }
  const std::string library = "\n" + std::string(kPlotLibrary);
  const std::string script = "\n" + std::string(kPageScript);
  std::string html = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  html += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  html +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; script-src "
      "'sha256-" +
      script_hash(library) + "' 'sha256-" + script_hash(script) + "'\">\n";
  html += "<meta name=\"color-scheme\" content=\"light dark\">\n";
  html += "<link rel=\"icon\" href=\"data:,\">\n<title>Sketch&amp;Walk evaluation</title>\n";
  html += "<style>\n" + std::string(kPageStyle) + "</style>\n</head>\n<body>\n";
  html += "<a class=\"skip\" href=\"#summary\">Skip to the summary</a>\n<header>\n";
  html +=
      "<h1>Sketch&amp;Walk evaluation</h1>\n<nav aria-label=\"Contents\"><a "
      "href=\"#summary\">Summary</a>\n" +
      contents +
      "</nav>\n<label class=\"theme\">Theme <select id=\"theme\"><option "
      "value=\"\">Automatic</option><option value=\"light\">Light</option><option "
      "value=\"dark\">Dark</option></select></label>\n</header>\n<main>\n";
  html +=
      "<section id=\"summary\" aria-labelledby=\"summary-title\">\n<h2 "
      "id=\"summary-title\">Summary</h2>\n" +
      summary + "</section>\n";
  html +=
      "<noscript><p class=\"note\">Figures and tables need JavaScript, which is off. <code>"
      "sw-report csv</code> gives the numbers as a table.</p></noscript>\n";
  html += sections +
          "</main>\n<footer><p>Made by sw-report. Figures: D3.</p><details>"
          "<summary>Licence of D3</summary><p>" +
          escaped(kPlotLicence) + "</p></details></footer>\n";
  html += "<div id=\"tip\" role=\"status\" aria-live=\"polite\" hidden></div>\n";
  html += "<script type=\"application/json\" id=\"data\">" + script_json(data) + "</script>\n";
  html += "<script>" + library + "</script>\n<script>" + script + "</script>\n</body>\n</html>\n";
  return html;
}

}  // namespace sw
