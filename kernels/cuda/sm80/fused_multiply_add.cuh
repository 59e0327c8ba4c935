#pragma once

#include "kernels/cuda/sm80/tile.cuh"

/// Products of tiles in f32, for traces whose elements tensor cores would round.
namespace sw::cuda::sm80 {

template <int kHeadDim>
struct FusedMultiplyAdd {
  using Storage = float;
  static constexpr int kDim = kHeadDim;  ///< head_dim, padded to a multiple of 64
  static constexpr int kThreads = 256;   ///< 16 by 16
  static constexpr int kResident = 2;
  static constexpr int kTileRows = kDim <= 128 ? 64 : 32;
  static constexpr int kTileKeys = kDim <= 128 ? 32 : 16;
  static constexpr int kStride = kDim + 4;
  static constexpr int kWeightStride = kTileKeys + 4;
  static constexpr int kScratch = kTileRows * kWeightStride;  ///< elements: weights [rows, keys]
  // As in TensorCore.
  static constexpr int kRows = kTileRows / 16;
  static constexpr int kCols = kTileKeys / 16;
  static constexpr int kOutCols = kDim / 16;
  static constexpr int kRowLanes = 16;
  static constexpr int kSlotRows = 2 * kRows;
  static constexpr int kThreadSlots = 1;

  __device__ static int warp_row() { return threadIdx.x / 32 * 2 * kRows; }
  __device__ static int row(int i) { return threadIdx.x / 16 * kRows + i; }
  __device__ static int column(int j) { return threadIdx.x % 16 + 16 * j; }
  __device__ static int out_column(int j) { return j / 4 * 64 + threadIdx.x % 16 * 4 + j % 4; }
  __device__ static constexpr int slot_of(int) { return 0; }
  __device__ static constexpr int chunk_of(int j) { return j; }

  __device__ static void scores(float (&s)[kRows][kCols], const float* q, const float* k) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) s[i][j] = 0.0f;
    }
#pragma unroll 4
    for (int x = 0; x < kDim; x += 4) {
      float4 key[kCols];
#pragma unroll
      for (int j = 0; j < kCols; ++j) key[j] = four(k + column(j) * kStride + x);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 query = four(q + row(i) * kStride + x);
#pragma unroll
        for (int j = 0; j < kCols; ++j) {
          s[i][j] = fmaf(query.x, key[j].x, s[i][j]);
          s[i][j] = fmaf(query.y, key[j].y, s[i][j]);
          s[i][j] = fmaf(query.z, key[j].z, s[i][j]);
          s[i][j] = fmaf(query.w, key[j].w, s[i][j]);
        }
      }
    }
  }

  __device__ static void accumulate(float (&o)[kRows][kOutCols], const float (&p)[kRows][kCols],
                                    const float* v, float* weights) {
    // The threads that share a row are lanes of one warp.
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) weights[row(i) * kWeightStride + column(j)] = p[i][j];
    }
    __syncwarp();
#pragma unroll 2
    for (int t = 0; t < kTileKeys; t += 4) {
      float4 weight[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) weight[i] = four(weights + row(i) * kWeightStride + t);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
#pragma unroll
        for (int j = 0; j < kOutCols; j += 4) {
          const float4 value = four(v + (t + u) * kStride + out_column(j));
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const float w = u == 0   ? weight[i].x
                            : u == 1 ? weight[i].y
                            : u == 2 ? weight[i].z
                                     : weight[i].w;
            o[i][j] = fmaf(w, value.x, o[i][j]);
            o[i][j + 1] = fmaf(w, value.y, o[i][j + 1]);
            o[i][j + 2] = fmaf(w, value.z, o[i][j + 2]);
            o[i][j + 3] = fmaf(w, value.w, o[i][j + 3]);
          }
        }
      }
    }
    __syncwarp();
  }

  __device__ static void store_pair(float* to, float x, float y) {
    *reinterpret_cast<float2*>(to) = make_float2(x, y);
  }

 private:
  __device__ static float4 four(const float* x) { return *reinterpret_cast<const float4*>(x); }
};

}  // namespace sw::cuda::sm80
