#pragma once

#include <cstdint>
#include <vector>

#include "attention/backend.hpp"
#include "attention/sketch.hpp"
#include "core/tensor.hpp"

/// The distribution over key blocks of the last queries (sketchwalk.md section 5, step 2), kept up
/// to date token by token. The keys of finished pools never change, so each query of the window
/// keeps the exponentials of its logits with them, summed for each block; a step costs one query
/// against all pools and all queries against the newest pool. Reading these tables takes most of a
/// step, so they are stored in f32 (relative error 2^-24); all arithmetic is fp64.
namespace sw {

class QueryWindow {
 public:
  /// The last `size` (>= 1) queries of `heads` heads of `dim` over keys of `kv_heads` heads.
  QueryWindow(const SketchParams& params, std::int64_t layer, std::int64_t heads,
              std::int64_t kv_heads, std::int64_t dim, std::int64_t size);

  /// Keys seen so far.
  std::int64_t tokens() const { return keys_.tokens(); }
  /// Appends the keys [kv_heads, count, dim] of the next tokens.
  void add_keys(const HeadsView& k, const Backend& backend);
  /// Appends queries [heads, count, dim], of which the last `size` are kept.
  void add_queries(const HeadsView& q, const Backend& backend);
  /// Softmax over the pools of each head and query of the window, summed within blocks and over
  /// heads and queries, and normalised to sum 1: [key blocks]. At least one key and one query.
  std::vector<double> block_row(const Backend& backend) const;

 private:
  /// The window of one head, a column or an entry for each query: its sketch, and its softmax over
  /// the finished pools as the largest logit and the sums of exp(logit - largest) in each block and
  /// in all of them.
  struct Head {
    std::vector<float> sketches;  // [sketch dim, size]
    std::vector<double> largest;  // [size]
    std::vector<double> total;    // [size]
    std::vector<float> blocks;    // [size, block_capacity_]
  };
  /// What one more key makes of the softmax of each query: the largest logit, what the sums so far
  /// are to be multiplied with, and the key's own term.
  struct Joined {
    std::vector<double> largest, shrink, value;
  };

  Joined join(const Head& head, const std::vector<double>& key, const Backend& backend) const;
  void finish_pools(std::int64_t end, const Backend& backend);
  void add_query(Head& head, std::int64_t slot, std::int64_t kv_head, const double* x,
                 const Backend& backend) const;
  void reserve(std::int64_t pools);
  std::vector<double> key_sketch(std::int64_t kv_head, std::int64_t pool) const;

  SketchParams params_;
  Sketch sketch_;
  double scale_;  // of the logits, with the temperature
  std::int64_t size_;
  std::int64_t pools_per_block_;
  TokenPools keys_;
  std::int64_t finished_ = 0;  // pools before the newest one
  std::int64_t pool_capacity_ = 0;
  std::int64_t block_capacity_ = 0;
  // A KV head: sketches of the finished pools, [sketch dim, pool_capacity_].
  std::vector<std::vector<float>> finished_keys_;
  std::int64_t queries_ = 0;  // in the window
  std::int64_t next_ = 0;     // slot of the next query
  std::vector<Head> heads_;
};

}  // namespace sw
