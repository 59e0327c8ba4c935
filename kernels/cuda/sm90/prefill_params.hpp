#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/launch.hpp"

/// What the host hands to the prefill kernel (prefill_kernel.cuh), and the instances that exist.
namespace sw::cuda {

/// Work is cut into tiles: one 64-query block (fine block) of `heads_per_tile` heads of a KV head,
/// or `rows_per_tile` neighbouring fine blocks of one head. Each of the tile's consumer warpgroups
/// has one head and one fine block; all walk the same list of key blocks.
struct PrefillParams {
  CUtensorMap q;  ///< [num_heads, queries, head_dim], boxes of 64 tokens x 64 columns
  CUtensorMap k;  ///< [num_kv_heads, tokens, head_dim], likewise
  CUtensorMap v;
  void* out;
  std::int64_t out_head_stride;
  std::int64_t out_token_stride;
  float* lse;        ///< [num_heads, queries] or null
  float scale_log2;  ///< scale * log2(e)
  int tokens;
  int query_begin;  ///< position of the first query
  int group;        ///< query heads of a KV head
  int heads_per_tile;
  int rows_per_tile;
  int sets;        ///< tiles of a KV head and row
  int first_fine;  ///< fine block of the first tile row
  int tile_rows;   ///< tile rows of a head
  int tiles;
  int* tile_counter;              ///< tiles given out beyond the first of each CTA
  const std::int64_t* row_begin;  ///< of the selection; null = dense
  const std::int32_t* row_count;
  const std::int32_t* blocks;
  int heads_per_group;  ///< heads that share a row set
  int selection_rows;
  int first_row;
  int fine_per_block;  ///< B / 64
  int token_window;    ///< token-level parts, used by masked instances
  int token_sink;
};

struct PrefillInstance {
  int threads;
  int shared_bytes;
  int ctas_per_multiprocessor;
  void (*kernel)(PrefillParams);
};

/// The instance for 1, 2 or (head_dim 64 only) 4 consumer warpgroups; `masked` applies token-level
/// parts.
template <Element kElement, int kDim>
PrefillInstance prefill_instance(int warpgroups, bool masked);

}  // namespace sw::cuda
