#include "kernels/cuda/common/selection/launch_limits.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

constexpr int kMaxStages = 8;
std::atomic<int> portable_products = 0;

int attribute(cudaDeviceAttr name) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "query of the GPU");
  check(cudaDeviceGetAttribute(&value, name, device), "query of the GPU");
  return value;
}

}  // namespace

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

bool has_warpgroups() {
  return portable_products == 0 && attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

PortableProducts::PortableProducts() { ++portable_products; }
PortableProducts::~PortableProducts() { --portable_products; }

int pipeline_stages(int stage_bytes, int other_bytes) {
  const int available = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - other_bytes;
  const int stages = std::min(kMaxStages, available / stage_bytes);
  if (stages < 2) {
    throw Error(ErrorKind::kUnsupported,
                "the GPU's shared memory (" + std::to_string(available + other_bytes) +
                    " bytes a block) is too small for block selection",
                "use --backend cpu");
  }
  return stages;
}

}  // namespace sw::cuda
