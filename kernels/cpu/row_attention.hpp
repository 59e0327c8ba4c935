#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.hpp"
#include "kernels/cpu/aligned.hpp"
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
  /// The queries of head `head` (0-based in the pack): tokens [first, first + queries) of head
  /// `q_head` of q, at the positions `position`, `position` + 1, ...
  void set_queries(std::int64_t head, const HeadsView& q, std::int64_t q_head, std::int64_t first,
                   std::int64_t position);
  /// Another position for a query of every head.
  void set_position(std::int64_t query, std::int64_t position);
  void set_token_parts(std::int64_t window, std::int64_t sink);
  /// Asks for block masses.
  void want_masses() { masses_ = true; }

  /// Attends to the keys of one block. `v` may be empty (heads == 0): masses only.
  void visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head, const KeyRange& keys);

  /// Attends to single keys that every query sees; gathers them into whole tiles. Their masses, if
  /// any are wanted, count as block 0's.
  void visit_singles(const HeadsView& k, const HeadsView& v, std::int64_t kv_head,
                     std::span<const std::int32_t> tokens);

  /// Outputs [queries][dim] (f32) and log-sum-exps [queries] (natural) of a head.
  void finish(std::int64_t head, float* out, double* lse) const;
  /// Adds the softmax masses of every block, of the queries [begin, end) of a head, to sum[blocks].
  /// To be called after the last visit.
  void add_masses(std::int64_t head, std::int64_t begin, std::int64_t end, std::span<double> sum);

 private:
  std::int64_t lane_of(std::int64_t head, std::int64_t query) const {
    return head * queries_ + query;
  }
  std::byte* qt(std::int64_t pack) {
    return qt_.data() + static_cast<std::size_t>(pack * kLanes * padded_dim_) * element_bytes_;
  }
  /// Calls f(pack, lane in the pack, first query, queries) for the packs that hold a head.
  template <class F>
  void for_packs(std::int64_t head, F&& f) const;

  const TileKernel* kernel_;
  std::size_t element_bytes_ = 0;
  std::int64_t heads_ = 0;
  std::int64_t queries_ = 0;
  std::int64_t dim_ = 0;
  std::int64_t padded_dim_ = 0;
  std::int64_t packs_ = 0;
  std::int64_t token_window_ = 0;
  std::int64_t token_sink_ = 0;
  bool masses_ = false;
  bool normalized_ = false;
  float scale_ = 1.0f;
  LineVector<std::byte> qt_, k_, v_;
  LineVector<std::byte> gathered_k_, gathered_v_;
  LineVector<float> ot_, m_, l_, s_;
  LineVector<std::int32_t> position_;
  // One entry a visited tile: its block, then sums and bases of every lane.
  std::vector<std::int64_t> tile_block_;
  LineVector<float> tile_sum_, tile_max_;
};

}  // namespace sw::cpu
