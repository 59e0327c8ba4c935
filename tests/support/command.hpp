#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

/// Running programs in tests.
namespace sw::testing {

struct CommandResult {
  int code = -1;       ///< exit code, -1 when killed by a signal
  std::string output;  ///< stdout, and stderr too unless redirected
};

/// Runs a shell command line.
inline CommandResult run_command(const std::string& line) {
  std::FILE* pipe = popen(("{ " + line + "; } 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run " + line);
  CommandResult result;
  std::array<char, 4096> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    result.output.append(buffer.data(), got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) result.code = WEXITSTATUS(status);
  return result;
}

/// The Python that tests use: SW_PYTHON, else that of the system, whose packages hold h5py and
/// jsonschema, else the first on PATH.
inline std::string python() {
  if (const char* chosen = std::getenv("SW_PYTHON")) return chosen;
  return access("/usr/bin/python3", X_OK) == 0 ? "/usr/bin/python3" : "python3";
}

/// Whether that Python can import `module`.
inline bool python_has(const std::string& module) {
  return run_command(python() + " -c 'import " + module + "'").code == 0;
}

/// Validates `report` against `schema` with Python's jsonschema; empty output when it is valid.
inline CommandResult validate_json(const std::string& schema, const std::string& report) {
  return run_command(python() +
                     " -W ignore -c 'import json, sys, jsonschema; "
                     "jsonschema.Draft202012Validator.check_schema(json.load(open(sys.argv[1]))); "
                     "[print(list(e.path), e.message) for e in jsonschema.Draft202012Validator("
                     "json.load(open(sys.argv[1]))).iter_errors(json.load(open(sys.argv[2])))]' '" +
                     schema + "' '" + report + "'");
}

}  // namespace sw::testing
