#pragma once

#include <cstdint>

#include "attention/sketch.hpp"

/// The sketch of one vector by one warp.
namespace sw::cuda {

/// Orthonormal, so that no entry exceeds the norm of x; sketch_scale_log2() makes y.y a logit in units of
/// log2.
struct DeviceSketch {
  const float* signs = nullptr;               ///< [head_dim]
  const std::int32_t* permutation = nullptr;  ///< [head_dim]
  int dim_used = 0;                           ///< r
  bool exact = false;
};

/// What the product of two such vectors is multiplied by to be a logit, after the temperature, in
/// units of log2.
inline float sketch_scale_log2(const Sketch& sketch, const SketchParams& params, int head_dim) {
  const auto r = static_cast<double>(sketch.dim());
  // The vectors are orthonormal here; the square of the sketch's own scale goes to the logit.
  const double vectors = params.exact ? 1.0 : params.unbiased ? head_dim / r : r;
  return static_cast<float>(1.4426950408889634 * vectors * sketch.logit_scale() /
                            params.temperature);
}

/// Lane holds elements lane + 32 e of x; the result is left in `buffer` [kDim], zeros past r.
template <int kDim>
__device__ inline void transform(const DeviceSketch& sketch, float (&x)[kDim / 32], float* buffer) {
  constexpr int kEach = kDim / 32;
  const int lane = threadIdx.x % 32;
  int from[kEach];  // -1: past the sketch dimension
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int j = e * 32 + lane;
    from[e] = j >= sketch.dim_used ? -1 : sketch.exact ? j : sketch.permutation[j];
  }
  if (!sketch.exact) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      x[e] *= sketch.signs[e * 32 + lane] * rsqrtf(static_cast<float>(kDim));
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float other = __shfl_xor_sync(0xffffffffu, x[e], mask);
        x[e] = (lane & mask) != 0 ? other - x[e] : x[e] + other;
      }
    }
#pragma unroll
    for (int half = 1; half < kEach; half *= 2) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if ((e & half) == 0) {
          const float low = x[e];
          const float high = x[e + half];
          x[e] = low + high;
          x[e + half] = low - high;
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) buffer[e * 32 + lane] = x[e];
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    x[e] = from[e] >= 0 ? buffer[from[e]] : 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) buffer[e * 32 + lane] = x[e];
  __syncwarp();
}

}  // namespace sw::cuda
