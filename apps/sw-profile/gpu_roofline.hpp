#pragma once

#include <functional>

#include "gpu_timer.hpp"
#include "report/profile_report.hpp"

namespace sw {

/// Reads `bytes` (a multiple of 16) from `data` and keeps nothing: puts other lines in the L2
/// cache, none of them dirty.
void read_memory(const void* data, std::size_t bytes, cudaStream_t stream);

/// What this GPU does at best: cuBLAS's bf16 product of 8192^3 on random data, f32 accumulation,
/// and a copy of 1 GiB within its memory; medians of several.
Roofline measure_gpu_roofline(GpuTimer& timer);

/// Dense causal attention composed of cuBLAS products and one softmax kernel: what a user has
/// without a fused kernel. bf16 q [heads, tokens, dim], k and v [kv_heads, tokens, dim] and out
/// like q, contiguous. Scores of `kComposedRows` queries of one head at a time are written to
/// memory, and keys after them are left out. The causal mask costs what it does not skip within
/// such a strip.
class ComposedAttention {
 public:
  ComposedAttention(int heads, int kv_heads, int dim, std::int64_t tokens);
  ~ComposedAttention();
  ComposedAttention(const ComposedAttention&) = delete;
  ComposedAttention& operator=(const ComposedAttention&) = delete;

  void launch(const void* q, const void* k, const void* v, void* out, cudaStream_t stream);

 private:
  int heads_;
  int kv_heads_;
  int dim_;
  std::int64_t tokens_;
  void* handle_ = nullptr;
  cuda::DeviceBuffer<float> scores_;
  cuda::DeviceBuffer<unsigned short> weights_;
  cuda::DeviceBuffer<unsigned char> workspace_;
};

}  // namespace sw
