#pragma once

#include <cstdint>

#include "kernels/cuda/common/decode/attention.hpp"
#include "kernels/cuda/common/decode/plan.cuh"
#include "kernels/cuda/common/decode/ptx.cuh"

/// What the kernels of decode attention share: the softmax of one warp over keys and values that
/// pass through its ring in shared memory.
namespace sw::cuda::decode {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 64;   ///< tokens of a tile: 16 for each warp
constexpr int kSlice = 16;  ///< tokens of one warp
/// log2 of how far weights may grow before the running maximum follows: it seldom has to, and the
/// weights fit f16.
constexpr float kHeadroom = 8.0f;
constexpr float kLn2 = 0.6931471805599453f;

struct Arguments {
  KvCache cache;
  const void* q;
  void* out;
  float* lse;
  DecodeBlocks blocks;
  int units;       ///< work units of a sequence: KV heads, or query heads with a list of their own
  int rows;        ///< query heads of a unit
  int kv_divisor;  ///< units of a KV head
  float scale_log2;
  float* partial;
  float2* partial_ml;
  unsigned* arrivals;
  // Of the kernel for one sequence beside its selection:
  float* exchange;      ///< [2, grid, rows, head_dim]
  float2* exchange_ml;  ///< [2, grid, rows]
  unsigned* launches;   ///< [units]
};

/// One sequence whose selection runs meanwhile (attention_beside.cu).
constexpr int kMostBlocksBeside = 8192;  ///< of the context
/// To be called once; false where this GPU has no such kernel, or not the shared memory.
bool prepare_beside(Element element, int dim, int rows);
void launch_beside(const Arguments& arguments, int grid, cudaStream_t stream);

/// Shared-memory rings: each warp has its own, with one slice of K and one of V a stage.
template <int kDim>
struct Ring {
  static constexpr int kStages = kDim == 64 ? 4 : 3;
  static constexpr int kSliceBytes = kSlice * kDim * 2;
  static constexpr int kBytes = kWarps * kStages * 2 * kSliceBytes;
  static constexpr int kBlocksPerMultiprocessor = kDim == 256 ? 1 : 2;
  /// A block beside a selection leaves it the registers that it needs; of 256 none fits.
  static constexpr bool kFitsBeside = kDim < 256;
  static constexpr int kRegistersBeside = 128;
  static constexpr int kRegisters = kDim == 256 ? 255 : 160;
};

/// Element offset of 16-byte chunk `chunk` of row `row`: neighbouring rows start in other banks.
template <int kDim>
__device__ inline int swizzled(int row, int chunk) {
  return row * kDim + ((chunk ^ (row & 7)) << 3);
}

/// Running softmax of one warp for kTiles * 8 query heads, the columns of its matrix products: keys
/// and head dimensions are the rows, of which there are many, so that a group of a few heads wastes
/// little. Accumulators are those of the matrix instruction: rows lane / 4 and lane / 4 + 8,
/// columns lane % 4 * 2 and the next.
template <int kDim, int kTiles>
struct Softmax {
  float acc[kTiles][kDim / 16][4];
  float largest[kTiles][2];  ///< what the exponents are counted from
  float sum[kTiles][2];      ///< of this lane's rows

  __device__ void reset() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[n][i][e] = 0.0f;
      }
      largest[n][0] = largest[n][1] = -INFINITY;
      sum[n][0] = sum[n][1] = 0.0f;
    }
  }
};

template <class T, int kDim, int kTiles>
__device__ inline void load_query(const Arguments& a, int unit_index,
                                  std::uint32_t (&q)[kTiles][kDim / 16][2]) {
  const int lane = threadIdx.x % 32;
  const T* base =
      static_cast<const T*>(a.q) + static_cast<std::int64_t>(unit_index) * a.rows * kDim;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int row = n * 8 + lane / 4;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = step * 16 + (lane % 4) * 2 + e * 8;
        q[n][step][e] =
            row < a.rows ? *reinterpret_cast<const std::uint32_t*>(base + row * kDim + column) : 0u;
      }
    }
  }
}

/// Combines over the lanes that hold the same columns.
template <class F>
__device__ inline float reduce_rows(float x, F&& combine) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}

/// Adds the first `visible` of 16 keys and values, at these addresses of shared memory, to the
/// running softmax; calls between() when it is done with the keys and has not looked at the values.
template <class T, int kDim, int kTiles, class Between>
__device__ inline void attend_slice(Softmax<kDim, kTiles>& state,
                                    const std::uint32_t (&q)[kTiles][kDim / 16][2], std::uint32_t k,
                                    std::uint32_t v, int visible, float scale_log2,
                                    Between&& between) {
  const int lane = threadIdx.x % 32;
  const int row = lane & 7;
  const int matrix = lane >> 3;
  // Slices start at multiples of a row's bytes, so that the bits of a chunk can be changed in the
  // whole address.
  k += swizzled<kDim>((matrix & 1) * 8 + row, matrix >> 1) * 2;
  v += swizzled<kDim>((matrix >> 1) * 8 + row, matrix & 1) * 2;
  // Sums of even and odd steps do not wait for each other; two tiles of heads don't either.
  constexpr int kParts = kTiles == 1 ? 2 : 1;
  float part[kTiles][kParts][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t keys[4];
    load_matrix_x4(keys, k ^ (step << 5));
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      mma_16x8x16<T>(part[n][step % kParts], keys, q[n][step][0], q[n][step][1]);
    }
  }
  between();
  if (visible <= 0) return;
  float s[kTiles][4];
  bool above = false;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[n][e] = (kParts == 2 ? part[n][0][e] + part[n][kParts - 1][e] : part[n][0][e]) * scale_log2;
      if (visible < kSlice && (e >> 1) * 8 + lane / 4 >= visible) s[n][e] = -INFINITY;
      above |= s[n][e] > state.largest[n][e & 1] + kHeadroom;
    }
  }
  if (__any_sync(0xffffffffu, above)) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float largest = fmaxf(
            state.largest[n][e],
            reduce_rows(fmaxf(s[n][e], s[n][e + 2]), [](float x, float y) { return fmaxf(x, y); }));
        const float factor = exp2_fast(state.largest[n][e] - largest);
        state.largest[n][e] = largest;
        state.sum[n][e] *= factor;
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) {
          state.acc[n][i][e] *= factor;
          state.acc[n][i][e + 2] *= factor;
        }
      }
    }
  }
  std::uint32_t p[kTiles][2];  // of keys 0 to 7 and 8 to 15; columns become rows
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[n][e] = exp2_fast(s[n][e] - state.largest[n][e & 1]);
      state.sum[n][e & 1] += s[n][e];
    }
    p[n][0] = transpose_matrix(pack_pair<T>(s[n][0], s[n][1]));
    p[n][1] = transpose_matrix(pack_pair<T>(s[n][2], s[n][3]));
  }
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    std::uint32_t values[4];
    load_matrix_x4_transposed(values, v ^ (i << 5));
#pragma unroll
    for (int n = 0; n < kTiles; ++n) mma_16x8x16<T>(state.acc[n][i], values, p[n][0], p[n][1]);
  }
}

/// Starts the copy of the first `visible` tokens of a slice to this address of shared memory; zeros
/// take the place of the others.
template <class T, int kDim>
__device__ inline void copy_slice(std::uint32_t shared, const T* global, std::int64_t token_stride,
                                  int visible, std::uint64_t policy) {
  // Lanes lie along a row, kRows rows at a time. The row's low bits and its steps do not overlap,
  // so the swizzle is an exclusive or with a constant.
  constexpr int kChunks = kDim / 8;
  constexpr int kRows = 32 / kChunks;
  const int lane = threadIdx.x % 32;
  const int row = lane / kChunks;
  const int chunk = lane % kChunks;
  shared += swizzled<kDim>(row, chunk) * 2;
  global += row * token_stride + chunk * 8;
  if (token_stride == kDim && visible >= kSlice) {  // what is known saves most instructions
#pragma unroll
    for (int i = 0; i < kSlice; i += kRows) {
      copy_async_16_once((shared ^ ((i & 7) << 4)) + i * kDim * 2, global + i * kDim, policy);
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kSlice; i += kRows) {
    copy_async_16_once((shared ^ ((i & 7) << 4)) + i * kDim * 2, global, i + row < visible, policy);
    global += kRows * token_stride;
  }
}

__device__ inline float rescale(float largest, float total_largest) {
  return largest == -INFINITY ? 0.0f : exp2_fast(largest - total_largest);
}

/// Four neighbouring elements of a row's result to the output.
template <class T>
__device__ inline void store_result(const Arguments& a, int unit_index, int row, int column,
                                    int dim, float4 value, float largest, float sum) {
  const std::int64_t at = static_cast<std::int64_t>(unit_index) * a.rows + row;
  const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
  *reinterpret_cast<uint2*>(static_cast<T*>(a.out) + at * dim + column) =
      make_uint2(pack_pair<T>(value.x * scale, value.y * scale),
                 pack_pair<T>(value.z * scale, value.w * scale));
  if (column == 0 && a.lse != nullptr) {
    a.lse[at] = sum > 0.0f ? (largest + log2f(sum)) * kLn2 : -INFINITY;
  }
}

}  // namespace sw::cuda::decode
