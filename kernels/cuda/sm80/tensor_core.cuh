#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/sm80/tile.cuh"

/// Products of tiles on tensor cores (mma.sync m16n8k16, f32 sums), for bf16 and f16.
namespace sw::cuda::sm80 {

/// kRowTiles: 16-row tiles of a warp; two share the loads of a key, one wastes less on few rows.
template <Element kElement, int kHeadDim, int kRowTiles>
struct TensorCore {
  using Storage = std::uint16_t;
  static constexpr int kDim = kHeadDim;  ///< head_dim, padded
  static constexpr int kThreads = 128;
  /// Thread blocks of the attention on one multiprocessor, as the registers allow.
  static constexpr int kResident = kDim == 64 || (kDim <= 128 && kRowTiles == 1) ? 3 : 2;
  static constexpr int kTileRows = kThreads / 32 * 16 * kRowTiles;
  static constexpr int kTileKeys = kDim <= 192 ? 64 : 32;  ///< what 99 KiB of shared memory hold
  static constexpr int kStride = kDim + 8;
  static constexpr int kScratch = 0;
  // What one thread holds of the scores [kTileRows, kTileKeys] and of the output [kTileRows, kDim];
  // columns of even and odd index are neighbours.
  static constexpr int kRows = 2 * kRowTiles;
  static constexpr int kCols = kTileKeys / 4;
  static constexpr int kOutCols = kDim / 4;
  static constexpr int kRowLanes = 4;  ///< neighbouring lanes that share a row
  // Rows that one warp sums over together, and how many such sets a thread takes part in.
  static constexpr int kSlotRows = 16;
  static constexpr int kThreadSlots = kRowTiles;

  __device__ static int warp_row() { return threadIdx.x / 32 * 16 * kRowTiles; }
  __device__ static int row(int i) {
    return warp_row() + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4;
  }
  __device__ static int column(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
  __device__ static int out_column(int j) { return column(j); }
  __device__ static constexpr int slot_of(int i) { return i / 2; }
  __device__ static constexpr int chunk_of(int j) { return j / 4; }

  /// s = q k^T.
  __device__ static void scores(float (&s)[kRows][kCols], const Storage* q, const Storage* k) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t q_address =
        shared_address(q + (warp_row() + lane % 16) * kStride + lane / 16 * 8);
    const std::uint32_t k_address =
        shared_address(k + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) s[i][j] = 0.0f;
    }
#pragma unroll
    for (int x = 0; x < kDim; x += 16) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        load_matrices(a[m], q_address + (m * 16 * kStride + x) * 2);
      }
#pragma unroll
      for (int n = 0; n < kTileKeys / 16; ++n) {
        std::uint32_t b[4];
        load_matrices(b, k_address + (n * 16 * kStride + x) * 2);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply(s[2 * m], s[2 * m + 1], 4 * n, a[m], b[0], b[1]);
          multiply(s[2 * m], s[2 * m + 1], 4 * n + 2, a[m], b[2], b[3]);
        }
      }
    }
  }

  /// o += p v, p rounded to the element type.
  __device__ static void accumulate(float (&o)[kRows][kOutCols], const float (&p)[kRows][kCols],
                                    const Storage* v, Storage*) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t v_address =
        shared_address(v + (lane / 8 % 2 * 8 + lane % 8) * kStride + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kTileKeys / 16; ++n) {
      std::uint32_t a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const float* pair = &p[2 * m + x % 2][4 * n + x / 2 * 2];
          a[m][x] = pack(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int x = 0; x < kDim / 16; ++x) {
        std::uint32_t b[4];
        load_transposed(b, v_address + (n * 16 * kStride + x * 16) * 2);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply(o[2 * m], o[2 * m + 1], 4 * x, a[m], b[0], b[1]);
          multiply(o[2 * m], o[2 * m + 1], 4 * x + 2, a[m], b[2], b[3]);
        }
      }
    }
  }

  /// Two neighbouring columns in the element type.
  __device__ static void store_pair(Storage* to, float x, float y) {
    *reinterpret_cast<std::uint32_t*>(to) = pack(x, y);
  }

 private:
  __device__ static std::uint32_t pack(float x, float y) {
    std::uint32_t bits;
    if constexpr (kElement == Element::kBf16) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
      memcpy(&bits, &pair, 4);
    } else {
      const __half2 pair = __floats2half2_rn(x, y);
      memcpy(&bits, &pair, 4);
    }
    return bits;
  }

  __device__ static void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  }

  __device__ static void load_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  }

  /// Adds a 16 x 8 product to columns j and j + 1 of two rows that lie 8 apart.
  __device__ static void multiply(float* upper, float* lower, int j, const std::uint32_t (&a)[4],
                                  std::uint32_t b0, std::uint32_t b1) {
    if constexpr (kElement == Element::kBf16) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(upper[j]), "+f"(upper[j + 1]), "+f"(lower[j]), "+f"(lower[j + 1])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(upper[j]), "+f"(upper[j + 1]), "+f"(lower[j]), "+f"(lower[j + 1])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
  }
};

}  // namespace sw::cuda::sm80
