#include "kernels/cuda/common/selection/launch_limits.hpp"

#include <algorithm>
#include <atomic>
#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/device_attribute.hpp"

namespace sw::cuda {
namespace {

constexpr int kMaxStages = 8;
std::atomic<int> portable_products = 0;

}  // namespace

int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

bool has_warpgroups() {
  return portable_products == 0 && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

PortableProducts::PortableProducts() { ++portable_products; }
PortableProducts::~PortableProducts() { --portable_products; }

int pipeline_stages(int stage_bytes, int other_bytes) {
  const int available = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - other_bytes;
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
