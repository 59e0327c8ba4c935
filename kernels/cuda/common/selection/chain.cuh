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

/// The launch of a kernel that begins with wait_for_previous(), from sm_90 in clusters of `cluster`
/// CTAs along x.
class ChainedLaunch {
 public:
  ChainedLaunch(dim3 grid, int threads, std::size_t shared, cudaStream_t stream,
                unsigned cluster = 1) {
    attributes_[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes_[0].val.programmaticStreamSerializationAllowed = 1;
    attributes_[1].id = cudaLaunchAttributeClusterDimension;
    attributes_[1].val.clusterDim.x = cluster;
    attributes_[1].val.clusterDim.y = 1;
    attributes_[1].val.clusterDim.z = 1;
    config_.gridDim = grid;
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = shared;
    config_.stream = stream;
    config_.attrs = attributes_;
    config_.numAttrs = cluster > 1 ? 2 : 1;
  }
  ChainedLaunch(const ChainedLaunch&) = delete;
  ChainedLaunch& operator=(const ChainedLaunch&) = delete;

  cudaLaunchConfig_t& config() { return config_; }

  template <class... Params, class... Args>
  void run(const char* name, void (*kernel)(Params...), Args&&... args) {
    check(cudaLaunchKernelEx(&config_, kernel, std::forward<Args>(args)...), name);
  }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

template <class... Params, class... Args>
void launch_chained(const char* name, void (*kernel)(Params...), dim3 grid, int threads,
                    std::size_t shared, cudaStream_t stream, Args&&... args) {
  ChainedLaunch(grid, threads, shared, stream).run(name, kernel, std::forward<Args>(args)...);
}

}  // namespace sw::cuda
