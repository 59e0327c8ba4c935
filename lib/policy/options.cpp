#include "policy/options.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

[[noreturn]] void out_of_range(const std::string& name, std::string_view value,
                               const std::string& range) {
  throw Error(ErrorKind::kUsage,
              "option '" + name + "': " + std::string(value) + " is outside " + range);
}

}  // namespace

void OptionSet::add(std::string name, bool& field, std::string help) {
  add<bool>(std::move(name), field, {{"true", true}, {"false", false}}, std::move(help));
  options_.back().info.type = "bool";
}

void OptionSet::add(std::string name, std::int64_t& field, std::int64_t low, std::int64_t high,
                    std::string help) {
  const std::string range =
      "[" + std::to_string(low) + ", " + (high == kNoLimit ? "inf)" : std::to_string(high) + "]");
  options_.push_back({{name, "int", std::to_string(field), range, std::move(help)},
                      [&field] { return std::to_string(field); },
                      [&field, name, range, low, high](std::string_view text) {
                        const std::int64_t value = parse_int(text, "option '" + name + "'");
                        if (value < low || value > high) out_of_range(name, text, range);
                        field = value;
                      }});
}

void OptionSet::add(std::string name, double& field, double low, double high, bool open_low,
                    std::string help) {
  const std::string range = (open_low ? "(" : "[") + format_double(low) + ", " +
                            (std::isinf(high) ? "inf)" : format_double(high) + "]");
  options_.push_back({{name, "float", format_double(field), range, std::move(help)},
                      [&field] { return format_double(field); },
                      [&field, name, range, low, high, open_low](std::string_view text) {
                        const double value = parse_double(text, "option '" + name + "'");
                        if (value < low || value > high || (open_low && value == low)) {
                          out_of_range(name, text, range);
                        }
                        field = value;
                      }});
}

void OptionSet::add_choice(std::string name, std::vector<std::string> choices, std::string help,
                           std::function<std::string()> get, std::function<void(std::size_t)> set) {
  std::string range;
  for (const auto& choice : choices) range += (range.empty() ? "" : " | ") + choice;
  std::string default_value = get();
  options_.push_back({{name, "choice", std::move(default_value), range, std::move(help)},
                      std::move(get),
                      [name, choices, set = std::move(set)](std::string_view text) {
                        const auto found = std::find(choices.begin(), choices.end(), text);
                        if (found == choices.end()) {
                          throw Error(
                              ErrorKind::kUsage,
                              "option '" + name + "' has no value '" + std::string(text) + "'",
                              suggestion(text, choices));
                        }
                        set(static_cast<std::size_t>(found - choices.begin()));
                      }});
}

const OptionSet::Option& OptionSet::find(std::string_view name) const {
  for (const Option& option : options_) {
    if (option.info.name == name) return option;
  }
  throw Error(ErrorKind::kUsage, "unknown option '" + std::string(name) + "'",
              options_.empty() ? "this method has no options" : suggestion(name, names()));
}

void OptionSet::set(std::string_view name, std::string_view value) { find(name).set(value); }

std::string OptionSet::get(std::string_view name) const { return find(name).get(); }

std::vector<OptionInfo> OptionSet::list() const {
  std::vector<OptionInfo> infos;
  for (const Option& option : options_) infos.push_back(option.info);
  return infos;
}

std::vector<std::string> OptionSet::names() const {
  std::vector<std::string> names;
  for (const Option& option : options_) names.push_back(option.info.name);
  return names;
}

MethodSpec MethodSpec::parse(std::string_view text) {
  MethodSpec spec;
  const std::size_t colon = text.find(':');
  spec.name = text.substr(0, colon);
  if (spec.name.empty()) {
    throw Error(ErrorKind::kUsage, "method '" + std::string(text) + "' has no name",
                "write name or name:option=value,option=value; sw-eval methods lists both");
  }
  if (colon == std::string_view::npos) return spec;
  for (const std::string& part : split(text.substr(colon + 1), ',')) {
    const std::size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error(ErrorKind::kUsage,
                  "method '" + std::string(text) + "': '" + part + "' is not option=value");
    }
    const std::string name = part.substr(0, equals);
    for (const auto& option : spec.options) {
      if (option.first == name) {
        throw Error(ErrorKind::kUsage,
                    "method '" + std::string(text) + "': option '" + name + "' is given twice");
      }
    }
    spec.options.emplace_back(name, part.substr(equals + 1));
  }
  return spec;
}

std::string canonical_spec(const std::string& name, const OptionSet& actual,
                           const OptionSet& defaults, const std::vector<std::string>& always) {
  std::string text = name;
  char separator = ':';
  for (const std::string& option : actual.names()) {
    const std::string value = actual.get(option);
    const bool forced = std::find(always.begin(), always.end(), option) != always.end();
    if (!forced && value == defaults.get(option)) continue;
    text += separator + option + "=" + value;
    separator = ',';
  }
  return text;
}

}  // namespace sw
