#pragma once

#include <cstdint>

#include "attention/sketch.hpp"

/// The sketch of one vector by one warp.
namespace sw::cuda {

/// Orthonormal, so that no entry exceeds the norm of x; sketch_scale_log2() makes y.y a logit in
/// units of log2.
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

/// A lane's part of the sketch: of elements lane + 32 e the sign, and where those of the result
/// come from, -1 past r. Read ahead, it is one wait for memory less in a transform.
template <int kDim>
struct SketchLane {
  float sign[kDim / 32];
  int from[kDim / 32];
};

template <int kDim>
__device__ inline SketchLane<kDim> load_sketch(const DeviceSketch& sketch) {
  SketchLane<kDim> mine;
#pragma unroll
  for (int e = 0; e < kDim / 32; ++e) {
    const int j = e * 32 + static_cast<int>(threadIdx.x % 32);
    mine.sign[e] = sketch.signs[j];
    mine.from[e] = sketch.exact ? j : sketch.permutation[j];
    if (j >= sketch.dim_used) mine.from[e] = -1;
  }
  return mine;
}

/// Lane holds elements lane + 32 e of x; the result is left in `buffer` [kDim], zeros past r.
template <int kDim>
__device__ inline void transform(bool exact, const SketchLane<kDim>& sketch, float (&x)[kDim / 32],
                                 float* buffer) {
  constexpr int kEach = kDim / 32;
  const int lane = threadIdx.x % 32;
  if (!exact) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) x[e] *= sketch.sign[e] * rsqrtf(static_cast<float>(kDim));
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
    x[e] = sketch.from[e] >= 0 ? buffer[sketch.from[e]] : 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) buffer[e * 32 + lane] = x[e];
  __syncwarp();
}
template <int kDim>
__device__ inline void transform(const DeviceSketch& sketch, float (&x)[kDim / 32], float* buffer) {
  transform<kDim>(sketch.exact, load_sketch<kDim>(sketch), x, buffer);
}

}  // namespace sw::cuda
