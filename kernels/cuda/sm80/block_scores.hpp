#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/launch.hpp"

/// The parts of a block transition matrix and of its walk (sketchwalk.md sections 1, 2 and 9) in
/// double precision, for evaluation: selections then agree with those of the CPU, near-ties and
/// all. A selection that is to be timed is made elsewhere, in single precision.
namespace sw::cuda::sm80 {

/// Sums of `pool` consecutive tokens, over the pool size or over the tokens present.
struct TokenPooling {
  HeadsPointer x;  ///< [heads, tokens, head_dim]
  Element element = Element::kBf16;
  int heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t pool = 64;
  bool partial_mean = false;
  double* means = nullptr;  ///< [heads, ceil(tokens / pool), head_dim]
};
void pool_tokens(const TokenPooling& pooling, cudaStream_t stream);

/// c = alpha a b + beta d.
struct DoubleProduct {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  const double* a = nullptr;  ///< [m, k]
  const double* b = nullptr;  ///< [k, n], or [n, k] when b_transposed
  bool b_transposed = false;
  double alpha = 1.0;
  double beta = 0.0;
  const double* d = nullptr;  ///< [m, n]; null when beta is 0
  double* c = nullptr;        ///< [m, n]
};
void multiply(const DoubleProduct& product, cudaStream_t stream);

/// Adds, for each pooled query, the softmax over its pooled keys, summed over the keys of a block.
struct BlockProbabilities {
  const double* logits = nullptr;  ///< [pooled queries of the rows, keys]
  std::int64_t queries = 0;        ///< pooled queries of the rows
  std::int64_t keys = 0;           ///< pooled keys of the context
  std::int64_t queries_per_block = 1;
  std::int64_t keys_per_block = 1;
  std::int64_t first_row = 0;  ///< block row of the first query
  std::int64_t blocks = 0;     ///< columns of `sum`
  bool causal = false;         ///< only key blocks j <= i take part in the softmax of block row i
  double* sum = nullptr;       ///< [blocks, blocks]
};
void add_block_probabilities(const BlockProbabilities& rows, cudaStream_t stream);

}  // namespace sw::cuda::sm80
