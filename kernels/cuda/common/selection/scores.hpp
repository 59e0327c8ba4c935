#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/selection/matrix.hpp"

/// Scores of pooled queries and keys: arguments of the two kernels, and their launches.
namespace sw::cuda {

inline constexpr int kTile = 128;  ///< pooled queries and pooled keys of a score tile

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

/// Fills lse, then sums, with mma.sync (sm_80 and later). `head_chunk` is set.
void launch_scores_portable(const ScoreArgs& args, int head_chunks, cudaStream_t stream);
/// The same with wgmma (sm_90).
void launch_scores_hopper(const ScoreArgs& args, int head_chunks, cudaStream_t stream);

inline constexpr int kMaxStripBlocks = 2048;

/// Whether launch_score_strips() can: pools of whole blocks, more than one tile of them, and no
/// more than a cluster holds.
bool fits_strips(const ScoreArgs& args);
/// Fills sums alone, in one pass (sm_90), in pieces instead of head chunks: at most `capacity` (2
/// or more) of a strip.
StripPieces launch_score_strips(const ScoreArgs& args, std::int64_t capacity, cudaStream_t stream);

}  // namespace sw::cuda
