#include "kernels/cuda/common/device.hpp"

#include <cuda_runtime_api.h>

namespace sw::cuda {

std::vector<DeviceInfo> list_devices(std::string& why) {
  std::vector<DeviceInfo> devices;
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    why = cudaGetErrorString(status);
    cudaGetLastError();
    return devices;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, i); status != cudaSuccess) {
      why = cudaGetErrorString(status);
      return devices;
    }
    DeviceInfo info;
    info.name = properties.name;
    info.major = properties.major;
    info.minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.memory_bytes = static_cast<long long>(properties.totalGlobalMem);
    cudaDeviceGetAttribute(&info.clock_khz, cudaDevAttrClockRate, i);
    cudaDeviceGetAttribute(&info.memory_clock_khz, cudaDevAttrMemoryClockRate, i);
    cudaDriverGetVersion(&info.driver_version);
    cudaRuntimeGetVersion(&info.runtime_version);
    devices.push_back(std::move(info));
  }
  return devices;
}

}  // namespace sw::cuda
