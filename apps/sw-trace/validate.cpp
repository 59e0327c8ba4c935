#include <iostream>
#include <memory>

#include "commands.hpp"
#include "trace/trace.hpp"

namespace sw {
namespace {

int run_validate(const std::vector<std::string>& files) {
  bool good = true;
  for (const std::string& file : files) {
    const auto problems = validate_trace(file);
    good = good && problems.empty();
    std::cout << file << ": "
              << (problems.empty() ? "good"
                                   : std::to_string(problems.size()) + " problem" +
                                         (problems.size() > 1 ? "s" : ""))
              << "\n";
    for (const Error& problem : problems) {
      std::cout << "  error: " << problem.what() << "\n";
      if (!problem.hint().empty()) std::cout << "  hint: " << problem.hint() << "\n";
    }
  }
  return good ? 0 : 1;
}

}  // namespace

void setup_validate(Program& program) {
  const auto files = std::make_shared<std::vector<std::string>>();
  CLI::App& command = program.add_command(
      "validate", "Check traces wholly, every value of q, k and v too, and list all problems",
      {"sw-trace validate trace.h5", "sw-trace validate traces/*.safetensors"},
      [files](const CommonOptions&) { return run_validate(*files); });
  command.add_option("file", *files, "Traces")->required();
}

}  // namespace sw
