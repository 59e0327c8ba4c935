#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/scores.hpp"
#include "kernels/cuda/common/selection/tile.cuh"

/// Softmax of pooled scores and its sum over heads, for any way of multiplying tiles (tile.cuh).
namespace sw::cuda {

__device__ inline bool visible(const ScoreArgs& p, int u, int v) {
  return u < p.queries && v < p.keys && (!p.causal || (v >> p.key_shift) <= (u >> p.query_shift));
}
/// Whether some pair of the tile of `rows` at (u0, v0) is not visible.
__device__ inline bool is_edge(const ScoreArgs& p, int u0, int v0, int rows = kTile) {
  return u0 + rows > p.queries || v0 + kTile > p.keys ||
         (p.causal && ((v0 + kTile - 1) >> p.key_shift) > (u0 >> p.query_shift));
}
/// Whether no pair of it is.
__device__ inline bool is_hidden(const ScoreArgs& p, int u0, int v0) {
  return v0 >= p.keys || (p.causal && (v0 >> p.key_shift) > ((u0 + kTile - 1) >> p.query_shift));
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// `count` products of `chunks` stages: `issue(acc, chunk)` starts a stage, `use(acc, index)` works
/// on a finished product.
template <class Tile, class Issue, class Use>
__device__ __forceinline__ void run_products(int count, int chunks, Issue issue, Use use) {
  float acc[Tile::kM][Tile::kN][4];
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < chunks; ++c) issue(acc, c);
    Tile::finish();
    use(acc, i);
  }
}

/// log2 of the softmax denominators: one CTA for 128 pooled queries of a head, which stay in shared
/// memory while the keys pass.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) softmax_denominators(ScoreArgs p) {
  constexpr int kM = Tile::kM;
  constexpr int kN = Tile::kN;
  constexpr int kPlanes = Tile::kPlanes;
  constexpr int kTileBytes = Tile::kBytes;
  constexpr int kStageBytes = kPlanes * kTileBytes;
  extern __shared__ unsigned char unaligned[];
  unsigned char* shared = align_shared(unaligned);
  wait_for_previous();
  const int chunks = p.padded_dim / Tile::kChunk;
  const std::uint32_t resident = shared_address(shared);
  const std::uint32_t ring = resident + chunks * kStageBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / Tile::kWarpsN * kM * 16;
  const int n0 = warp % Tile::kWarpsN * kN * 8;
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
          p.k + (k_row + next_tile * kTile) * p.padded_dim + next_chunk * Tile::kChunk;
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        Tile::template copy<kTile>(ring + next_slot * kStageBytes + plane * kTileBytes,
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
      Tile::template copy<kTile>(resident + c * kStageBytes + plane * kTileBytes,
                                 p.q + plane * p.q_plane + q_row * p.padded_dim + c * Tile::kChunk,
                                 p.padded_dim);
    }
  }
  for (int i = 0; i < p.stages - Tile::kBehind; ++i) load();

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
  const auto add_tile = [&](auto& acc, int tile, auto edge) {
    const float* k_scale = p.k_scale + k_row + tile * kTile + n0 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const float2 scale = *reinterpret_cast<const float2*>(k_scale + n * 8);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float& x = acc[m][n][c];
          x *= (c % 2 == 0 ? scale.x : scale.y) * row_scale[m][c / 2];
          const int u = u0 + m0 + m * 16 + c / 2 * 8 + lane / 4;
          const int v = tile * kTile + n0 + n * 8 + lane % 4 * 2 + c % 2;
          if (edge() && !visible(p, u, v)) x = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = row_max[m][half];
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          largest = fmaxf(largest, fmaxf(acc[m][n][half * 2], acc[m][n][half * 2 + 1]));
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
  int slot = 0;
  run_products<Tile>(
      tiles, chunks,
      [&](auto& acc, int c) {
        Tile::wait(p.stages);
        load();
        Tile::issue(c == 0, acc, resident + c * kStageBytes, kTileBytes, ring + slot * kStageBytes,
                    kTileBytes, m0, n0);
        if (++slot == p.stages) slot = 0;
      },
      [&](auto& acc, int tile) {
        if (is_edge(p, u0, tile * kTile)) {
          add_tile(acc, tile, std::true_type());
        } else {
          add_tile(acc, tile, std::false_type());
        }
      });
  // A row lies in the 4 lanes of a quad and in the warps abreast, which meet in the memory of the
  // queries.
  wait_copies<0>();
  __syncthreads();
  auto* warp_max = reinterpret_cast<float(*)[kTile]>(shared);
  auto* warp_sum = warp_max + Tile::kWarpsN;
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
      warp_max[warp % Tile::kWarpsN][row] = largest;
      warp_sum[warp % Tile::kWarpsN][row] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kTile) return;
  float largest = -INFINITY;
  for (int w = 0; w < Tile::kWarpsN; ++w) largest = fmaxf(largest, warp_max[w][threadIdx.x]);
  const float base = largest == -INFINITY ? 0.0f : largest;
  float sum = 0.0f;
  for (int w = 0; w < Tile::kWarpsN; ++w) {
    sum += warp_sum[w][threadIdx.x] * exp2f(warp_max[w][threadIdx.x] - base);
  }
  p.lse[q_row + threadIdx.x] = base + log2f(sum);
}

constexpr int kSumStride = kTile + 4;  ///< of the shared f32 tile, against bank conflicts
constexpr int kScaleBuffers = 16;      ///< more heads than can be under way with 8 stages
constexpr int kScaleBytes = kScaleBuffers * 3 * kTile * static_cast<int>(sizeof(float));

/// Sum over the heads of a chunk of softmax probabilities, one CTA for a tile of pooled queries and
/// pooled keys; pairs of the same two blocks are then added up. kOnePass: these are all keys, and
/// the denominators are formed here.
template <class Tile, bool kOnePass>
__global__ void __launch_bounds__(Tile::kThreads, 1) sum_probabilities(ScoreArgs p) {
  constexpr int kM = Tile::kM;
  constexpr int kN = Tile::kN;
  constexpr int kPlanes = Tile::kPlanes;
  constexpr int kTileBytes = Tile::kBytes;
  constexpr int kStageBytes = 2 * kPlanes * kTileBytes;
  extern __shared__ unsigned char unaligned[];
  unsigned char* shared = align_shared(unaligned);
  wait_for_previous();
  float(*scales)[3][kTile] = reinterpret_cast<float(*)[3][kTile]>(shared);
  const std::uint32_t scales_address = shared_address(shared);
  const std::uint32_t ring = scales_address + kScaleBytes;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / Tile::kWarpsN * kM * 16;
  const int n0 = warp % Tile::kWarpsN * kN * 8;
  const int u0 = static_cast<int>(blockIdx.y) * Tile::kRows;
  const int v0 = static_cast<int>(blockIdx.x) * kTile;
  const int first_head = static_cast<int>(blockIdx.z) * p.head_chunk;
  const int heads = min(p.head_chunk, p.heads - first_head);
  const int group = p.heads / p.kv_heads;
  const int chunks = p.padded_dim / Tile::kChunk;
  const bool edge = is_edge(p, u0, v0, Tile::kRows);

  float sum[kM][kN][4] = {};
  if (!is_hidden(p, u0, v0)) {
    // Heads of a group share the keys, which stay while their chunks are no more than the stages
    // that may be in use when one is replaced.
    const bool keys_stay = chunks <= Tile::kBehind;
    const auto needs_keys = [&](int h) {
      return !keys_stay || h == 0 || (first_head + h) % group == 0;
    };
    int next_head = 0;
    int next_chunk = 0;
    int next_slot = 0;
    int next_key_slot = 0;
    const auto load = [&] {
      if (next_head < heads) {
        const bool with_keys = needs_keys(next_head);
        const int head = first_head + next_head;
        const std::int64_t q_row = static_cast<std::int64_t>(head) * p.padded_queries + u0;
        const std::int64_t k_row = static_cast<std::int64_t>(head / group) * p.padded_keys + v0;
        const std::uint32_t q = ring + next_slot * kStageBytes;
        const std::uint32_t k = ring + next_key_slot * kStageBytes + kPlanes * kTileBytes;
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          Tile::template copy<Tile::kRows>(
              q + plane * kTileBytes,
              p.q + plane * p.q_plane + q_row * p.padded_dim + next_chunk * Tile::kChunk,
              p.padded_dim);
        }
        if (with_keys) {
#pragma unroll
          for (int plane = 0; plane < kPlanes; ++plane) {
            Tile::template copy<kTile>(
                k + plane * kTileBytes,
                p.k + plane * p.k_plane + k_row * p.padded_dim + next_chunk * Tile::kChunk,
                p.padded_dim);
          }
          if (++next_key_slot == p.stages) next_key_slot = 0;
        }
        if (next_chunk == 0 && threadIdx.x < 96 && !(kOnePass && threadIdx.x / 32 == 1)) {
          const int which = static_cast<int>(threadIdx.x) / 32;
          const float* from = which == 0   ? p.q_scale + q_row
                              : which == 1 ? p.lse + q_row
                                           : p.k_scale + k_row;
          const int buffer = next_head % kScaleBuffers;
          if (which == 2 || lane * 4 < Tile::kRows) {
            copy_async(scales_address + ((buffer * 3 + which) * kTile + lane * 4) * 4,
                       from + lane * 4);
          }
        }
        if (++next_chunk == chunks) next_chunk = 0, ++next_head;
        if (++next_slot == p.stages) next_slot = 0;
      }
      commit_copies();
    };
    for (int i = 0; i < p.stages - Tile::kBehind; ++i) load();
    // Logits of a row, which lies in the 4 lanes of a quad, become exponentials; returns what makes
    // them probabilities.
    const auto exponentiate = [](auto& logits, int half) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        largest = fmaxf(largest, fmaxf(logits[n][half * 2], logits[n][half * 2 + 1]));
      }
      for (int offset = 1; offset < 4; offset *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
      }
      const float base = largest == -INFINITY ? 0.0f : largest;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = logits[n][half * 2 + c];
          x = exp2_fast(x - base);
          total += x;
        }
      }
      for (int offset = 1; offset < 4; offset *= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, offset);
      }
      return total == 0.0f ? 0.0f : 1.0f / total;
    };
    const auto add_head = [&](auto& acc, int h, auto edge_tile) {
      const float(*scale)[kTile] = scales[h % kScaleBuffers];
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const int column = n0 + n * 8 + lane % 4 * 2;
        const float2 column_scale = *reinterpret_cast<const float2*>(&scale[2][column]);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            acc[m][n][c] *= c % 2 == 0 ? column_scale.x : column_scale.y;
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = m0 + m * 16 + half * 8 + lane / 4;
          const float row_scale = scale[0][row];
          float lse = 0.0f;
          if constexpr (!kOnePass) lse = scale[1][row];
#pragma unroll
          for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              float& x = acc[m][n][half * 2 + c];
              x = fmaf(x, row_scale, -lse);
              const int v = v0 + n0 + n * 8 + lane % 4 * 2 + c;
              if (edge_tile() && !visible(p, u0 + row, v)) x = -INFINITY;
            }
          }
          float factor = 1.0f;
          if constexpr (kOnePass) factor = exponentiate(acc[m], half);
#pragma unroll
          for (int n = 0; n < kN; ++n) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const float x = acc[m][n][half * 2 + c];
              float& to = sum[m][n][half * 2 + c];
              to = kOnePass ? fmaf(x, factor, to) : to + exp2_fast(x);
            }
          }
        }
      }
    };
    int slot = 0;
    int head = 0;
    int key_slot = 0;  // of chunk 0
    run_products<Tile>(
        heads, chunks,
        [&](auto& acc, int chunk) {
          Tile::wait(p.stages);
          load();
          int k = key_slot + chunk;
          if (k >= p.stages) k -= p.stages;
          Tile::issue(chunk == 0, acc, ring + slot * kStageBytes, kTileBytes,
                      ring + k * kStageBytes + kPlanes * kTileBytes, kTileBytes, m0, n0);
          if (++slot == p.stages) slot = 0;
          if (chunk + 1 == chunks && needs_keys(++head)) key_slot = (key_slot + chunks) % p.stages;
        },
        [&](auto& acc, int h) {
          if (edge) {
            add_head(acc, h, std::true_type());
          } else {
            add_head(acc, h, std::false_type());
          }
        });
    wait_copies<0>();
  }
  float* out = p.sums + blockIdx.z * (p.blocks * p.sum_stride);
  if (p.query_shift == 0 && p.key_shift == 0) {  // a pair of pools is a pair of blocks
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = u0 + m0 + m * 16 + half * 8 + lane / 4;
        if (row >= p.blocks) continue;
        float* to = out + row * p.sum_stride + v0 + n0 + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          *reinterpret_cast<float2*>(to + n * 8) =
              float2{sum[m][n][half * 2], sum[m][n][half * 2 + 1]};
        }
      }
    }
    return;
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
  const int outputs = (Tile::kRows * kTile) >> p.query_shift >> p.key_shift;
  for (int index = static_cast<int>(threadIdx.x); index < outputs; index += Tile::kThreads) {
    const int i = index << p.key_shift >> 7;
    const int j = index & ((kTile >> p.key_shift) - 1);
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

/// Launches both kernels; with one tile of keys the second, which takes OnePassTile where a pair of
/// pools is a pair of blocks.
template <class Tile, class OnePassTile = void>
void launch_scores(ScoreArgs p, int head_chunks, cudaStream_t stream) {
  const auto launch = [&](auto kernel, dim3 grid, int threads, int stage_bytes, int other_bytes,
                          int at_least, const char* name) {
    p.stages = pipeline_stages(stage_bytes, other_bytes + kAlignment);
    const int shared = std::max(p.stages * stage_bytes + other_bytes, at_least) + kAlignment;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
    launch_chained(name, kernel, grid, threads, static_cast<std::size_t>(shared), stream, p);
  };
  auto row_tiles = static_cast<unsigned>(p.padded_queries / kTile);
  const auto col_tiles = static_cast<unsigned>(p.padded_keys / kTile);
  constexpr int kResident = Tile::kPlanes * Tile::kBytes;
  const auto launch_sums = [&](auto kernel, int threads) {
    launch(kernel, dim3(col_tiles, row_tiles, static_cast<unsigned>(head_chunks)), threads,
           2 * Tile::kPlanes * Tile::kBytes, kScaleBytes, kTile * kSumStride * 4,
           "launch of sum_probabilities");
  };
  if constexpr (!std::is_void_v<OnePassTile>) {
    if (col_tiles == 1 && p.query_shift == 0 && p.key_shift == 0) {
      constexpr int kRows = OnePassTile::kRows;
      row_tiles = static_cast<unsigned>((p.queries + kRows - 1) / kRows);
      return launch_sums(sum_probabilities<OnePassTile, true>, OnePassTile::kThreads);
    }
    if (col_tiles == 1) return launch_sums(sum_probabilities<Tile, true>, Tile::kThreads);
  }
  launch(softmax_denominators<Tile>, dim3(row_tiles, static_cast<unsigned>(p.heads)),
         Tile::kThreads, kResident, p.padded_dim / Tile::kChunk * kResident, 0,
         "launch of softmax_denominators");
  launch_sums(sum_probabilities<Tile, false>, Tile::kThreads);
}

}  // namespace sw::cuda
