#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/error.hpp"

/// Host side of the decode kernels' shared memory.
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

}  // namespace sw::cuda
