#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "attention/problem.hpp"

/// Which keys each query block attends to: whole blocks, and beside them single keys, for methods
/// that select those. The one type that every policy produces, every backend consumes, and the only
/// place where density is counted (metrics.md, Density).
namespace sw {

/// Why a block or key is kept. One kept for several reasons carries the first of this list.
enum class Part : std::uint8_t { kWindow, kSink, kScored, kForced };
inline constexpr int kNumParts = 4;
/// "window", "sink", "scored", "forced".
const char* part_name(Part part);

/// (query token, key token) pairs with key <= query, summed over the row sets of a selection.
struct DensityCount {
  std::int64_t causal = 0;
  std::array<std::int64_t, kNumParts> kept{};

  std::int64_t kept_total() const { return kept[0] + kept[1] + kept[2] + kept[3]; }
  /// kept / causal, in [0, 1]; 0 when there are no pairs.
  double density() const;
};

/// Two CSRs over query block rows, of blocks and of single keys ("tokens"), for 1 row set (all
/// heads share it), one a KV head or one a query head. Invariants: a row's blocks ascend, are
/// unique and do not exceed the row's own block; its tokens ascend, are unique, lie outside its
/// blocks and not after its last query; and every query sees its own key: the row keeps its own
/// block, or all keys at its queries' positions as tokens. Causality holds for single keys too.
///
/// Or, instead of tokens, the token-level parts of the `release` budget: whatever the blocks say,
/// key t is visible to query p (t <= p) if p - token_window < t or t < token_sink; 0 means no such
/// part.
class BlockSelection {
 public:
  BlockSelection() = default;
  BlockSelection(const BlockGeometry& geometry, std::int64_t groups);

  /// Every causal block, tagged `forced`, one row set.
  static BlockSelection dense(const BlockGeometry& geometry);

  /// Appends the next row (row sets one after the other, rows ascending): its blocks and single
  /// keys, each with its part. Throws std::logic_error when the row breaks an invariant: that is a
  /// bug of the policy.
  void append_row(std::span<const std::int32_t> blocks, std::span<const Part> parts,
                  std::span<const std::int32_t> tokens = {},
                  std::span<const Part> token_parts = {});
  /// Throws std::logic_error when there are single keys.
  void set_token_parts(std::int64_t window, std::int64_t sink);

  /// Budget::Kind::kCalibrated: the share that was found for this selection.
  void set_calibrated_share(double share) { calibrated_share_ = share; }
  std::optional<double> calibrated_share() const { return calibrated_share_; }

  const BlockGeometry& geometry() const { return geometry_; }
  std::int64_t groups() const { return groups_; }
  std::int64_t rows() const { return geometry_.rows(); }
  bool complete() const {
    return static_cast<std::int64_t>(row_ptr_.size()) == groups_ * rows() + 1;
  }
  /// Row set that query head `head` of `num_heads` uses.
  std::int64_t group_of_head(std::int64_t head, std::int64_t num_heads) const {
    return head / (num_heads / groups_);
  }
  std::span<const std::int32_t> blocks(std::int64_t group, std::int64_t row) const;
  std::span<const Part> parts(std::int64_t group, std::int64_t row) const;
  /// Single keys outside the row's blocks.
  std::span<const std::int32_t> tokens(std::int64_t group, std::int64_t row) const;
  /// Their parts.
  std::span<const Part> token_parts(std::int64_t group, std::int64_t row) const;
  bool has_tokens() const { return !token_.empty(); }
  std::int64_t token_window() const { return token_window_; }
  std::int64_t token_sink() const { return token_sink_; }
  bool has_token_parts() const { return token_window_ > 0 || token_sink_ > 0; }
  /// Whether blocks say everything: neither single keys nor token-level parts.
  bool only_blocks() const { return !has_tokens() && !has_token_parts(); }
  std::span<const std::int64_t> row_ptr() const { return row_ptr_; }
  std::span<const std::int32_t> all_blocks() const { return block_; }

  /// Whether token-level parts make key t visible to query p (t <= p), blocks aside.
  bool token_visible(std::int64_t query, std::int64_t key) const {
    return key > query - token_window_ || key < token_sink_;
  }
  /// The kept blocks of the row and those that token-level parts reach into, ascending: where at
  /// least one key is visible to at least one query, single keys aside.
  std::vector<std::int32_t> touched_blocks(std::int64_t group, std::int64_t row) const;

  /// The same keys of a decode step (one query) in blocks of one key, which every metric that is
  /// defined for blocks can then measure.
  BlockSelection in_keys() const;

  /// Pairs of all rows and row sets.
  DensityCount count() const;
  /// Pairs of one row of one row set.
  DensityCount count_row(std::int64_t group, std::int64_t row) const;

 private:
  BlockGeometry geometry_;
  std::int64_t groups_ = 1;
  std::int64_t token_window_ = 0;
  std::int64_t token_sink_ = 0;
  std::optional<double> calibrated_share_;
  std::vector<std::int64_t> row_ptr_{0};
  std::vector<std::int32_t> block_;
  std::vector<Part> part_;
  std::vector<std::int64_t> token_ptr_{0};
  std::vector<std::int32_t> token_;
  std::vector<Part> token_part_;
};

}  // namespace sw
