#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/error.hpp"

/// Host side of the decode kernels: shared memory and launches.
namespace sw::cuda {

/// Lets a kernel use `bytes` of dynamic shared memory, and asks for the largest share of the cache
/// as shared memory: kernels that want different shares cannot run beside each other.
template <class Kernel>
void allow_shared_memory(Kernel kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "shared memory of a decode kernel");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "shared memory of a decode kernel");
}

/// Whether a kernel that calls wait_for_grid_before() really does: as built for compute capability
/// 9.0 or later, not from older PTX by the driver.
template <class Kernel>
bool waits_for_grid_before(Kernel kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "query of a decode kernel");
  return attributes.ptxVersion >= 90;
}

/// Launches a kernel that calls wait_for_grid_before(): with `early`, which takes compute
/// capability 9.0, its thread blocks may start before the kernel before in the stream ends.
template <class Kernel, class Arguments>
void launch_early(Kernel kernel, dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                  bool early, const Arguments& arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments), "launch of a decode kernel");
}

}  // namespace sw::cuda
