#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/launch.hpp"
#include "kernels/cuda/sm80/tile.cuh"

/// The block mass kernel, for any `Math` that multiplies tiles. A thread block takes one query
/// block row of as many heads of a group as fit into a tile, and a span of key blocks.
namespace sw::cuda::sm80 {

template <class Math>
__global__ void __launch_bounds__(Math::kThreads, 512 / Math::kThreads)
    block_mass_kernel(const MassLaunch launch) {
  using Storage = typename Math::Storage;
  constexpr int kChunks = Math::kTileKeys / kChunkKeys;
  constexpr int kCopyRows = Math::kTileKeys / (Math::kThreads / 32);
  constexpr int kSlots = Math::kTileRows / Math::kSlotRows;
  extern __shared__ __align__(16) unsigned char shared[];
  Storage* q_tile = reinterpret_cast<Storage*>(shared);
  Storage* k_tiles = q_tile + Math::kTileRows * Math::kStride;  // two
  __shared__ float sums[2][kSlots][kChunks];

  const BlockMasses& problem = launch.problem;
  const int tokens = static_cast<int>(problem.tokens);
  const int query_begin = static_cast<int>(problem.tokens - problem.queries);
  const int r = launch.rows - 1 - static_cast<int>(blockIdx.x);
  const int diagonal = query_begin / problem.block + r;
  const int begin = max(diagonal * problem.block, query_begin);
  const int end = min(problem.block, tokens - diagonal * problem.block) + diagonal * problem.block;
  const int group = problem.num_heads / problem.num_kv_heads;
  const int tiles_per_group = (group + launch.tile_heads - 1) / launch.tile_heads;
  const int kv_head = static_cast<int>(blockIdx.y) / tiles_per_group;
  const int head_in_group = static_cast<int>(blockIdx.y) % tiles_per_group * launch.tile_heads;
  const int heads = min(launch.tile_heads, group - head_in_group);
  const int first_head = kv_head * group + head_in_group;

  const int chunks_per_block = problem.block / kChunkKeys;
  const int first_chunk = static_cast<int>(blockIdx.z) * launch.span_blocks * chunks_per_block;
  const int end_chunk =
      min(first_chunk + launch.span_blocks * chunks_per_block, (end - 1) / kChunkKeys + 1);
  if (first_chunk >= end_chunk) return;
  // Every chunk of a step belongs to one block.
  const bool whole = chunks_per_block % kChunks == 0;

  const auto* k = static_cast<const Storage*>(problem.k.data) + kv_head * problem.k.head_stride;
  const int copy_row = static_cast<int>(threadIdx.x) / 32 * kCopyRows;
  const auto copy_keys = [&](int step) {
    copy_rows<Math, kCopyRows>(k_tiles + (step % 2 * Math::kTileKeys + copy_row) * Math::kStride, k,
                               problem.k.token_stride,
                               (first_chunk + step * kChunks) * kChunkKeys + copy_row, tokens,
                               problem.head_dim);
    commit_copies();
  };
  const float scale = problem.scale * 1.44269504f;
  const int steps = (end_chunk - first_chunk + kChunks - 1) / kChunks;
  const int row_steps = (launch.row_pitch + Math::kTileRows - 1) / Math::kTileRows;

  for (int part = 0; part < row_steps; ++part) {  // more than one in blocks longer than a tile
    const auto query_of = [&](int row) {          // position, or `end` for no query
      const int query = row_steps == 1 ? row % launch.row_pitch : part * Math::kTileRows + row;
      const bool exists = row_steps > 1 || row / launch.row_pitch < heads;
      return exists ? min(begin + query, end) : end;
    };
    const auto head_of = [&](int row) {
      return first_head + (row_steps == 1 ? row / launch.row_pitch : 0);
    };
    __syncthreads();  // nobody reads the queries before any more
    copy_queries<Math>(q_tile, problem.q.data, problem.head_dim, [&](int row) -> std::int64_t {
      const int query = query_of(row);
      if (query == end) return -1;
      return head_of(row) * problem.q.head_stride + (query - query_begin) * problem.q.token_stride;
    });
    copy_keys(0);

    int queries[Math::kRows];
    float lse[Math::kRows];
#pragma unroll
    for (int i = 0; i < Math::kRows; ++i) {
      queries[i] = query_of(Math::row(i));
      lse[i] =
          queries[i] == end
              ? INFINITY
              : problem.lse[head_of(Math::row(i)) * problem.queries + queries[i] - query_begin] *
                    1.44269504f;
    }

    // Thread h adds up the masses of head h of the tile.
    const int slots_per_head =
        row_steps == 1 ? launch.row_pitch / Math::kSlotRows : Math::kTileRows / Math::kSlotRows;
    float running = 0.0f;
    const auto collect = [&](int step) {
      if (static_cast<int>(threadIdx.x) >= heads) return;
      for (int x = 0; x < kChunks; ++x) {
        const int chunk = first_chunk + step * kChunks + x;
        if (chunk >= end_chunk) return;
        for (int slot = 0; slot < slots_per_head; ++slot) {
          running += sums[step % 2][static_cast<int>(threadIdx.x) * slots_per_head + slot][x];
        }
        if ((chunk + 1) % chunks_per_block != 0 && chunk + 1 != end_chunk) continue;
        const std::int64_t row =
            static_cast<std::int64_t>(first_head + static_cast<int>(threadIdx.x)) * launch.rows + r;
        float* mass = problem.mass + row * launch.key_blocks + chunk / chunks_per_block;
        const float mean = running / static_cast<float>(end - begin);
        *mass = part == 0 ? mean : *mass + mean;
        running = 0.0f;
      }
    };

    for (int step = 0; step < steps; ++step) {
      wait_for_copies();
      __syncthreads();  // keys and the sums before are there; nobody reads the keys before
      if (step + 1 < steps) copy_keys(step + 1);
      if (step > 0) collect(step - 1);

      float s[Math::kRows][Math::kCols];
      Math::scores(s, q_tile, k_tiles + step % 2 * Math::kTileKeys * Math::kStride);
      const int first_token = (first_chunk + step * kChunks) * kChunkKeys;
      if (first_token + Math::kTileKeys > begin) {
#pragma unroll
        for (int i = 0; i < Math::kRows; ++i) {
#pragma unroll
          for (int j = 0; j < Math::kCols; ++j) {
            if (first_token + Math::column(j) > queries[i]) s[i][j] = -INFINITY;
          }
        }
      }
      float chunk_sums[Math::kThreadSlots][kChunks] = {};
#pragma unroll
      for (int i = 0; i < Math::kRows; ++i) {
#pragma unroll
        for (int j = 0; j < Math::kCols; ++j) {
          chunk_sums[Math::slot_of(i)][Math::chunk_of(j)] +=
              exp2_approximate(fmaf(s[i][j], scale, -lse[i]));
        }
      }
#pragma unroll
      for (int n = 0; n < Math::kThreadSlots; ++n) {
        if (whole) {
#pragma unroll
          for (int x = 1; x < kChunks; ++x) {
            chunk_sums[n][0] += chunk_sums[n][x];
            chunk_sums[n][x] = 0.0f;
          }
          chunk_sums[n][0] = sum_lanes<32>(chunk_sums[n][0]);
        } else {
#pragma unroll
          for (int x = 0; x < kChunks; ++x) chunk_sums[n][x] = sum_lanes<32>(chunk_sums[n][x]);
        }
        if (threadIdx.x % 32 == 0) {
#pragma unroll
          for (int x = 0; x < kChunks; ++x) {
            sums[step % 2][Math::warp_row() / Math::kSlotRows + n][x] = chunk_sums[n][x];
          }
        }
      }
    }
    __syncthreads();
    collect(steps - 1);
  }
}

template <class Math>
void launch_block_masses(const MassLaunch& launch, cudaStream_t stream) {
  constexpr std::size_t kShared =
      (Math::kTileRows + 2 * Math::kTileKeys) * Math::kStride * sizeof(typename Math::Storage);
  const BlockMasses& problem = launch.problem;
  MassLaunch tiled = launch;
  const int group = problem.num_heads / problem.num_kv_heads;
  const int fitting = Math::kTileRows / launch.row_pitch;
  tiled.tile_heads = fitting < 1 ? 1 : fitting < group ? fitting : group;
  // Spans long enough to pay for the queries' copy, short enough to fill a GPU with one query.
  tiled.span_blocks = (4096 + problem.block - 1) / problem.block;
  check(cudaFuncSetAttribute(block_mass_kernel<Math>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kShared),
        "shared memory of the block masses");
  const dim3 grid(
      static_cast<unsigned>(launch.rows),
      static_cast<unsigned>((group + tiled.tile_heads - 1) / tiled.tile_heads *
                            problem.num_kv_heads),
      static_cast<unsigned>((launch.key_blocks + tiled.span_blocks - 1) / tiled.span_blocks));
  block_mass_kernel<Math><<<grid, Math::kThreads, kShared, stream>>>(tiled);
  check_launch("sm80 block masses");
}

}  // namespace sw::cuda::sm80
