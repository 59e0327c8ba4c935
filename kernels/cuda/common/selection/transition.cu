#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/transition.hpp"

namespace sw::cuda {
namespace {

constexpr int kMaxDim = 256;
constexpr int kTile = 128;  ///< pooled queries and pooled keys of a score tile
constexpr int kThreads = 256;
constexpr int kTileBytes = kTile * kRowBytes;
constexpr int kSumStride = kTile + 4;  ///< of the shared f32 tile, against bank conflicts

// ---- Pooling, transform and split -------------------------------------------------------------

/// What becomes of a pooled vector.
struct EmitArgs {
  int head_dim;
  int dim;
  int padded_dim;
  int transform_dim;  ///< d', or 0 without a transform
  const float* signs;
  const std::int32_t* permutation;
};

struct SideArgs {
  const void* data;
  std::int64_t head_stride;
  std::int64_t token_stride;
  int heads;
  int pool;
  int count;  ///< pooled vectors of a head
  int padded_count;
  std::uint16_t* operands;
  std::int64_t plane;
  float* scale;
  float factor;  ///< of the scales: what turns a product into a logit, base 2
  float* means;  ///< null: no mean over heads follows
};

/// A warp turns x [head_dim] in its shared memory into split operands and their scale.
__device__ void emit(float* x, const EmitArgs& e, std::uint16_t* high, std::int64_t plane,
                     float* scale, float factor) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (e.transform_dim > 0) {
    for (int j = lane; j < e.transform_dim; j += 32) {
      x[j] = j < e.head_dim ? x[j] * e.signs[j] : 0.0f;
    }
    __syncwarp();
    for (int half = 1; half < e.transform_dim; half *= 2) {
      for (int t = lane; t < e.transform_dim / 2; t += 32) {
        const int at = t / half * 2 * half + t % half;
        const float a = x[at];
        const float b = x[at + half];
        x[at] = a + b;
        x[at + half] = a - b;
      }
      __syncwarp();
    }
  }
  float y[kMaxDim / 32];
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < kMaxDim / 32; ++i) {
    const int j = lane + 32 * i;
    y[i] = 0.0f;
    if (j < e.dim) y[i] = x[e.transform_dim > 0 ? e.permutation[j] : j];
    largest = max(largest, __float_as_uint(y[i]) & 0x7fffffffu);
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
  // The largest element comes to lie in [2^13, 2^14): far from both ends of f16.
  const int exponent =
      largest >= 0x7f800000u ? 13 : max(static_cast<int>(largest >> 23) - 127, -100);
  const float up = __uint_as_float(static_cast<unsigned>(127 + 13 - exponent) << 23);
#pragma unroll
  for (int i = 0; i < kMaxDim / 32; ++i) {
    const int j = lane + 32 * i;
    if (j < e.padded_dim) split<__half>(y[i] * up, high[j], high[plane + j]);
  }
  if (lane == 0)
    *scale = __uint_as_float(static_cast<unsigned>(127 + exponent - 13) << 23) * factor;
}

template <class T>
__device__ float2 to_float2(unsigned packed) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(reinterpret_cast<const __half2&>(packed));
  } else {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
  }
}

constexpr int kPoolWarps = 4;

struct PoolArgs {
  SideArgs side[2];  ///< queries, keys
  std::int64_t tokens;
  bool partial;
  EmitArgs emit;
};

/// One warp a pooled vector: the lanes that cover a token's row add up every R-th token of the
/// pool.
template <class T>
__global__ void __launch_bounds__(kPoolWarps * 32) pool_tokens(const __grid_constant__ PoolArgs p) {
  __shared__ float shared[kPoolWarps][kMaxDim];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPoolWarps + threadIdx.x / 32;
  const std::int64_t queries = static_cast<std::int64_t>(p.side[0].heads) * p.side[0].count;
  const int which = index < queries ? 0 : 1;
  if (which == 1) index -= queries;
  const SideArgs& s = p.side[which];
  const EmitArgs& e = p.emit;
  if (index >= static_cast<std::int64_t>(s.heads) * s.count) return;
  const auto head = static_cast<int>(index / s.count);
  const auto u = static_cast<int>(index % s.count);
  const std::int64_t begin = static_cast<std::int64_t>(u) * s.pool;
  const auto present = static_cast<int>(min(static_cast<std::int64_t>(s.pool), p.tokens - begin));

  const int lanes = e.head_dim / 8;  // a row of 16-byte loads
  const int rows = 32 / lanes;
  const int first = lane / lanes;
  const int column = lane % lanes;
  const T* from =
      static_cast<const T*>(s.data) + head * s.head_stride + begin * s.token_stride + column * 8;
  const std::int64_t stride = s.token_stride;
  float sum[8] = {};
  constexpr int kInFlight = 8;
  for (int t0 = 0; t0 < present; t0 += rows * kInFlight) {
    uint4 loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int t = min(t0 + i * rows + first, present - 1);  // in range: no load waits for a test
      loaded[i] = __ldcs(reinterpret_cast<const uint4*>(from + t * stride));
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first >= rows || t0 + i * rows + first >= present) loaded[i] = uint4{0, 0, 0, 0};
      const unsigned words[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = to_float2<T>(words[w]);
        sum[2 * w] += pair.x;
        sum[2 * w + 1] += pair.y;
      }
    }
  }
  const float divisor = 1.0f / static_cast<float>(p.partial ? present : s.pool);
  float* x = shared[threadIdx.x / 32];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float total = sum[i];
    for (int r = 1; r < rows; ++r) total += __shfl_sync(0xffffffffu, sum[i], lane + r * lanes);
    if (lane < lanes) x[column * 8 + i] = total * divisor;
  }
  __syncwarp();
  const std::int64_t row = static_cast<std::int64_t>(head) * s.padded_count + u;
  if (s.means == nullptr) {
    return emit(x, e, s.operands + row * e.padded_dim, s.plane, s.scale + row, s.factor);
  }
  for (int j = lane; j < e.head_dim; j += 32) s.means[index * e.head_dim + j] = x[j];
}

/// One warp a pooled vector: its mean over heads.
__global__ void __launch_bounds__(kPoolWarps * 32)
    mean_over_heads(const __grid_constant__ PoolArgs p) {
  __shared__ float shared[kPoolWarps][kMaxDim];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int index = static_cast<int>(blockIdx.x) * kPoolWarps + static_cast<int>(threadIdx.x / 32);
  const int queries = p.side[0].count;
  if (index >= queries + p.side[1].count) return;
  const SideArgs& s = p.side[index < queries ? 0 : 1];
  const EmitArgs& e = p.emit;
  const int u = index < queries ? index : index - queries;
  float* x = shared[threadIdx.x / 32];
  for (int j = lane; j < e.head_dim; j += 32) {
    float sum = 0.0f;
    for (int h = 0; h < s.heads; ++h) {
      sum += s.means[(static_cast<std::int64_t>(h) * s.count + u) * e.head_dim + j];
    }
    x[j] = sum / static_cast<float>(s.heads);
  }
  __syncwarp();
  emit(x, e, s.operands + static_cast<std::int64_t>(u) * e.padded_dim, s.plane, s.scale + u,
       s.factor);
}

// ---- Scores ------------------------------------------------------------------------------------

struct ScoreArgs {
  const std::uint16_t* q;  ///< [2 planes][heads][padded query pools][padded dim]
  const std::uint16_t* k;
  std::int64_t q_plane;
  std::int64_t k_plane;
  const float* q_scale;
  const float* k_scale;
  float* lse;   ///< [heads][padded query pools]
  float* sums;  ///< [head chunks][blocks, sum_stride]
  std::int64_t sum_stride;
  int heads;
  int kv_heads;
  int head_chunk;  ///< heads of a CTA
  int queries;     ///< pooled queries of a head
  int keys;
  int padded_queries;
  int padded_keys;
  int padded_dim;
  int blocks;
  int query_shift;  ///< log2 of pooled queries a block
  int key_shift;
  bool causal;
  int stages;
};

__device__ bool visible(const ScoreArgs& p, int u, int v) {
  return u < p.queries && v < p.keys && (!p.causal || (v >> p.key_shift) <= (u >> p.query_shift));
}
/// Whether some pair of the tile at (u0, v0) is not visible.
__device__ bool is_edge(const ScoreArgs& p, int u0, int v0) {
  return u0 + kTile > p.queries || v0 + kTile > p.keys ||
         (p.causal && ((v0 + kTile - 1) >> p.key_shift) > (u0 >> p.query_shift));
}
/// Whether no pair of it is.
__device__ bool is_hidden(const ScoreArgs& p, int u0, int v0) {
  return v0 >= p.keys || (p.causal && (v0 >> p.key_shift) > ((u0 + kTile - 1) >> p.query_shift));
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline void wait_for_stage(int stages) {
  if (stages >= 4) {
    wait_copies<2>();
  } else if (stages == 3) {
    wait_copies<1>();
  } else {
    wait_copies<0>();
  }
  __syncthreads();
}

// 8 warps over a tile of 128 x 128: 2 below one another, 4 abreast, 64 x 32 each.
constexpr int kWarpsN = 4;
constexpr int kM = 4;
constexpr int kN = 4;

constexpr int planes_of(int terms) { return terms == 3 ? 2 : 1; }

/// log2 of the softmax denominators: one CTA for 128 pooled queries of a head, which stay in shared
/// memory while the keys pass.
template <int kTerms>
__global__ void __launch_bounds__(kThreads, kTerms == 1 ? 2 : 1) softmax_denominators(ScoreArgs p) {
  constexpr int kPlanes = planes_of(kTerms);
  constexpr int kStageBytes = kPlanes * kTileBytes;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float warp_max[kWarpsN][kTile];
  __shared__ float warp_sum[kWarpsN][kTile];
  const int chunks = p.padded_dim / kStep;
  const std::uint32_t resident = shared_address(shared);
  const std::uint32_t ring = resident + chunks * kStageBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / kWarpsN * kM * 16;
  const int n0 = warp % kWarpsN * kN * 8;
  const int u0 = static_cast<int>(blockIdx.x) * kTile;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / (p.heads / p.kv_heads);
  const std::int64_t q_row = static_cast<std::int64_t>(head) * p.padded_queries + u0;
  const std::int64_t k_row = static_cast<std::int64_t>(kv_head) * p.padded_keys;
  int tiles = (p.keys + kTile - 1) / kTile;
  while (is_hidden(p, u0, (tiles - 1) * kTile)) --tiles;
  const int steps = tiles * chunks;

  int next = 0;
  int next_tile = 0;
  int next_chunk = 0;
  int next_slot = 0;
  const auto load = [&] {
    if (next < steps) {
      const std::uint16_t* from =
          p.k + (k_row + next_tile * kTile) * p.padded_dim + next_chunk * kStep;
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        copy_tile<kTile, kThreads>(ring + next_slot * kStageBytes + plane * kTileBytes,
                                   from + plane * p.k_plane, p.padded_dim);
      }
      ++next;
      if (++next_chunk == chunks) next_chunk = 0, ++next_tile;
      if (++next_slot == p.stages) next_slot = 0;
    }
    commit_copies();
  };
  for (int c = 0; c < chunks; ++c) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
      copy_tile<kTile, kThreads>(resident + c * kStageBytes + plane * kTileBytes,
                                 p.q + plane * p.q_plane + q_row * p.padded_dim + c * kStep,
                                 p.padded_dim);
    }
  }
  for (int i = 0; i < p.stages - 1; ++i) load();

  float row_scale[kM][2];
  float row_max[kM][2];
  float row_sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_scale[m][half] = p.q_scale[q_row + m0 + m * 16 + half * 8 + lane / 4];
      row_max[m][half] = -INFINITY;
      row_sum[m][half] = 0.0f;
    }
  }
  int slot = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    float acc[kM][kN][4] = {};
    float column_scale[kN][2];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float2 pair = *reinterpret_cast<const float2*>(p.k_scale + k_row + tile * kTile + n0 +
                                                           n * 8 + lane % 4 * 2);
      column_scale[n][0] = pair.x;
      column_scale[n][1] = pair.y;
    }
    for (int c = 0; c < chunks; ++c) {
      wait_for_stage(p.stages);
      load();
      multiply_step<__half, kM, kN, kTerms, 0>(acc, resident + c * kStageBytes, kTileBytes,
                                               ring + slot * kStageBytes, kTileBytes, m0, n0);
      if (++slot == p.stages) slot = 0;
    }
    const auto add_tile = [&](auto edge) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int u = u0 + m0 + m * 16 + half * 8 + lane / 4;
          float largest = row_max[m][half];
#pragma unroll
          for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              float& x = acc[m][n][half * 2 + c];
              x *= column_scale[n][c] * row_scale[m][half];
              if (edge() && !visible(p, u, tile * kTile + n0 + n * 8 + lane % 4 * 2 + c)) {
                x = -INFINITY;
              }
              largest = fmaxf(largest, x);
            }
          }
          const float base = largest == -INFINITY ? 0.0f : largest;
          float sum = row_sum[m][half] * exp2_fast(row_max[m][half] - base);
#pragma unroll
          for (int n = 0; n < kN; ++n) {
            sum += exp2_fast(acc[m][n][half * 2] - base);
            sum += exp2_fast(acc[m][n][half * 2 + 1] - base);
          }
          row_max[m][half] = largest;
          row_sum[m][half] = sum;
        }
      }
    };
    is_edge(p, u0, tile * kTile) ? add_tile(std::true_type()) : add_tile(std::false_type());
  }
  // A row lies in the 4 lanes of a quad and in the 4 warps abreast.
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = row_max[m][half];
      for (int offset = 1; offset < 4; offset *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
      }
      const float base = largest == -INFINITY ? 0.0f : largest;
      float sum = row_sum[m][half] * exp2_fast(row_max[m][half] - base);
      for (int offset = 1; offset < 4; offset *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      }
      const int row = m0 + m * 16 + half * 8 + lane / 4;
      warp_max[warp % kWarpsN][row] = largest;
      warp_sum[warp % kWarpsN][row] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kTile) return;
  float largest = -INFINITY;
  for (int w = 0; w < kWarpsN; ++w) largest = fmaxf(largest, warp_max[w][threadIdx.x]);
  const float base = largest == -INFINITY ? 0.0f : largest;
  float sum = 0.0f;
  for (int w = 0; w < kWarpsN; ++w) {
    sum += warp_sum[w][threadIdx.x] * exp2f(warp_max[w][threadIdx.x] - base);
  }
  p.lse[q_row + threadIdx.x] = base + log2f(sum);
}

constexpr int kScaleBuffers = 4;  ///< as many heads as can be under way with 4 stages
constexpr int kScaleBytes = kScaleBuffers * 3 * kTile * static_cast<int>(sizeof(float));

/// Sum over the heads of a chunk of softmax probabilities, one CTA for 128 pooled queries and 128
/// pooled keys; pairs of the same two blocks are then added up.
template <int kTerms>
__global__ void __launch_bounds__(kThreads, 1) sum_probabilities(ScoreArgs p) {
  constexpr int kPlanes = planes_of(kTerms);
  constexpr int kStageBytes = 2 * kPlanes * kTileBytes;
  extern __shared__ __align__(128) unsigned char shared[];
  float(*scales)[3][kTile] = reinterpret_cast<float(*)[3][kTile]>(shared);
  const std::uint32_t scales_address = shared_address(shared);
  const std::uint32_t ring = scales_address + kScaleBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / kWarpsN * kM * 16;
  const int n0 = warp % kWarpsN * kN * 8;
  const int u0 = static_cast<int>(blockIdx.y) * kTile;
  const int v0 = static_cast<int>(blockIdx.x) * kTile;
  const int first_head = static_cast<int>(blockIdx.z) * p.head_chunk;
  const int heads = min(p.head_chunk, p.heads - first_head);
  const int group = p.heads / p.kv_heads;
  const int chunks = p.padded_dim / kStep;
  const bool edge = is_edge(p, u0, v0);

  float sum[kM][kN][4] = {};
  if (!is_hidden(p, u0, v0)) {
    int next_head = 0;
    int next_chunk = 0;
    int next_slot = 0;
    const auto load = [&] {
      if (next_head < heads) {
        const int head = first_head + next_head;
        const std::int64_t q_row = static_cast<std::int64_t>(head) * p.padded_queries + u0;
        const std::int64_t k_row = static_cast<std::int64_t>(head / group) * p.padded_keys + v0;
        const std::uint32_t q = ring + next_slot * kStageBytes;
        const std::uint32_t k = q + kPlanes * kTileBytes;
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          copy_tile<kTile, kThreads>(
              q + plane * kTileBytes,
              p.q + plane * p.q_plane + q_row * p.padded_dim + next_chunk * kStep, p.padded_dim);
          copy_tile<kTile, kThreads>(
              k + plane * kTileBytes,
              p.k + plane * p.k_plane + k_row * p.padded_dim + next_chunk * kStep, p.padded_dim);
        }
        if (next_chunk == 0 && threadIdx.x < 96) {
          const int which = static_cast<int>(threadIdx.x) / 32;
          const float* from = which == 0   ? p.q_scale + q_row
                              : which == 1 ? p.lse + q_row
                                           : p.k_scale + k_row;
          const int buffer = next_head % kScaleBuffers;
          copy_async(scales_address + ((buffer * 3 + which) * kTile + lane * 4) * 4,
                     from + lane * 4);
        }
        if (++next_chunk == chunks) next_chunk = 0, ++next_head;
        if (++next_slot == p.stages) next_slot = 0;
      }
      commit_copies();
    };
    for (int i = 0; i < p.stages - 1; ++i) load();
    int slot = 0;
    for (int h = 0; h < heads; ++h) {
      float acc[kM][kN][4] = {};
      for (int c = 0; c < chunks; ++c) {
        wait_for_stage(p.stages);
        load();
        const std::uint32_t q = ring + slot * kStageBytes;
        multiply_step<__half, kM, kN, kTerms, 0>(acc, q, kTileBytes, q + kPlanes * kTileBytes,
                                                 kTileBytes, m0, n0);
        if (++slot == p.stages) slot = 0;
      }
      const auto add_head = [&](auto edge_tile) {
        const float(*scale)[kTile] = scales[h % kScaleBuffers];
        float2 column_scale[kN];
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          column_scale[n] = *reinterpret_cast<const float2*>(&scale[2][n0 + n * 8 + lane % 4 * 2]);
        }
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = m0 + m * 16 + half * 8 + lane / 4;
            const float row_scale = scale[0][row];
            const float lse = scale[1][row];
#pragma unroll
            for (int n = 0; n < kN; ++n) {
#pragma unroll
              for (int c = 0; c < 2; ++c) {
                const float column = c == 0 ? column_scale[n].x : column_scale[n].y;
                float x = acc[m][n][half * 2 + c] * (column * row_scale) - lse;
                if (edge_tile() && !visible(p, u0 + row, v0 + n0 + n * 8 + lane % 4 * 2 + c)) {
                  x = -INFINITY;
                }
                sum[m][n][half * 2 + c] += exp2_fast(x);
              }
            }
          }
        }
      };
      edge ? add_head(std::true_type()) : add_head(std::false_type());
    }
    wait_copies<0>();
  }
  __syncthreads();
  float* tile = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int row = m0 + m * 16 + half * 8 + lane / 4;
        *reinterpret_cast<float2*>(&tile[row * kSumStride + n0 + n * 8 + lane % 4 * 2]) =
            float2{sum[m][n][half * 2], sum[m][n][half * 2 + 1]};
      }
    }
  }
  __syncthreads();
  const int cols = kTile >> p.key_shift;
  const int outputs = (kTile >> p.query_shift) * cols;
  float* out = p.sums + blockIdx.z * (p.blocks * p.sum_stride);
  for (int index = static_cast<int>(threadIdx.x); index < outputs; index += kThreads) {
    const int i = index / cols;
    const int j = index % cols;
    const std::int64_t block_row = (u0 >> p.query_shift) + i;
    const std::int64_t block_col = (v0 >> p.key_shift) + j;
    if (block_row >= p.blocks || block_col >= p.blocks) continue;
    float total = 0.0f;
    for (int u = i << p.query_shift; u < (i + 1) << p.query_shift; ++u) {
      for (int v = j << p.key_shift; v < (j + 1) << p.key_shift; ++v) {
        total += tile[u * kSumStride + v];
      }
    }
    out[block_row * p.sum_stride + block_col] = total;
  }
}

int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

/// Head chunks that keep all multiprocessors busy at the least cost; their partial sums must fit in
/// `capacity` matrices.
int choose_head_chunks(int tiles, int heads, int sms, std::int64_t capacity) {
  int best = 1;
  double best_cost = 1e30;
  for (int chunks = 1; chunks <= heads && chunks <= capacity; ++chunks) {
    const int per_chunk = (heads + chunks - 1) / chunks;
    const double waves = (static_cast<std::int64_t>(tiles) * chunks + sms - 1) / sms;
    const double cost = waves * (per_chunk + 1.0);  // 1: filling the pipeline, and the output
    if (cost < best_cost) {
      best_cost = cost;
      best = chunks;
    }
  }
  return best;
}

constexpr int kPowerShift = 8;

}  // namespace

std::optional<std::string> Transition::unsupported(const AttentionShape& shape,
                                                   const SketchParams& params) {
  if (shape.head_dim % 8 != 0 || shape.head_dim < 8 || shape.head_dim > kMaxDim) {
    return "head_dim must be a multiple of 8, at most " + std::to_string(kMaxDim) + ", not " +
           std::to_string(shape.head_dim);
  }
  for (const std::int64_t pool : {params.tokens_per_query(), params.tokens_per_key()}) {
    const std::int64_t ratio = params.block / pool;
    if (params.block % pool != 0 || ratio > kTile || !std::has_single_bit(std::uint64_t(ratio))) {
      return "a block must hold a power of two of pooled vectors, at most " +
             std::to_string(kTile) + "; a pool of " + std::to_string(pool) + " in blocks of " +
             std::to_string(params.block) + " does not";
    }
  }
  return {};
}

Transition::Transition(const AttentionShape& shape, const SketchParams& params)
    : shape_(shape), params_(params) {
  if (const auto reason = unsupported(shape, params)) {
    throw Error(ErrorKind::kUnsupported, "the GPU cannot select blocks here: " + *reason,
                "use --backend cpu");
  }
  // Signs and a permutation of all d' rows change no score (section 7): no transform then.
  const Sketch sketch(params, 0, shape.head_dim);
  transformed_ = !sketch.is_full();
  params_.exact = !transformed_;
  dim_ = transformed_ ? static_cast<int>(sketch.dim()) : shape.head_dim;
  padded_dim_ = round_up(dim_, kStep);
  const bool mean = params.aggregation == SketchParams::Aggregation::kHeadMean;
  const auto make_side = [&](Side& side, int heads, std::int64_t pool) {
    side.input_heads = heads;
    side.heads = mean ? 1 : heads;
    side.pool = static_cast<int>(pool);
    const auto count = static_cast<std::size_t>(side.count(shape.max_tokens));
    const auto vectors = static_cast<std::size_t>(side.heads) *
                         static_cast<std::size_t>(round_up(static_cast<int>(count), kTile));
    side.plane = static_cast<std::int64_t>(vectors) * padded_dim_;
    side.operands = DeviceBuffer<std::uint16_t>(static_cast<std::size_t>(2 * side.plane));
    side.scale = DeviceBuffer<float>(vectors);
    check(cudaMemset(side.operands.data(), 0, side.operands.bytes()), "clearing of pooled vectors");
    check(cudaMemset(side.scale.data(), 0, side.scale.bytes()), "clearing of pooled vectors");
    if (mean) {
      side.means = DeviceBuffer<float>(static_cast<std::size_t>(heads) * count *
                                       static_cast<std::size_t>(shape.head_dim));
    }
  };
  make_side(queries_, shape.num_heads, params.tokens_per_query());
  make_side(keys_, shape.num_kv_heads, params.tokens_per_key());
  lse_ = DeviceBuffer<float>(queries_.scale.size());
  const std::int64_t padded =
      SplitMatrix::padded((shape.max_tokens + params.block - 1) / params.block);
  const std::int64_t filling = std::int64_t{2} * multiprocessors() * kTile * kTile;
  sums_ = DeviceBuffer<float>(static_cast<std::size_t>(std::max(padded * padded, filling)));
  if (transformed_) {
    std::vector<float> signs;
    std::vector<std::int32_t> permutation;
    for (int layer = 0; layer < shape.layers; ++layer) {
      const Sketch of_layer(params, layer, shape.head_dim);
      signs.insert(signs.end(), of_layer.signs().begin(), of_layer.signs().end());
      permutation.insert(permutation.end(), of_layer.permutation().begin(),
                         of_layer.permutation().end());
    }
    signs_ = DeviceBuffer<float>(std::span<const float>(signs));
    permutation_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(permutation));
  }
}

void Transition::run(const HeadsPointer& q, const HeadsPointer& k, Element element,
                     std::int64_t tokens, std::int64_t layer, SplitMatrix& out,
                     cudaStream_t stream) {
  pool(q, k, element, tokens, layer, stream);
  score(stream);
  finish(out, stream);
}

void Transition::pool(const HeadsPointer& q, const HeadsPointer& k, Element element,
                      std::int64_t tokens, std::int64_t layer, cudaStream_t stream) {
  if (tokens < 1 || tokens > shape_.max_tokens || layer < 0 || layer >= shape_.layers) {
    throw std::logic_error("selection: more tokens or layers than the workspace was made for");
  }
  for (const HeadsPointer* x : {&q, &k}) {
    if (reinterpret_cast<std::uintptr_t>(x->data) % 16 != 0 || x->head_stride % 8 != 0 ||
        x->token_stride % 8 != 0) {
      throw Error(ErrorKind::kUnsupported, "queries and keys on the GPU must be 16-byte aligned",
                  "pad the rows to a multiple of 8 elements");
    }
  }
  tokens_ = tokens;
  const Sketch sketch(params_, layer, shape_.head_dim);
  const double rank = static_cast<double>(sketch.dim());
  const auto padded = static_cast<double>(sketch.padded_dim());
  double scale = sketch.logit_scale() / params_.temperature * std::numbers::log2e;
  if (transformed_) scale *= params_.unbiased ? 1.0 / rank : rank / padded;
  EmitArgs emit_args{shape_.head_dim, dim_, padded_dim_, 0, nullptr, nullptr};
  if (transformed_) {
    emit_args.transform_dim = static_cast<int>(sketch.padded_dim());
    emit_args.signs = signs_.data() + layer * sketch.padded_dim();
    emit_args.permutation = permutation_.data() + layer * sketch.padded_dim();
  }
  const auto side_args = [&](const Side& side, const HeadsPointer& x, double factor) {
    const int count = side.count(tokens);
    return SideArgs{x.data,
                    x.head_stride,
                    x.token_stride,
                    side.input_heads,
                    side.pool,
                    count,
                    round_up(count, kTile),
                    side.operands.data(),
                    side.plane,
                    side.scale.data(),
                    static_cast<float>(factor),
                    side.means.data()};
  };
  const PoolArgs args{{side_args(queries_, q, scale), side_args(keys_, k, 1.0)},
                      tokens,
                      params_.partial_mean,
                      emit_args};
  const auto grid = [](std::int64_t warps) {
    return static_cast<unsigned>((warps + kPoolWarps - 1) / kPoolWarps);
  };
  std::int64_t warps = 0;
  for (const SideArgs& side : args.side)
    warps += static_cast<std::int64_t>(side.heads) * side.count;
  const auto launch = [&](auto kernel) {
    kernel<<<grid(warps), kPoolWarps * 32, 0, stream>>>(args);
    check_launch("pool_tokens");
  };
  element == Element::kBf16 ? launch(pool_tokens<__nv_bfloat16>) : launch(pool_tokens<__half>);
  if (args.side[0].means == nullptr) return;
  mean_over_heads<<<grid(args.side[0].count + args.side[1].count), kPoolWarps * 32, 0, stream>>>(
      args);
  check_launch("mean_over_heads");
}

void Transition::score(cudaStream_t stream) {
  ScoreArgs p{};
  p.q = queries_.operands.data();
  p.k = keys_.operands.data();
  p.q_plane = queries_.plane;
  p.k_plane = keys_.plane;
  p.q_scale = queries_.scale.data();
  p.k_scale = keys_.scale.data();
  p.lse = lse_.data();
  p.sums = sums_.data();
  p.heads = queries_.heads;
  p.kv_heads = keys_.heads;
  p.queries = queries_.count(tokens_);
  p.keys = keys_.count(tokens_);
  p.padded_queries = round_up(p.queries, kTile);
  p.padded_keys = round_up(p.keys, kTile);
  p.padded_dim = padded_dim_;
  p.blocks = static_cast<int>((tokens_ + params_.block - 1) / params_.block);
  p.sum_stride = SplitMatrix::padded(p.blocks);
  p.query_shift = std::countr_zero(static_cast<unsigned>(params_.block / queries_.pool));
  p.key_shift = std::countr_zero(static_cast<unsigned>(params_.block / keys_.pool));
  p.causal = params_.causal;
  const int row_tiles = p.padded_queries / kTile;
  const int col_tiles = p.padded_keys / kTile;
  const auto capacity = static_cast<std::int64_t>(sums_.size()) / (p.blocks * p.sum_stride);
  head_chunks_ = choose_head_chunks(row_tiles * col_tiles, p.heads, multiprocessors(), capacity);
  p.head_chunk = (p.heads + head_chunks_ - 1) / head_chunks_;
  head_chunks_ = (p.heads + p.head_chunk - 1) / p.head_chunk;

  const auto launch = [&](auto kernel, dim3 grid, int stage_bytes, int other_bytes, int at_least,
                          const char* name) {
    p.stages = pipeline_stages(stage_bytes, other_bytes);
    const int shared = std::max(p.stages * stage_bytes + other_bytes, at_least);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
    kernel<<<grid, kThreads, static_cast<std::size_t>(shared), stream>>>(p);
    check_launch(name);
  };
  constexpr int kTerms = 3;
  constexpr int kPlaneBytes = planes_of(kTerms) * kTileBytes;
  launch(softmax_denominators<kTerms>,
         dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>(p.heads)), kPlaneBytes,
         padded_dim_ / kStep * kPlaneBytes + 2 * kWarpsN * kTile * 4, 0, "softmax_denominators");
  launch(sum_probabilities<kTerms>,
         dim3(static_cast<unsigned>(col_tiles), static_cast<unsigned>(row_tiles),
              static_cast<unsigned>(head_chunks_)),
         2 * kPlaneBytes, kScaleBytes, kTile * kSumStride * 4, "sum_probabilities");
}

void Transition::finish(SplitMatrix& out, cudaStream_t stream) {
  const auto blocks = static_cast<int>((tokens_ + params_.block - 1) / params_.block);
  out.resize(blocks);
  const auto per_block = static_cast<int>(params_.block / queries_.pool);
  const int last = queries_.count(tokens_) - (blocks - 1) * per_block;
  const double scale = std::pow(out_scale(), 1.0 / params_.sharpness);
  RowRule rule;
  rule.factor = static_cast<float>(scale / (queries_.heads * per_block));
  rule.last_factor = static_cast<float>(scale / (queries_.heads * last));
  rule.sharpness = static_cast<float>(params_.sharpness);
  rule.normalize = params_.normalize;
  finish_rows(sums_.data(), out.stride(), head_chunks_, blocks * out.stride(), rule, out, stream);
}

double Transition::out_scale() const {
  return params_.normalize ? 1.0 : std::pow(std::exp2(kPowerShift), params_.sharpness - 1.0);
}

KernelCost Transition::pool_cost(std::int64_t tokens) const {
  const double elements =
      static_cast<double>(tokens) * shape_.head_dim * (shape_.num_heads + shape_.num_kv_heads);
  return {elements, 2.0 * elements};
}

KernelCost Transition::score_cost(std::int64_t tokens) const {
  const double queries = queries_.count(tokens);
  const double keys = keys_.count(tokens);
  const double pairs = queries * keys * (params_.causal ? 0.5 : 1.0);
  const double blocks = static_cast<double>((tokens + params_.block - 1) / params_.block);
  return {2.0 * pairs * queries_.heads * dim_,
          4.0 * dim_ * (queries * queries_.heads + keys * keys_.heads) + 4.0 * blocks * blocks};
}

}  // namespace sw::cuda
