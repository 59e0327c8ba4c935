#include "policy/method_file.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

constexpr std::uint64_t kMostBytes = 1 << 20;

/// One value of an option as a SPEC has it. A separator in it would make it several.
std::string value_text(const nlohmann::json& value, const std::string& name) {
  if (value.is_boolean()) return value.get<bool>() ? "true" : "false";
  if (value.is_number()) return value.dump();
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    if (text.find_first_of(",|") == std::string::npos) return text;
  }
  throw Error(ErrorKind::kUsage, name + " is not a text without ',' and '|', number or boolean",
              "write a list for several values: [32, 64]");
}

std::string option_text(const nlohmann::json& value, const std::string& name) {
  if (!value.is_array()) return value_text(value, name);
  std::string text;
  for (const auto& item : value) text += (text.empty() ? "" : "|") + value_text(item, name);
  return text;
}

}  // namespace

bool is_method_file(std::string_view spec) { return spec.ends_with(".json"); }

std::string parse_method_file(std::string_view text, const std::string& title) {
  constexpr int kDeepest = 3;
  const JsonFields fields(parse_json_object(text, title, kDeepest), title);
  const std::vector<std::string> known = {"description", "source", "method", "options"};
  for (const std::string& key : fields.keys()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Error(ErrorKind::kUsage, fields.name(key) + " is not a key of a method",
                  suggestion(key, known));
    }
  }
  fields.text("description");
  fields.text("source");
  std::string spec = fields.text("method").value_or("");
  if (spec.empty() || spec.find_first_of(":,|=") != std::string::npos) {
    throw Error(ErrorKind::kUsage, title + " names no method",
                "write \"method\": \"NAME\" and its \"options\"; sw-eval methods lists both");
  }
  const auto options = fields.object("options");
  if (!options) return spec;
  char separator = ':';
  for (const std::string& key : options->keys()) {
    const std::string name = options->name(key);
    const nlohmann::json* value = options->find(key);
    if (value == nullptr || key.empty() || key.find_first_of(":,|=") != std::string::npos) {
      throw Error(ErrorKind::kUsage, name + " is not an option with a value");
    }
    spec += separator + key + "=" + option_text(*value, name);
    separator = ',';
  }
  return spec;
}

std::string resolve_method(const std::string& spec) {
  if (!is_method_file(spec)) return spec;
  return parse_method_file(read_file(spec, kMostBytes), "'" + spec + "'");
}

}  // namespace sw
