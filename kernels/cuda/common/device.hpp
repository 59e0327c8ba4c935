#pragma once

#include <string>
#include <vector>

/// What the CUDA runtime says of the GPUs of this machine, for reports.
namespace sw::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0;  ///< compute capability
  int minor = 0;
  int multiprocessors = 0;
  long long memory_bytes = 0;
  int clock_khz = 0;         ///< largest SM clock
  int memory_clock_khz = 0;  ///< largest memory clock
  int driver_version = 0;    ///< CUDA version of the driver, e.g. 13000
  int runtime_version = 0;
};

/// Every visible device; empty, with the runtime's reason in `why`, when there is none.
std::vector<DeviceInfo> list_devices(std::string& why);

}  // namespace sw::cuda
