#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.hpp"

/// The elementwise steps of a transformer layer on one row, written once as plain loops
/// (row_kernels.inl) and compiled for several instruction sets, of which one is chosen at run time.
/// Arithmetic is float; `type` (kF32 or kBf16) is that of the result, rounded to nearest even.
namespace sw {

struct RowKernels {
  /// out[j] = x[j], j < n.
  void (*convert)(const float* x, std::int64_t n, DType type, void* out);
  /// out[j] = x[j] / sqrt(mean(x^2) + epsilon) * weight[j], j < n.
  void (*rms_norm)(const float* x, const float* weight, std::int64_t n, double epsilon, DType type,
                   void* out);
  /// RoPE: rotates the pairs x[i], x[half + i] by the angles given by cos and sin [half].
  void (*rotate)(const float* x, const float* cos, const float* sin, std::int64_t half, DType type,
                 void* out);
  /// out[j] = silu(gate[j]) up[j], j < n; the exponential has a relative error below 3e-7.
  void (*swiglu)(const float* gate, const float* up, std::int64_t n, DType type, void* out);
};

/// Those that run on this CPU, the widest first: AVX-512, AVX2, portable.
std::vector<const RowKernels*> available_row_kernels();
/// The first of them within cpu_isa_limit().
const RowKernels& row_kernels();

}  // namespace sw
