#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/sketch.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/decode/attention.hpp"
#include "kernels/cuda/common/decode/budget.hpp"

/// Block selection of one sparse layer for one decode step by the preset `preprint` (sketchwalk.md
/// section 5): the walk of the layer below, taken one step further. Queries and keys are averaged
/// over heads and blocks and sketched; W = softmax(logits)^sharpness over all blocks, row by row,
/// and R = R_below W. A token changes row and column c of the b x b logits only.
///
/// A step reads the logits twice, from memory for the sums of the rows and from L2 for the product.
/// R is summed in f64, whose range the sharpened softmax needs: at sharpness 8 a block with 2^-16
/// of the probability of another has 2^-128 of its weight.
namespace sw::cuda {

struct ProductSelectorShape {
  int num_heads = 0;
  int capacity = 0;  ///< blocks of the longest context that can be reached
  DecodeBudget budget;
};

/// What a prefill of `lengths` tokens leaves behind, in device memory, f32: sums of the queries and
/// keys over each block, arrays laid out for `blocks` >= the largest b.
struct ProductInitialState {
  const float* query_sums = nullptr;  ///< [batch, num_heads, blocks, head_dim]
  const float* key_sums = nullptr;    ///< [batch, kv_heads, blocks, head_dim]
  int blocks = 0;
};

class ProductSelector {
 public:
  /// Allocates the state of `layer`: mostly 4 * capacity^2 bytes a sequence for the logits. Throws
  /// Error(kUnsupported) for what the kernels do not do: aggregation per_head, causal_sketch,
  /// normalize_walk, pools smaller than the block, head dimensions other than 64, 128 and 256.
  ProductSelector(const KvCache& cache, const ProductSelectorShape& shape,
                  const SketchParams& params, std::int64_t layer);

  /// Takes over the state after the prefill of cache.lengths tokens. Does not synchronise; the
  /// arrays must live until the stream has passed.
  void load(const KvCache& cache, const ProductInitialState& state, cudaStream_t stream);

  /// One step at context length n = cache.lengths (the new token's key is in the cache already):
  /// q [batch, num_heads, head_dim]. `below` is the selector of the sparse layer below, whose step
  /// of this token precedes in the stream; null at the first sparse layer. Calling it again with
  /// the same n and inputs changes nothing. Launches three kernels.
  void run(const KvCache& cache, const void* q, const ProductSelector* below, cudaStream_t stream);

  /// The selection of the last step, one set: the forced blocks first, then the others by score,
  /// best first.
  DecodeList list() const;
  const DecodeBudget& budget() const { return shape_.budget; }
  /// R of the last step, [batch, capacity], summing to 1.
  const double* scores() const { return scores_.data(); }
  /// [batch], 1 where a score was not finite; it counts as 0. Never cleared by a step.
  const std::int32_t* faults() const { return faults_.data(); }
  int capacity() const { return shape_.capacity; }
  std::size_t bytes() const;

 private:
  struct Launch;
  ProductSelectorShape shape_;
  int batch_ = 0;
  int rank_ = 0;      ///< stored length of a transformed vector
  int dim_used_ = 0;  ///< r
  bool exact_ = false;
  bool partial_mean_ = false;
  float sharpness_ = 8.0f;
  float logit_scale_log2_ = 0.0f;
  int thread_blocks_ = 0;  ///< of a sequence

  DeviceBuffer<float> signs_;
  DeviceBuffer<std::int32_t> permutation_;
  DeviceBuffer<float> sums_;  ///< [2 steps, query and key, batch, head_dim] of block c, head means
  DeviceBuffer<float> queries_;  ///< [batch, capacity, rank] transformed block means
  DeviceBuffer<float> keys_;     ///< [batch, capacity, rank]
  DeviceBuffer<float> logits_;   ///< [batch, capacity, capacity], in units of log2
  DeviceBuffer<float> row_log_;  ///< [batch, capacity] log2 of the sum of 2^logit over a row
  DeviceBuffer<double> walk_;    ///< [batch, capacity] R but for a factor
  DeviceBuffer<double> scores_;
  DeviceBuffer<std::int32_t> blocks_;  ///< [batch, capacity]
  DeviceBuffer<std::int32_t> counts_;
  DeviceBuffer<std::int32_t> faults_;
};

}  // namespace sw::cuda
