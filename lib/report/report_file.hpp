#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Reports that were written before, of any kind, for the programs that only read them: checked for
/// what their readers use, with the cells of all kinds in one form.
namespace sw {

enum class ReportKind { kTrace, kModel, kProfile, kScore };
/// "trace", "model", "profile" or "score".
const char* report_kind_name(ReportKind kind);

/// One measurement of a report. The fields name it; its values are in the JSON object.
struct ReportCell {
  std::string id;                 ///< "0003", the group of the HDF5 file too
  std::string method;             ///< canonical SPEC; "" in score reports
  std::string name;               ///< of the method, without its options
  std::optional<double> density;  ///< as requested
  std::string input;              ///< name of the trace's file, task, or shape
  std::string phase;              ///< "prefill", "decode", "both" or ""
  std::string variant;            ///< of profiles: "attention, avx512"; else ""
  std::string status;             ///< "ok", "skipped" or "failed"
  std::string reason;
  const nlohmann::json* json = nullptr;        ///< an object, owned by the report
  const nlohmann::json* input_json = nullptr;  ///< what the report says of a trace; else nullptr
};

/// A value of a cell with its place: "metrics.mass_recall.mean".
struct ReportScalar {
  std::string path;
  std::string text;  ///< as CSV shows it: the shortest number that reads back, or the text itself
};

class ReportFile {
 public:
  /// Reads `path` and checks what all readers use. Throws Error(kInput) for a file that cannot be
  /// read, is no report of a known kind, is damaged, or has a newer schema_version.
  static ReportFile read(const std::string& path);

  const std::string& path() const { return path_; }
  ReportKind kind() const { return kind_; }
  const std::string& created() const { return created_; }  ///< UTC
  const std::vector<std::string>& command() const { return command_; }
  const nlohmann::json& json() const { return *json_; }
  const std::vector<ReportCell>& cells() const { return cells_; }
  /// The HDF5 file of the same name, when there is one.
  std::optional<std::string> arrays_path() const;

  /// The value at `path` ("metrics.mass_recall.mean") in a cell, or in any object of this report;
  /// nothing where it is absent or null. Throw Error(kInput) when it has another type.
  std::optional<double> number(const nlohmann::json& object, std::string_view path) const;
  std::optional<std::string> text(const nlohmann::json& object, std::string_view path) const;
  /// A list of numbers, NaN for null; empty when absent.
  std::vector<double> numbers(const nlohmann::json& object, std::string_view path) const;
  /// An object or list; nullptr when absent or null.
  const nlohmann::json* find(const nlohmann::json& object, std::string_view path) const;

 private:
  std::string path_;
  ReportKind kind_ = ReportKind::kTrace;
  std::string created_;
  std::vector<std::string> command_;
  std::shared_ptr<const nlohmann::json> json_;
  std::vector<ReportCell> cells_;
};

/// All numbers, texts and booleans of an object, in the order of their names; lists are left out.
std::vector<ReportScalar> scalars(const nlohmann::json& object);

/// argv as a line for a shell.
std::string shell_line(const std::vector<std::string>& command);

/// One header row and one row a cell: the fields that name it, then every scalar of any cell,
/// empty where a cell has none (RFC 4180, with \n).
std::string csv_text(const ReportFile& report);

}  // namespace sw
