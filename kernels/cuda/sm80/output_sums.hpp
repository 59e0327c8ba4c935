#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

/// Sums that compare two attention outputs block row by block row, from which output error and
/// cosine follow (metrics.md) without a copy of the outputs to the host.
namespace sw::cuda::sm80 {

inline constexpr int kSums = 4;

/// Two outputs of one problem, and where their sums go.
struct OutputPair {
  const float* dense = nullptr;   ///< [heads, queries, head_dim], contiguous
  const float* sparse = nullptr;  ///< likewise
  int heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t queries = 0;  ///< the last ones of `tokens`
  int block = 64;
  /// [heads, rows, kSums]: |dense - sparse|^2, |dense|^2, |sparse|^2, <dense, sparse>, in double
  /// and in a fixed order.
  double* sums = nullptr;
};

void output_sums(const OutputPair& pair, cudaStream_t stream);

}  // namespace sw::cuda::sm80
