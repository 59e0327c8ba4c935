#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.hpp"
#include "kernels/cpu/tile.hpp"

/// Attention of a few query rows that share KV head and key blocks: packs (head, query) pairs into
/// lanes, walks over the blocks, and hands back outputs, log-sum-exps and block masses.
namespace sw::cpu {

/// One visit of a key block: tokens [begin, end) and which of them each query sees.
struct KeyRange {
  std::int64_t block;
  std::int64_t begin;
  std::int64_t end;
  Mask mask;
};

/// Storage of one thread; grows to the largest row that it has seen.
class RowAttention {
 public:
  explicit RowAttention(const TileKernel& kernel) : kernel_(&kernel) {}

  /// Lanes for `heads` x `queries` queries of `dim` elements; all state reset.
  void begin(std::int64_t heads, std::int64_t queries, std::int64_t dim, double scale);
  /// Query `query` (0-based in the row) of head `head` (0-based in the pack) at `position`.
  void set_query(std::int64_t head, std::int64_t query, const float* values, std::int64_t position);
  void set_token_parts(std::int64_t window, std::int64_t sink);
  /// Asks for block masses of `blocks` key blocks.
  void want_masses(std::int64_t blocks);

  /// Attends to the keys of one block. `v` may be empty (heads == 0): masses only.
  void visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head, const KeyRange& keys);

  /// Output row [dim] (f32) and log-sum-exp (natural) of a query.
  double finish(std::int64_t head, std::int64_t query, float* out) const;
  /// Adds the softmax masses of every block, of all queries of a head, to sum[blocks]. To be called
  /// after the last visit, in ascending order of heads.
  void add_masses(std::int64_t head, std::span<double> sum);

 private:
  std::int64_t lane_of(std::int64_t head, std::int64_t query) const {
    return head * queries_ + query;
  }
  float* qt(std::int64_t pack) { return qt_.data() + pack * dim_ * kLanes; }
  float* ot(std::int64_t pack) { return ot_.data() + pack * dim_ * kLanes; }
  void load_keys(const HeadsView& x, std::int64_t head, std::int64_t begin, std::int64_t end,
                 std::vector<float>& to) const;

  const TileKernel* kernel_;
  std::int64_t heads_ = 0;
  std::int64_t queries_ = 0;
  std::int64_t dim_ = 0;
  std::int64_t packs_ = 0;
  std::int64_t token_window_ = 0;
  std::int64_t token_sink_ = 0;
  std::int64_t mass_blocks_ = 0;
  float scale_ = 1.0f;
  std::vector<float> qt_, ot_, m_, l_, s_, k_, v_;
  std::vector<std::int32_t> position_;
  // One entry a visited tile: its block, then sums and maxima of every lane.
  std::vector<std::int64_t> tile_block_;
  std::vector<float> tile_sum_, tile_max_;
};

}  // namespace sw::cpu
