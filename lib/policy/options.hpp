#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Options of a policy, each listed once with name, range and help and bound to the field that it
/// sets. Parsing a SPEC, the canonical SPEC in reports and the listing of `sw-eval methods` all
/// read this one list.
namespace sw {

struct OptionInfo {
  std::string name;
  std::string type;           ///< "int", "float", "bool" or "choice"
  std::string default_value;  ///< as text
  std::string range;          ///< "[1, inf)", "release | preprint", ...
  std::string help;
};

class OptionSet {
 public:
  void add(std::string name, bool& field, std::string help);
  void add(std::string name, std::int64_t& field, std::int64_t low, std::int64_t high,
           std::string help);
  /// Range [low, high], or (low, high] when `open_low`.
  void add(std::string name, double& field, double low, double high, bool open_low,
           std::string help);
  template <class Enum>
  void add(std::string name, Enum& field, std::vector<std::pair<std::string, Enum>> choices,
           std::string help) {
    std::vector<std::string> names;
    for (const auto& choice : choices) names.push_back(choice.first);
    add_choice(
        std::move(name), std::move(names), std::move(help),
        [&field, choices] {
          for (const auto& [text, value] : choices) {
            if (value == field) return text;
          }
          return std::string();
        },
        [&field, choices](std::size_t index) { field = choices[index].second; });
  }

  /// Throws Error(kUsage) when the option is unknown (with the nearest name) or out of range.
  void set(std::string_view name, std::string_view value);
  std::string get(std::string_view name) const;
  std::vector<OptionInfo> list() const;
  std::vector<std::string> names() const;

 private:
  struct Option {
    OptionInfo info;
    std::function<std::string()> get;
    std::function<void(std::string_view)> set;
  };

  void add_choice(std::string name, std::vector<std::string> choices, std::string help,
                  std::function<std::string()> get, std::function<void(std::size_t)> set);
  const Option& find(std::string_view name) const;

  std::vector<Option> options_;
};

/// "name:key=value,key=value" cut into its parts. Throws Error(kUsage) on anything else, an option
/// given twice included.
struct MethodSpec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;

  static MethodSpec parse(std::string_view text);
};

/// Canonical SPEC: the name, then the options of `actual` that differ from `defaults`, in the order
/// of the list. `always` are printed first whatever their value.
std::string canonical_spec(const std::string& name, const OptionSet& actual,
                           const OptionSet& defaults, const std::vector<std::string>& always = {});

inline constexpr const char* kTopPHelp =
    "budget=top_p, which it implies: share of the estimated mass";

inline constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

}  // namespace sw
