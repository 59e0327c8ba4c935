#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/launch.hpp"
#include "kernels/cuda/sm80/tile.cuh"

/// The attention kernel, for any `Math` that multiplies tiles. A thread block takes kTileRows rows
/// of one query block row: the queries of all heads that share KV head and row set, one head after
/// the other, so that the heads of a group share their keys whatever the block size, and a decode
/// step fills a tile with its group. The keys come in chunks of 16 from the row's list of blocks.
namespace sw::cuda::sm80 {

/// The chunks of keys that a tile visits: the kept blocks, then blocks seen in part.
struct ChunkList {
  const std::int32_t* blocks;  ///< null: block x is entry x
  const std::int32_t* extra;
  int kept;   ///< chunks of kept blocks
  int total;  ///< and of those seen in part
  int block;
  int chunks_per_block;

  /// First token of chunk c.
  __device__ int first_token(int c) const {
    if (c >= total) return kNoChunk;
    const bool is_extra = c >= kept;
    const unsigned index = is_extra ? c - kept : c;
    const int entry = static_cast<int>(index / static_cast<unsigned>(chunks_per_block));
    const int chunk = static_cast<int>(index) - entry * chunks_per_block;
    const int b = is_extra ? extra[entry] : blocks == nullptr ? entry : blocks[entry];
    return b * block + chunk * kChunkKeys;
  }
};

template <class Math>
__global__ void __launch_bounds__(Math::kThreads, Math::kResident)
    prefill_attention_kernel(const AttentionLaunch launch) {
  using Storage = typename Math::Storage;
  constexpr int kChunks = Math::kTileKeys / kChunkKeys;
  constexpr int kCopyRows = Math::kTileKeys / (Math::kThreads / 32);  // rows that a warp copies
  extern __shared__ __align__(16) unsigned char shared[];
  Storage* q_tile = reinterpret_cast<Storage*>(shared);
  Storage* k_tile = q_tile + Math::kTileRows * Math::kStride;
  Storage* v_tile = k_tile + Math::kTileKeys * Math::kStride;
  Storage* scratch = v_tile + Math::kTileKeys * Math::kStride;

  const PrefillAttention& problem = launch.problem;
  const SelectionView& selection = problem.selection;
  const int tokens = static_cast<int>(problem.tokens);
  const int query_begin = static_cast<int>(problem.tokens - problem.queries);
  // Later rows are the longer ones, in general: they go first.
  const int tiles = static_cast<int>((launch.rows + Math::kTileRows - 1) / Math::kTileRows);
  const int r = selection.rows - 1 - static_cast<int>(blockIdx.x) / tiles;
  const int tile_begin = static_cast<int>(blockIdx.x) % tiles * Math::kTileRows;
  const int first_head = static_cast<int>(blockIdx.y) * launch.pack_heads;
  const int kv_head = first_head / (problem.num_heads / problem.num_kv_heads);
  const int set_row = first_head / launch.heads_per_set * selection.rows + r;
  const int diagonal = selection.first_row + r;
  const int begin = max(diagonal * selection.block, query_begin);
  const int count = min(selection.block, tokens - diagonal * selection.block) -
                    (begin - diagonal * selection.block);  // queries of the block row
  const int live_rows = min(launch.pack_heads * count - tile_begin, Math::kTileRows);
  if (live_rows <= 0) return;

  const int last_row = tile_begin + live_rows - 1;
  const bool one_head = tile_begin / count == last_row / count;
  const int last_query = begin + (one_head ? last_row % count : count - 1);

  ChunkList chunks;
  chunks.block = selection.block;
  chunks.chunks_per_block = selection.block / kChunkKeys;
  chunks.blocks =
      selection.blocks == nullptr ? nullptr : selection.blocks + selection.row_begin[set_row];
  const int kept_blocks = selection.blocks == nullptr ? diagonal + 1 : selection.row_count[set_row];
  const int diagonal_chunk = (kept_blocks - 1) * chunks.chunks_per_block;
  chunks.kept = diagonal_chunk + (last_query - diagonal * selection.block) / kChunkKeys + 1;
  chunks.total = chunks.kept;
  chunks.extra = nullptr;
  if (launch.extra != nullptr) {
    chunks.extra = launch.extra + static_cast<std::int64_t>(set_row) * launch.extra_capacity;
    chunks.total += launch.extra_count[set_row] * chunks.chunks_per_block;
  }

  const auto* k = static_cast<const Storage*>(problem.k.data) + kv_head * problem.k.head_stride;
  const auto* v = static_cast<const Storage*>(problem.v.data) + kv_head * problem.v.head_stride;
  const int copy_row = static_cast<int>(threadIdx.x) / 32 * kCopyRows;
  const auto own_token = [&](int step) {  // first token of the rows that this warp copies
    return chunks.first_token(step * kChunks + copy_row / kChunkKeys) + copy_row % kChunkKeys;
  };
  const auto copy_tile = [&](Storage* tile, const Storage* head, std::int64_t stride, int token) {
    copy_rows<Math, kCopyRows>(tile + copy_row * Math::kStride, head, stride, token, tokens,
                               problem.head_dim);
    commit_copies();
  };

  copy_queries<Math>(q_tile, problem.q.data, problem.head_dim, [&](int row) -> std::int64_t {
    const int packed = tile_begin + row;
    if (row >= live_rows) return -1;
    return (first_head + packed / count) * problem.q.head_stride +
           (begin - query_begin + packed % count) * problem.q.token_stride;
  });
  int token = own_token(0);
  copy_tile(k_tile, k, problem.k.token_stride, token);

  float out[Math::kRows][Math::kOutCols];
  float largest[Math::kRows];
  float total[Math::kRows];
#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    largest[i] = -INFINITY;
    total[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < Math::kOutCols; ++j) out[i][j] = 0.0f;
  }
  const float scale = problem.scale * 1.44269504f;  // to powers of two
  const bool live = Math::warp_row() < live_rows;

  const int steps = (chunks.total + kChunks - 1) / kChunks;
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();
    __syncthreads();  // these keys are there, and nobody reads the values before
    copy_tile(v_tile, v, problem.v.token_stride, token);
    const int next_token = own_token(step + 1);

    float s[Math::kRows][Math::kCols];
    if (live) Math::scores(s, q_tile, k_tile);

    wait_for_copies();
    __syncthreads();  // the values are there, and nobody reads these keys any more
    token = next_token;
    if (step + 1 < steps) copy_tile(k_tile, k, problem.k.token_stride, token);
    if (!live) continue;

    if ((step + 1) * kChunks > diagonal_chunk) {
      int first_tokens[kChunks];
#pragma unroll
      for (int c = 0; c < kChunks; ++c) first_tokens[c] = chunks.first_token(step * kChunks + c);
#pragma unroll
      for (int i = 0; i < Math::kRows; ++i) {
        const int query = begin + min(tile_begin + Math::row(i), last_row) % count;
#pragma unroll
        for (int j = 0; j < Math::kCols; ++j) {
          const int column = Math::column(j);
          const int t = first_tokens[Math::chunk_of(j)] + column % kChunkKeys;
          const bool in_part = step * kChunks + Math::chunk_of(j) >= chunks.kept;
          const bool visible = t <= query && (!in_part || query - t < selection.token_window ||
                                              t < selection.token_sink);
          if (!visible) s[i][j] = -INFINITY;
        }
      }
    }
    // The first chunk of a row is visible to all of its queries, so that a maximum is finite from
    // the first step on.
    float shrink[Math::kRows];
    bool shrinks = false;
#pragma unroll
    for (int i = 0; i < Math::kRows; ++i) {
      float m = s[i][0];
#pragma unroll
      for (int j = 1; j < Math::kCols; ++j) m = fmaxf(m, s[i][j]);
      m = fmaxf(largest[i], max_lanes<Math::kRowLanes>(m));
      shrink[i] = exp2_approximate((largest[i] - m) * scale);
      shrinks |= largest[i] != m;
      largest[i] = m;
      total[i] *= shrink[i];
#pragma unroll
      for (int j = 0; j < Math::kCols; ++j) {
        s[i][j] = exp2_approximate(fmaf(s[i][j], scale, -m * scale));
        total[i] += s[i][j];
      }
    }
    if (__any_sync(0xffffffffu, shrinks)) {  // seldom, after the first steps
#pragma unroll
      for (int i = 0; i < Math::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Math::kOutCols; ++j) out[i][j] *= shrink[i];
      }
    }
    Math::accumulate(out, s, v_tile, scratch);
  }

#pragma unroll
  for (int i = 0; i < Math::kRows; ++i) {
    const float sum = sum_lanes<Math::kRowLanes>(total[i]);
    if (Math::row(i) >= live_rows) continue;
    const int packed = tile_begin + Math::row(i);
    const std::int64_t head = first_head + packed / count;
    const std::int64_t query = begin - query_begin + packed % count;
    if (problem.lse != nullptr && threadIdx.x % Math::kRowLanes == 0) {
      problem.lse[head * problem.queries + query] = (largest[i] * scale + log2f(sum)) * 0.69314718f;
    }
    const std::int64_t offset = head * problem.out_head_stride + query * problem.out_token_stride;
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int j = 0; j < Math::kOutCols; j += 2) {
      const int column = Math::out_column(j);
      if (column >= problem.head_dim) continue;
      const float x = out[i][j] * inverse;
      const float y = out[i][j + 1] * inverse;
      if (problem.out_f32) {
        *reinterpret_cast<float2*>(static_cast<float*>(problem.out) + offset + column) =
            make_float2(x, y);
      } else {
        Math::store_pair(static_cast<Storage*>(problem.out) + offset + column, x, y);
      }
    }
  }
}

template <class Math>
void launch_prefill_attention(const AttentionLaunch& launch, cudaStream_t stream) {
  constexpr std::size_t kShared =
      ((Math::kTileRows + 2 * Math::kTileKeys) * Math::kStride + Math::kScratch) *
      sizeof(typename Math::Storage);
  check(cudaFuncSetAttribute(prefill_attention_kernel<Math>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "shared memory of the attention");
  const std::int64_t tiles = (launch.rows + Math::kTileRows - 1) / Math::kTileRows;
  const dim3 grid(static_cast<unsigned>(launch.problem.selection.rows * tiles),
                  static_cast<unsigned>(launch.problem.num_heads / launch.pack_heads));
  prefill_attention_kernel<Math><<<grid, Math::kThreads, kShared, stream>>>(launch);
  check_launch("sm80 prefill attention");
}

}  // namespace sw::cuda::sm80
