#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "policy/list.hpp"

namespace sw {
namespace {

void print_json(const std::vector<MethodInfo>& methods) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const MethodInfo& method : methods) {
    nlohmann::ordered_json options = nlohmann::ordered_json::array();
    for (const OptionInfo& option : method.options) {
      options.push_back({{"name", option.name},
                         {"type", option.type},
                         {"default", option.default_value},
                         {"range", option.range},
                         {"help", option.help}});
    }
    list.push_back({{"name", method.name},
                    {"summary", method.summary},
                    {"source", method.source},
                    {"granularity", method.granularity},
                    {"options", options}});
  }
  std::cout << list.dump(2) << "\n";
}

/// `text` padded with spaces to `width`, and at least one.
std::string pad(const std::string& text, std::size_t width) {
  return text + std::string(std::max<std::size_t>(text.size() + 1, width) - text.size(), ' ');
}

void print_text(const std::vector<MethodInfo>& methods) {
  for (const MethodInfo& method : methods) {
    std::cout << method.name << ": " << method.summary << "\n"
              << "  source: " << method.source << "\n"
              << "  one selection for each " << method.granularity << "\n";
    std::size_t name_width = 0;
    std::size_t default_width = 0;
    for (const OptionInfo& option : method.options) {
      name_width = std::max(name_width, option.name.size() + 2);
      default_width = std::max(default_width, option.default_value.size() + 2);
    }
    for (const OptionInfo& option : method.options) {
      std::cout << "    " << pad(option.name, name_width)
                << pad(option.default_value, default_width) << option.help << " {" << option.range
                << "}\n";
    }
    std::cout << "\n";
  }
  std::cout << "Write a method as NAME or NAME:option=value,option=value, e.g.\n"
               "  sketchwalk:preset=preprint,sketch_dim=64\n";
}

}  // namespace

void setup_methods(Program& program) {
  const auto json = std::make_shared<bool>(false);
  CLI::App& command = program.add_command(
      "methods", "List the methods with their options, defaults, ranges and sources",
      {"sw-eval methods", "sw-eval methods --json"}, [json](const CommonOptions&) {
        const std::vector<MethodInfo> methods = list_methods();
        *json ? print_json(methods) : print_text(methods);
        return 0;
      });
  command.add_flag("--json", *json, "As JSON");
}

}  // namespace sw
