#include "report/environment.hpp"

#include <hdf5.h>
#include <openssl/crypto.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "build_info.hpp"
#include "core/parallel.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

/// Value of the first line "key : value" of /proc/cpuinfo, "" when there is none.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return {};
}

std::string hdf5_version() {
  hdf5::initialise();  // too late once the library has been asked for anything
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  H5get_libversion(&major, &minor, &release);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

}  // namespace

Environment current_environment() {
  Environment environment;
  environment.version = build_info::kVersion;
  environment.git_sha = build_info::kGitSha;
  environment.git_dirty = build_info::kGitDirty;
  environment.build_type = build_info::kBuildType;
  environment.compiler = build_info::kCompiler;
  utsname system{};
  if (uname(&system) == 0) {
    const std::string release = system.release;
    environment.system = std::string(system.sysname) + " " + release.substr(0, release.find('-')) +
                         " " + system.machine;
  }
  environment.cpu = cpuinfo("model name");
  if (environment.cpu.empty()) environment.cpu = "unknown";
  constexpr std::array kExtensions = {"avx2",        "fma",      "avx512f", "avx512_bf16",
                                      "avx512_vnni", "amx_bf16", "amx_tile"};
  std::istringstream flags(cpuinfo("flags"));
  for (std::string flag; flags >> flag;) {
    if (std::find(kExtensions.begin(), kExtensions.end(), flag) != kExtensions.end()) {
      environment.isa.push_back(flag);
    }
  }
  environment.threads = num_threads();
  environment.libraries = {{"HDF5", hdf5_version()},
                           {"nlohmann-json", std::to_string(NLOHMANN_JSON_VERSION_MAJOR) + "." +
                                                 std::to_string(NLOHMANN_JSON_VERSION_MINOR) + "." +
                                                 std::to_string(NLOHMANN_JSON_VERSION_PATCH)},
                           {"OpenSSL", OpenSSL_version(OPENSSL_VERSION_STRING)}};
  return environment;
}

}  // namespace sw
