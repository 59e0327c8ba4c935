#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

#include "kernels/cuda/common/buffer.hpp"

namespace sw {

/// Times work on one stream by CUDA events. The work is captured into a graph once, so that launch
/// gaps of a handful of kernels do not count as their time, and the L2 cache is filled with other
/// memory before each run.
class GpuTimer {
 public:
  GpuTimer();
  ~GpuTimer();
  GpuTimer(const GpuTimer&) = delete;
  GpuTimer& operator=(const GpuTimer&) = delete;

  cudaStream_t stream() const { return stream_; }

  /// A captured piece of work.
  class Work {
   public:
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
    Work(Work&& other) noexcept : timer_(other.timer_), graph_(other.graph_) {
      other.graph_ = nullptr;
    }
    ~Work();
    /// Runs it once and waits; the seconds between the events around it. `what` names it in errors.
    double seconds(const char* what) const;

   private:
    friend class GpuTimer;
    Work(GpuTimer& timer, cudaGraphExec_t graph) : timer_(&timer), graph_(graph) {}
    GpuTimer* timer_;
    cudaGraphExec_t graph_;
  };

  /// Calls `launch` with the stream once to warm up and once in capture mode: it must not allocate,
  /// synchronise or read results.
  Work capture(const std::function<void(cudaStream_t)>& launch);

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
  cuda::DeviceBuffer<unsigned char> flush_;
};

}  // namespace sw
