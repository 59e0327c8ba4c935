#include "report/report_file.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/text.hpp"
#include "report/profile_report.hpp"
#include "report/report.hpp"
#include "report/score_report.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxReportBytes = std::uint64_t{1} << 30;
constexpr int kMaxDepth = 16;  // reports have eight levels

Error damaged(const std::string& file, const std::string& what) {
  return Error(ErrorKind::kInput, "'" + file + "' " + what,
               "the report is damaged or was changed; make it again with the command in it");
}

ReportKind kind_of(const Json& json, const std::string& file) {
  if (json.contains("benchmark") && json.contains("tasks")) return ReportKind::kScore;
  if (const auto protocol = json.find("protocol"); protocol != json.end()) {
    const Json kind = protocol->is_object() ? protocol->value("kind", Json()) : Json();
    for (ReportKind known : {ReportKind::kTrace, ReportKind::kModel, ReportKind::kProfile}) {
      if (kind == report_kind_name(known)) return known;
    }
  }
  throw Error(ErrorKind::kInput, "'" + file + "' is not a report",
              "sw-eval and sw-profile write reports with -o OUT, as OUT.json");
}

int newest_version(ReportKind kind) {
  if (kind == ReportKind::kProfile) return kProfileReportVersion;
  return kind == ReportKind::kScore ? kScoreReportVersion : kReportVersion;
}

const char* cells_key(ReportKind kind) {
  if (kind == ReportKind::kProfile) return "measurements";
  return kind == ReportKind::kScore ? "tasks" : "cells";
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

/// Makes the cells of a report that passed the checks of its head.
class CellReader {
 public:
  explicit CellReader(const ReportFile& report) : report_(report) {}

  ReportCell read(const Json& json, std::size_t index) const {
    if (!json.is_object()) throw damaged(report_.path(), "has a cell that is no object");
    ReportCell cell;
    char number[24];
    std::snprintf(number, sizeof number, "%04zu", index);
    cell.id = report_.text(json, "id").value_or(number);
    cell.json = &json;
    cell.status = required(json, "status");
    cell.reason = report_.text(json, "reason").value_or("");
    cell.density = report_.number(json, "density");
    if (report_.kind() == ReportKind::kScore) {
      cell.input = required(json, "task");
      return cell;
    }
    cell.method = required(json, "method");
    cell.name = cell.method.substr(0, cell.method.find(':'));
    switch (report_.kind()) {
      case ReportKind::kTrace:
        cell.phase = required(json, "phase");
        read_trace_input(json, cell);
        break;
      case ReportKind::kModel:
        cell.phase = report_.text(report_.json(), "protocol.phase").value_or("");
        cell.input = required(json, "input");
        break;
      default:
        cell.phase = required(json, "phase");
        cell.variant = required(json, "part") + ", " + required(json, "implementation");
        cell.input = shape_text(json);
    }
    return cell;
  }

 private:
  std::string required(const Json& json, const char* key) const {
    auto text = report_.text(json, key);
    if (!text) throw damaged(report_.path(), std::string("has a cell without '") + key + "'");
    return *text;
  }

  void read_trace_input(const Json& json, ReportCell& cell) const {
    const Json* inputs = report_.find(report_.json(), "inputs");
    const auto index = report_.number(json, "input");
    if (!inputs || !inputs->is_array() || !index || !(*index >= 0) ||
        !(*index < static_cast<double>(inputs->size()))) {
      throw damaged(report_.path(), "has a cell whose 'input' is not among the inputs");
    }
    const Json& input = (*inputs)[static_cast<std::size_t>(*index)];
    cell.input = file_name(report_.text(input, "path").value_or(""));
    cell.input_json = &input;
  }

  std::string shape_text(const Json& json) const {
    const auto part = [&](const char* key) {
      return format_double(report_.number(json, std::string("shape.") + key).value_or(0));
    };
    std::string text = part("tokens") + " tokens, " + part("num_heads") + "/" +
                       part("num_kv_heads") + " heads of " + part("head_dim") + ", " +
                       report_.text(json, "shape.dtype").value_or("");
    if (part("block") != "64") text += ", block " + part("block");
    if (part("batch") != "1") text += ", batch " + part("batch");
    return text;
  }

  const ReportFile& report_;
};

void collect(const Json& value, const std::string& path, std::vector<ReportScalar>& list) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) {
      collect(child, path.empty() ? key : path + "." + key, list);
    }
  } else if (value.is_number_float()) {
    list.push_back({path, format_double(value.get<double>())});
  } else if (value.is_string()) {
    list.push_back({path, value.get<std::string>()});
  } else if (value.is_number() || value.is_boolean()) {
    list.push_back({path, value.dump()});
  }
}

std::string quoted_for_csv(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

const char* report_kind_name(ReportKind kind) {
  switch (kind) {
    case ReportKind::kTrace:
      return "trace";
    case ReportKind::kModel:
      return "model";
    case ReportKind::kProfile:
      return "profile";
    default:
      return "score";
  }
}

ReportFile ReportFile::read(const std::string& path) {
  ReportFile report;
  report.path_ = path;
  report.json_ = std::make_shared<const Json>(
      parse_json_object(read_file(path, kMaxReportBytes), "'" + path + "'", kMaxDepth));
  const Json& json = *report.json_;
  report.kind_ = kind_of(json, path);
  const auto version = report.number(json, "schema_version");
  if (!version || *version < 1) throw damaged(path, "has no schema_version");
  if (*version > newest_version(report.kind_)) {
    throw Error(ErrorKind::kInput,
                "'" + path + "' has schema_version " + format_double(*version) +
                    ", and this program knows versions up to " +
                    std::to_string(newest_version(report.kind_)),
                "read it with the version of sw-report that came with the program that wrote it");
  }
  report.created_ = report.text(json, "created").value_or("");
  const Json* command = report.find(json, "command");
  if (!command || !command->is_array()) throw damaged(path, "has no command");
  for (const Json& argument : *command) {
    if (!argument.is_string()) throw damaged(path, "has a command that is not a list of texts");
    report.command_.push_back(argument.get<std::string>());
  }
  const Json* environment = report.find(json, "environment");
  if (!environment || !environment->is_object()) throw damaged(path, "has no environment");
  const Json* cells = report.find(json, cells_key(report.kind_));
  if (!cells || !cells->is_array()) {
    throw damaged(path, std::string("has no list '") + cells_key(report.kind_) + "'");
  }
  const CellReader reader(report);
  for (const Json& cell : *cells) {
    report.cells_.push_back(reader.read(cell, report.cells_.size()));
  }
  return report;
}

std::optional<std::string> ReportFile::arrays_path() const {
  const std::string arrays = std::filesystem::path(path_).replace_extension(".h5").string();
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(arrays, ignored)) return std::nullopt;
  return arrays;
}

const Json* ReportFile::find(const Json& object, std::string_view path) const {
  const Json* value = &object;
  for (const std::string& key : split(path, '.')) {
    if (value->is_null()) return nullptr;
    if (!value->is_object()) {
      throw damaged(path_, "holds no object where '" + std::string(path) + "' leads through");
    }
    const auto it = value->find(key);
    if (it == value->end()) return nullptr;
    value = &*it;
  }
  return value->is_null() ? nullptr : value;
}

std::optional<double> ReportFile::number(const Json& object, std::string_view path) const {
  const Json* value = find(object, path);
  if (!value) return std::nullopt;
  if (!value->is_number()) {
    throw damaged(path_, "has '" + std::string(path) + "' that is not a number");
  }
  return value->get<double>();
}

std::optional<std::string> ReportFile::text(const Json& object, std::string_view path) const {
  const Json* value = find(object, path);
  if (!value) return std::nullopt;
  if (!value->is_string()) {
    throw damaged(path_, "has '" + std::string(path) + "' that is not a text");
  }
  return value->get<std::string>();
}

std::vector<double> ReportFile::numbers(const Json& object, std::string_view path) const {
  const Json* list = find(object, path);
  if (!list) return {};
  std::vector<double> values;
  if (list->is_array()) {
    for (const Json& value : *list) {
      if (!value.is_number() && !value.is_null()) break;
      values.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN()
                                       : value.get<double>());
    }
  }
  if (!list->is_array() || values.size() != list->size()) {
    throw damaged(path_, "has '" + std::string(path) + "' that is not a list of numbers");
  }
  return values;
}

std::vector<ReportScalar> scalars(const Json& object) {
  std::vector<ReportScalar> list;
  collect(object, "", list);
  return list;
}

std::string shell_line(const std::vector<std::string>& command) {
  std::string line;
  for (const std::string& argument : command) {
    if (!line.empty()) line += ' ';
    const bool plain = !argument.empty() && argument.find_first_not_of(
                                                "abcdefghijklmnopqrstuvwxyz"
                                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                                "_-+./:,=@%") == std::string::npos;
    if (plain) {
      line += argument;
      continue;
    }
    line += '\'';
    for (char c : argument) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

std::string csv_text(const ReportFile& report) {
  static const std::vector<std::string> kNames = {"id",    "method",  "density", "input",
                                                  "phase", "variant", "status",  "reason"};
  std::vector<std::map<std::string, std::string>> rows;
  std::set<std::string> columns;  // of the scalars
  for (const ReportCell& cell : report.cells()) {
    auto& row = rows.emplace_back();
    for (const ReportScalar& scalar : scalars(*cell.json)) {
      if (std::ranges::find(kNames, scalar.path) != kNames.end()) continue;
      row[scalar.path] = scalar.text;
      columns.insert(scalar.path);
    }
  }
  std::string text;
  const auto append = [&](const std::string& value, bool first) {
    if (!first) text += ',';
    text += quoted_for_csv(value);
  };
  for (const std::string& name : kNames) append(name, &name == &kNames.front());
  for (const std::string& column : columns) append(column, false);
  text += '\n';
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const ReportCell& cell = report.cells()[i];
    append(cell.id, true);
    append(cell.method, false);
    append(cell.density ? format_double(*cell.density) : "", false);
    for (const auto* value :
         {&cell.input, &cell.phase, &cell.variant, &cell.status, &cell.reason}) {
      append(*value, false);
    }
    for (const std::string& column : columns) {
      const auto it = rows[i].find(column);
      append(it == rows[i].end() ? "" : it->second, false);
    }
    text += '\n';
  }
  return text;
}

}  // namespace sw
