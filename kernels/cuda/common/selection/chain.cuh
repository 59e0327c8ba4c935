#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "kernels/cuda/common/error.hpp"

/// Kernels that follow one another in a stream and start before the one ahead has ended (from
/// sm_90): each calls wait_for_previous() before it touches memory, and so does every kernel of the
/// chain, so that all that came before is done by then.
namespace sw::cuda {

/// Waits until the kernels before this one have ended and their writes can be seen, then lets the
/// next one start its own wait.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

/// Launches a kernel that begins with wait_for_previous().
template <class... Params, class... Args>
void launch_chained(const char* name, void (*kernel)(Params...), dim3 grid, int threads,
                    std::size_t shared, cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name);
}

}  // namespace sw::cuda
