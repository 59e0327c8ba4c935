#pragma once

#include <cstdint>
#include <optional>

#include "attention/problem.hpp"
#include "attention/selection.hpp"
#include "core/tensor.hpp"

/// From scores to a selection (sketchwalk.md section 3): how many blocks, or single keys, a row
/// keeps, which of them are forced, and the rest by score. Every policy ends here.
namespace sw {

enum class Phase { kPrefill, kDecode };

struct Budget {
  enum class Kind {
    kAll,      ///< every causal block
    kMatched,  ///< the share `density` of each row's area
    kFixed,    ///< tau blocks a row
    kRelease,  ///< the authors' release: quantile threshold, token-level window and sink
    kTopP,     ///< the fewest blocks that hold the share `top_p` of a row's summed scores
    /// kTopP with the share that keeps `density` of the pairs: one share for all rows and row sets
    /// of a layer's prefill, or for the row sets of one decode step, the nearest that there is.
    kCalibrated,
    kMarked,  ///< every block with a score above 0, and the row's own: the policy has decided
  };
  /// What a row keeps whatever its scores; the diagonal block always is. Of a row of single keys
  /// the same in keys: its own, the first one, and so on.
  enum class Forced {
    kSinkAndWindow,  ///< the shares of `matched`, or one block each of `fixed`
    kDiagonal,       ///< nothing else: all by score (oracle)
    kSinkBlock,      ///< the first block, from two blocks on
    kRecentHalf,     ///< kMatched: half of the row's blocks, the most recent ones
    kSinkAndRecent,  ///< sink blocks, and recent blocks for the whole rest: no scores needed
  };
  /// kMatched, a decode step of whole blocks: how its share becomes a number of blocks. At a
  /// context of n tokens one block more or less is a density of B / n: 1.6 points at 4,096.
  enum class Rounding {
    kRow,    ///< as the last row of a prefill (sketchwalk.md section 5)
    kSteps,  ///< what one step rounds away the next ones have: a run of steps keeps the density
  };
  Kind kind = Kind::kMatched;
  Forced forced = Forced::kSinkAndWindow;
  Rounding rounding = Rounding::kRow;
  /// kMatched, kTopP and kCalibrated: fewest blocks of a row. An early row whose share rounds to
  /// one block sees no sink, which costs a running model several nats a token there, whatever the
  /// method. A row of single keys keeps its own and as many as the other min_blocks - 1 hold.
  std::int64_t min_blocks = 1;
  /// kTopP, for scores >= 0: the share to reach, forced blocks included. They are the diagonal and,
  /// unless `forced` is kDiagonal, the first block. 1 keeps all.
  double top_p = 0.9;
  /// kMatched, prefill: rows at the end of the prompt that attend densely, as many of them as the
  /// density pays for while the other rows keep their fewest blocks. What is left of it is theirs.
  std::int64_t dense_last_rows = 0;
  /// A phase that the method leaves alone: every causal block is kept, without scores.
  std::optional<Phase> dense_phase = std::nullopt;
  std::int64_t tau = 0;  ///< kFixed; 0 = max(1, floor(density * b + 0.5))
  double window_frac = 0.05;
  double sink_frac = 0.025;
  double kfrac = 0.125;
  bool release_sink_bug = true;
};

/// Scores of every (row, key block) pair, one matrix below the other for each row set; and of
/// single keys, for policies that select those.
struct BlockScores {
  std::int64_t groups = 1;
  Matrix values;  ///< [groups * rows, key blocks]; empty when the budget needs no scores
  /// [groups, tokens], the same for all rows of a row set, or empty. Alone (decode steps), a row is
  /// single keys. Beside `values`, blocks and single keys before the row's own block compete by
  /// their score per key. +infinity goes first and counts as forced, -infinity is never kept.
  Matrix keys = {};

  std::span<const double> row(std::int64_t group, std::int64_t row, std::int64_t rows) const {
    return values.row(group * rows + row);
  }
};

/// m of the budget `matched`: blocks kept of `candidates`, for density rho in (0, 1].
std::int64_t matched_blocks(double density, std::int64_t candidates);

/// The same for the decode step of `geometry` with Budget::Rounding::kSteps: the blocks before the
/// step's own that a step may keep, density * tokens - own tokens, are summed over the steps since
/// its own block began, and each step keeps what the sum, rounded to whole blocks, gains. So any
/// steps of one block together are at most one block off, where no step would keep less than one.
std::int64_t matched_step_blocks(double density, const BlockGeometry& geometry);

/// m of the budget `matched` for a decode step that selects single keys: density * tokens, rounded.
std::int64_t matched_keys(double density, std::int64_t tokens);

/// Selects the blocks and keys of every row and row set. `density` is used by kMatched and
/// kCalibrated, and by kFixed when tau is 0; kCalibrated leaves the share that it found in the
/// selection. With scores of single keys the kinds are kMatched, kTopP, kCalibrated and kMarked, of
/// which kMatched alone when blocks compete too: it then keeps the share `density` of each row's
/// pairs, to within half a key, and a little less where early rows cannot keep as little. Throws
/// Error(kInput) when a score is NaN.
BlockSelection select_blocks(const BlockScores& scores, const BlockGeometry& geometry,
                             const Budget& budget, double density, Phase phase);

}  // namespace sw
