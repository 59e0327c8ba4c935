#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

/// What all programs share: the common options, exit codes, how errors and help look, and options
/// from a JSON file. A program is a `Program`, one `add_command` for each subcommand, and `run`.
namespace sw {

/// The options that every command takes (interfaces.md, "Commands").
struct CommonOptions {
  int threads = 0;  ///< set before the command runs; never 0 then
  std::uint64_t seed = 0;
  std::string backend = "auto";  ///< auto, reference, cpu or cuda
  std::string cpu_isa = "auto";  ///< what the CPU backend is to use, instead of the widest
  bool force = false;            ///< replace existing output
  bool quiet = false;            ///< no progress on stderr
};

class Program {
 public:
  Program(const std::string& name, const std::string& description);

  /// Adds a subcommand with the common options. `examples` are command lines, shown under its help.
  /// `run` gets the common options and returns the exit code (interfaces.md: 0 done, 3 some cells
  /// failed, 4 a gate was not met); it throws sw::Error for 1 and 2. The caller adds the command's
  /// own options to the result, bound to variables that `run` owns.
  CLI::App& add_command(const std::string& name, const std::string& description,
                        const std::vector<std::string>& examples,
                        std::function<int(const CommonOptions&)> run);

  /// Parses, runs one command and returns the exit code of the process. Errors go to stderr as
  /// "error: ..." and "hint: ..."; nothing is thrown. A disk or file-size limit that is hit is an
  /// error of the write, not a signal.
  int run(int argc, char** argv);

 private:
  int parse_and_run(std::vector<std::string> arguments);

  CLI::App app_;
  CommonOptions common_;
  std::string config_;
  std::function<int()> chosen_;
};

/// Name and version of this program for `created_by` and reports: "sw-trace 0.1.0".
std::string program_version(const std::string& name);

}  // namespace sw
