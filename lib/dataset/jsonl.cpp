#include "dataset/jsonl.hpp"

#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace sw {
namespace {

using nlohmann::json;

const json* find_field(const json& record, const char* name) {
  const auto it = record.find(name);
  return it == record.end() || it->is_null() ? nullptr : &*it;
}

const json& require_field(const json& record, const char* name, const std::string& where) {
  if (const json* field = find_field(record, name)) return *field;
  std::string known;
  for (const auto& item : record.items()) known += (known.empty() ? "" : ", ") + item.key();
  throw Error(ErrorKind::kInput, where + ": the field '" + name + "' is missing",
              "the record has: " + (known.empty() ? "no fields" : known));
}

[[noreturn]] void fail_type(const char* name, const std::string& where, const char* wanted,
                            const json& found) {
  throw Error(ErrorKind::kInput, where + ": the field '" + name + "' must be " + wanted +
                                     ", but it is " + found.type_name());
}

std::string to_text(const json& field, const char* name, const std::string& where) {
  if (!field.is_string()) fail_type(name, where, "a string", field);
  return field.get<std::string>();
}

std::vector<std::string> to_texts(const json& field, const char* name, const std::string& where) {
  constexpr const char* kWanted = "a list of strings";
  if (!field.is_array()) fail_type(name, where, kWanted, field);
  std::vector<std::string> texts;
  for (const json& item : field) {
    if (!item.is_string()) fail_type(name, where, kWanted, item);
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

}  // namespace

JsonlFile::JsonlFile(const std::string& path) : file_(path) {
  const auto bytes = file_.bytes();
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  for (std::int64_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) lines_.push_back({number, line});
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  }
  if (lines_.empty()) {
    throw Error(ErrorKind::kInput, "'" + path + "' holds no records",
                "a JSON lines file has one JSON object on each line");
  }
}

json JsonlFile::record(std::int64_t index) const {
  if (index < 0 || index >= size()) {
    throw Error(ErrorKind::kUsage, "'" + path() + "' has no record " + std::to_string(index),
                "records are numbered from 0 to " + std::to_string(size() - 1));
  }
  const Line& line = lines_[static_cast<std::size_t>(index)];
  json value;
  try {
    value = json::parse(line.text);
  } catch (const json::exception& error) {
    throw Error(ErrorKind::kInput, where(index) + ": not valid JSON (" + error.what() + ")",
                "each line must hold one complete JSON object in UTF-8");
  }
  if (!value.is_object()) {
    throw Error(ErrorKind::kInput,
                where(index) + ": a record must be a JSON object, but it is " + value.type_name());
  }
  return value;
}

std::string JsonlFile::where(std::int64_t index) const {
  return path() + ":" + std::to_string(lines_.at(static_cast<std::size_t>(index)).number);
}

std::string text_field(const json& record, const char* name, const std::string& where) {
  return to_text(require_field(record, name, where), name, where);
}

std::string text_field(const json& record, const char* name, const std::string& where,
                       const std::string& fallback) {
  const json* field = find_field(record, name);
  return field ? to_text(*field, name, where) : fallback;
}

std::int64_t int_field(const json& record, const char* name, const std::string& where,
                       std::int64_t fallback) {
  const json* field = find_field(record, name);
  if (!field) return fallback;
  if (!field->is_number_integer()) fail_type(name, where, "a whole number", *field);
  return field->get<std::int64_t>();
}

std::vector<std::string> texts_field(const json& record, const char* name,
                                     const std::string& where) {
  return to_texts(require_field(record, name, where), name, where);
}

std::vector<std::string> texts_field(const json& record, const char* name, const std::string& where,
                                     const std::vector<std::string>& fallback) {
  const json* field = find_field(record, name);
  return field ? to_texts(*field, name, where) : fallback;
}

}  // namespace sw
