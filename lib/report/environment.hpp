#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace sw {

/// Where and with what the numbers were made.
struct Environment {
  std::string version;  ///< of this project
  std::string git_sha;  ///< of the source tree at build time, or "unknown"
  std::optional<bool> git_dirty;
  std::string build_type;
  std::string compiler;
  std::string system;            ///< kernel name, version and machine
  std::string cpu;               ///< model name, or "unknown"
  std::vector<std::string> isa;  ///< vector extensions that the CPU has, of those that matter here
  std::optional<std::string> gpu;     ///< name, multiprocessors and memory; nothing without CUDA
  std::optional<std::string> driver;  ///< CUDA version of the driver
  std::optional<std::string> clocks;  ///< largest SM and memory clock
  int threads = 1;
  std::string backend;
  std::string backend_detail;
  std::vector<std::pair<std::string, std::string>> libraries;  ///< name, version
};

/// The environment of this process; backend, GPU and the libraries that only programs link are left
/// to the caller.
Environment current_environment();

}  // namespace sw
