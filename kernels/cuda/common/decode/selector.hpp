#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/sketch.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/decode/attention.hpp"
#include "kernels/cuda/common/decode/budget.hpp"

/// Block selection of one sparse layer for one decode step (sketchwalk.md section 5, preset
/// `release`) and the state that it carries from step to step. One kernel does a step: it takes the
/// new query and key into the window and the block sum, scores the blocks, updates row and column c
/// of the transition matrix A, walks, and writes the list of blocks. Nothing is rescaled or
/// rewritten that did not change: A is kept with the sum of each row beside it, so "normalise every
/// row" is an update of b sums, and only row c and column c are stored anew.
///
/// A step is a chain of short pieces of work, each of which needs results of all thread blocks of
/// the one before. Those are handed on in memory that holds an empty mark until they are there, so
/// that nobody waits at a barrier; and the attention to the forced blocks runs beside it.
///
/// How A stays cheap to walk on: it is stored transposed in f16, each thread block owns some
/// columns, holds them in shared memory and multiplies from there in every step of the walk, so A
/// is read once; of long contexts of many sequences only some columns have room, and the others are
/// read in every step. The rounding (2^-11 of an entry at most, not accumulated: the row and column
/// that change are kept in f32) moves a score by less than damping * 2^-11 of itself; walk states
/// enter the products as two f16. Queries of the window and block means are f16 after the
/// transform, the means counted from the mean of all blocks at the load: a softmax does not see
/// what all keys have in common, and what is left is rounded finely. Sums over heads are integers,
/// whose order does not matter, so the same inputs give the same bits.
namespace sw::cuda {

struct DecodeSelectorShape {
  int num_heads = 0;
  int capacity = 0;  ///< blocks of the longest context that can be reached
  int query_window = 32;
  double damping = 0.25;
  int degree = 3;
  DecodeBudget budget;
};

/// What a prefill of `lengths` tokens leaves behind, in device memory, f32; b = ceil(n / B) of each
/// sequence, and arrays are laid out for `blocks` >= the largest b.
struct DecodeInitialState {
  const float* transition = nullptr;    ///< A [batch, blocks, blocks], row-stochastic in [b, b]
  const float* key_sums = nullptr;      ///< [batch, kv_heads, blocks, head_dim] sums over a block
  const float* query_window = nullptr;  ///< [batch, num_heads, query_window, head_dim]: the last
                                        ///< min(query_window, n) queries, oldest first
  int blocks = 0;
};

class DecodeSelector {
 public:
  /// Allocates the state of `layer`: mostly 2 * capacity^2 bytes a sequence for A and 2 * capacity
  /// * kv_heads * r for the keys. Throws Error(kUnsupported) for what the kernel does not do:
  /// aggregation head_mean and sharpness (the preset `preprint`: ProductSelector), pools smaller
  /// than the block, head dimensions other than 64, 128 and 256, query windows of more than some
  /// ten thousand rows.
  DecodeSelector(const KvCache& cache, const DecodeSelectorShape& shape, const SketchParams& params,
                 std::int64_t layer);

  /// Takes over the state after the prefill of cache.lengths tokens. Does not synchronise; the
  /// arrays must live until the stream has passed.
  void load(const KvCache& cache, const DecodeInitialState& state, cudaStream_t stream);

  /// One step at context length n = cache.lengths (the new token's key is in the cache already):
  /// q [batch, num_heads, head_dim]. Calling it again with the same n and inputs changes nothing.
  /// Launches one kernel, which from compute capability 9.0 on may start before the kernel before
  /// it in the stream ends, and then waits for that.
  void run(const KvCache& cache, const void* q, cudaStream_t stream);

  /// The selection of the last step and the one before (`twice`), one set: the forced blocks (sink,
  /// window) first, then the others by score, best first.
  DecodeList list() const;
  const DecodeBudget& budget() const { return shape_.budget; }
  /// Scores [batch, capacity] of the last step (the walk's final row).
  const float* scores() const { return scores_.data(); }
  /// [batch], 1 where a query or key was not finite or too large for f16 (norm above 65504); its
  /// rows count for nothing in the scores. Never cleared by a step.
  const std::int32_t* faults() const { return faults_.data(); }
  int capacity() const { return shape_.capacity; }
  std::size_t bytes() const;

 private:
  struct Launch;
  DecodeSelectorShape shape_;
  int batch_ = 0;
  int rank_ = 0;      ///< stored length of a transformed vector, 32, 64, 128 or 256
  int dim_used_ = 0;  ///< r
  bool exact_ = false;
  bool partial_mean_ = false;
  bool walks_ = true;
  bool starts_early_ = false;  ///< the GPU can start a kernel while the one before runs
  float logit_scale_log2_ = 0.0f;
  int max_keys_ = 0;   ///< blocks that a task scores at most
  int max_tasks_ = 0;  ///< of a sequence
  int blocks_per_sequence_ = 0;
  int resident_ = 0;  ///< columns of A held in shared memory
  int shared_bytes_ = 0;
  int stage_bytes_ = 0;
  int key_buffers_ = 1;    ///< tasks of a thread block whose keys have room at once
  int early_columns_ = 0;  ///< of A, of a thread block, that come to L2 at the start
  int row_groups_ = 0;
  int addends_ = 0;  ///< of a block's sum
  int task_share_ = 0;
  bool once_ = false;  ///< no thread block has more than one task
  int count_shift_ = 0;
  double fixed_point_ = 0.0;

  DeviceBuffer<float> signs_;
  DeviceBuffer<std::int32_t> permutation_;
  DeviceBuffer<std::uint16_t> transition_;  ///< f16 [batch, capacity, capacity]: A transposed
  DeviceBuffer<double> row_sum_;            ///< [2, batch, capacity]
  DeviceBuffer<float> row_sum_rounded_;     ///< the same in f32
  DeviceBuffer<float> column_;              ///< [2, batch, capacity] column c as stored
  DeviceBuffer<float> row_;                 ///< [2, batch, capacity] row c, sum 1
  DeviceBuffer<std::uint16_t> queries_;     ///< f16 [batch, num_heads, window, rank]
  DeviceBuffer<std::uint16_t> keys_;        ///< f16 [batch, kv_heads, capacity, rank]
  DeviceBuffer<float> key_origin_;          ///< [batch, kv_heads, head_dim] what keys_ count from
  DeviceBuffer<float> key_sum_;             ///< [2, batch, kv_heads, head_dim] of block c
  // What thread blocks tell each other, twice: a launch uses one and empties the other.
  DeviceBuffer<float> stats_;              ///< [2, batch, tasks, 128, 2] maximum, sum of a task
  DeviceBuffer<unsigned long long> sums_;  ///< [2, batch, capacity]
  DeviceBuffer<float> states_;             ///< [2, batch, degree, capacity]
  DeviceBuffer<unsigned long long> kept_;  ///< [2, batch]
  DeviceBuffer<unsigned> launches_;        ///< [batch]
  DeviceBuffer<float> scores_;
  DeviceBuffer<std::int32_t> blocks_;  ///< [2, batch, capacity]
  DeviceBuffer<std::int32_t> counts_;  ///< [2, batch]
  DeviceBuffer<std::int32_t> faults_;
};

}  // namespace sw::cuda
