#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.hpp"

/// JSON lines: one object a line, as benchmarks publish their records. The file is mapped and only
/// the lines are indexed; a record is parsed when it is asked for, so that one broken line does not
/// hide the others, and every error names the file and the line.
namespace sw {

class JsonlFile {
 public:
  /// Maps `path` and finds its lines; blank lines are no records. Throws Error(kInput) when the
  /// file cannot be read or holds no record.
  explicit JsonlFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  std::int64_t size() const { return static_cast<std::int64_t>(lines_.size()); }

  /// Record `index` in [0, size()). Throws Error(kUsage) for another index, Error(kInput) when the
  /// line is not a JSON object in UTF-8.
  nlohmann::json record(std::int64_t index) const;
  /// "PATH:LINE" of a record, LINE counted from 1.
  std::string where(std::int64_t index) const;

 private:
  struct Line {
    std::int64_t number;  // in the file, from 1
    std::string_view text;
  };

  MappedFile file_;
  std::vector<Line> lines_;
};

/// Fields of a record. `where` is the record's place, for messages. Each throws Error(kInput) when
/// the field is missing or has another type; those with a fallback return it when the field is
/// missing or null.
std::string text_field(const nlohmann::json& record, const char* name, const std::string& where);
std::string text_field(const nlohmann::json& record, const char* name, const std::string& where,
                       const std::string& fallback);
std::int64_t int_field(const nlohmann::json& record, const char* name, const std::string& where,
                       std::int64_t fallback);
std::vector<std::string> texts_field(const nlohmann::json& record, const char* name,
                                     const std::string& where);
std::vector<std::string> texts_field(const nlohmann::json& record, const char* name,
                                     const std::string& where,
                                     const std::vector<std::string>& fallback);

}  // namespace sw
