#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/launch.hpp"

/// Dense softmax probabilities of key blocks, which recall is measured by (metrics.md), without a
/// matrix of queries by keys: scores are computed again and weighed with the log-sum-exp of the
/// dense attention. Results do not change from run to run.
namespace sw::cuda::sm80 {

struct BlockMasses {
  HeadsPointer q;  ///< [num_heads, queries, head_dim]
  HeadsPointer k;  ///< [num_kv_heads, tokens, head_dim]
  Element element = Element::kBf16;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t queries = 0;
  float scale = 1.0f;          ///< of q.k; > 0
  const float* lse = nullptr;  ///< [num_heads, queries] of the dense attention, natural logarithm
  int block = 64;              ///< tokens of a block, a multiple of 16
  /// [num_heads, rows, key_blocks], rows from the block of the first query on: mean over the
  /// queries of a row of the probability of each key block; 0 after the row's own block.
  float* mass = nullptr;
};

/// Cost of the launch: causal scores once, every mass written once.
KernelCost cost(const BlockMasses& problem);

/// Enqueues the masses. Supports what prefill_attention() supports.
void block_masses(const BlockMasses& problem, cudaStream_t stream);

}  // namespace sw::cuda::sm80
