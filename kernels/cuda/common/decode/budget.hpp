#pragma once

#include "attention/budget.hpp"

/// The budget of a decode row (sketchwalk.md section 3, phase decode) as plain values that kernels
/// take as a parameter: the forced blocks follow from the context length alone, so they can be
/// attended to while the others are still being scored.
namespace sw::cuda {

struct DecodeBudget {
  Budget::Kind kind = Budget::Kind::kMatched;
  double density = 0.2;       ///< kMatched; kFixed when tau is 0
  int min_blocks = 1;         ///< kMatched
  int tau = 0;                ///< kFixed
  double window_frac = 0.05;  ///< kRelease
  double sink_frac = 0.025;   ///< kRelease
  double quantile = 0.875;    ///< kRelease: 1 - kfrac
  bool release_sink_bug = true;
};

/// Throws Error(kUnsupported) for budgets that need no scores (kAll, kSinkAndRecent) or force
/// nothing (kDiagonal): those are not selected on the device.
DecodeBudget make_decode_budget(const Budget& budget, double density);

/// What a row of `candidates` blocks keeps whatever the scores, and how many of the others.
struct DecodePlan {
  int candidates = 0;  ///< c + 1
  int sink = 0;        ///< leading blocks, all of their tokens visible
  int window = 0;      ///< most recent blocks
  int scored = 0;      ///< best of the others; -1: those above the release's threshold
  /// kRelease: the blocks whose scores make the threshold, and the order statistic below it: block
  /// j is kept when more than `quantile_low` of them score less than j.
  int between_begin = 0;
  int between_end = 0;
  int quantile_low = 0;
  /// kRelease: the block that the token-level sink ends in, visible in part; -1 = none.
  int boundary = -1;
  int token_sink = 0;
};

}  // namespace sw::cuda
