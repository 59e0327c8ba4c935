#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/tensor.hpp"
#include "kernels/cpu/aligned.hpp"
#include "kernels/cpu/isa.hpp"

/// Attention of a few query rows that share KV head and key blocks: packs (head, query) pairs into
/// rows, walks over the blocks, and hands back outputs, log-sum-exps and block masses.
namespace sw::cpu {

/// One visit of a key block: tokens [begin, end) and which of them each query sees.
struct KeyRange {
  std::int64_t block;
  std::int64_t begin;
  std::int64_t end;
  Mask mask;
};

/// Storage of one thread; grows to the largest pack that it has seen.
class RowAttention {
 public:
  virtual ~RowAttention() = default;

  /// Rows for `heads` x `queries` queries of `dim` elements; all state reset.
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
  /// Allows weights that are rounded for their sums too (AttentionOutput::out_only).
  void want_output_only() { output_only_ = true; }

  /// Attends to the keys of one block.
  virtual void visit(std::int64_t kv_head, const KeyRange& keys) = 0;
  /// Attends to single keys that every query sees; gathers them. Their masses, if any are wanted,
  /// count as block 0's.
  virtual void visit_singles(std::int64_t kv_head, std::span<const std::int32_t> tokens) = 0;

  /// To be called once after the last visit.
  virtual void end() = 0;
  /// Outputs [queries][dim] (f32) and log-sum-exps [queries] (natural, null: not wanted) of a head.
  void finish(std::int64_t head, float* out, double* lse) const;
  /// Adds the softmax masses of every block, of the queries [begin, end) of a head, to sum[blocks],
  /// each times its weight if there are any (one a query of that range).
  void add_masses(std::int64_t head, std::int64_t begin, std::int64_t end, std::span<double> sum,
                  std::span<const double> weights = {}) const;

 protected:
  /// Rows are allocated in multiples of `row_step`, dims in multiples of `dim_step`.
  RowAttention(std::int64_t row_step, std::int64_t dim_step)
      : row_step_(row_step), dim_step_(dim_step) {}

  /// Resets the state of all rows.
  virtual void reset() = 0;
  virtual void pack_queries(const TokenRows& rows, std::int64_t row) = 0;
  /// Outputs of the rows [row, row + count).
  virtual void unpack(std::int64_t row, std::int32_t count, float* out) const = 0;

  std::int64_t row_of(std::int64_t head, std::int64_t query) const {
    return head * queries_ + query;
  }
  std::int64_t used_rows() const { return heads_ * queries_; }
  std::int64_t all_rows() const { return (used_rows() + row_step_ - 1) / row_step_ * row_step_; }
  std::int64_t padded_dim() const { return (dim_ + dim_step_ - 1) / dim_step_ * dim_step_; }
  /// Room for the masses of one more tile; returns where it begins.
  std::size_t add_tile(std::int64_t block);

  std::int64_t dim_ = 0;
  std::int64_t token_window_ = 0;
  std::int64_t token_sink_ = 0;
  bool masses_ = false;
  bool output_only_ = false;
  float scale_ = 1.0f;  ///< in base 2
  LineVector<std::int32_t> position_;
  /// Of every row: base of the exponentials in base 2, and their sum after `end`.
  LineVector<float> base_, sum_;
  /// One entry a visited tile: its block, then sums and bases of every row; shares after `end`.
  std::vector<std::int64_t> tile_block_;
  LineVector<float> tile_sum_, tile_base_;

 private:
  std::int64_t row_step_;
  std::int64_t dim_step_;
  std::int64_t heads_ = 0;
  std::int64_t queries_ = 0;
};

/// One for each of `threads`, over the heads of k and v, which must outlive them. In bf16 where
/// `bf16` is set, for bf16 tensors only and where `isa` has it. `v` may be empty (heads == 0):
/// masses only.
std::vector<std::unique_ptr<RowAttention>> make_row_attention(const Isa& isa, bool bf16,
                                                              const HeadsView& k,
                                                              const HeadsView& v, int threads);

}  // namespace sw::cpu
