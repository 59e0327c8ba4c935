#pragma once

#include "kernels/cuda/common/decode/budget.hpp"

/// The device's form of lib/attention/budget.cpp for one decode row. Products and sums of doubles
/// are rounded one by one, as on the host, or a fused multiply-add could move a floor.
namespace sw::cuda {

__device__ inline DecodePlan decode_plan(const DecodeBudget& budget, int tokens, int block) {
  DecodePlan plan;
  const int shift = block == 64 ? 6 : 7;
  const auto blocks_of = [&](int t) { return (t + block - 1) >> shift; };
  const int candidates = blocks_of(tokens);
  plan.candidates = candidates;
  if (budget.kind == Budget::Kind::kMatched) {
    int m = static_cast<int>(__dadd_rn(__dmul_rn(budget.density, candidates - 0.5), 1.0));
    m = min(candidates, max(budget.min_blocks, max(m, 1)));
    plan.sink = m >= 3 ? max(1, (m + 4) >> 3) : (m == 2 ? 1 : 0);  // m / 8 and m / 4, rounded
    plan.window = m >= 3 ? max(1, (m + 2) >> 2) : 1;
    plan.scored = m - plan.sink - plan.window;
  } else if (budget.kind == Budget::Kind::kFixed) {
    int tau = budget.tau;
    if (tau == 0) {
      tau = max(1, static_cast<int>(__dadd_rn(__dmul_rn(budget.density, candidates), 0.5)));
    }
    plan.window = 1;
    plan.scored = min(tau, candidates) - 1;
  } else {
    const int w = max(1, static_cast<int>(__dmul_rn(budget.window_frac, tokens)));
    const int k0 = max(1, static_cast<int>(__dmul_rn(budget.sink_frac, tokens)));
    plan.token_sink = budget.release_sink_bug ? w : k0;
    plan.between_begin = blocks_of(k0);
    plan.between_end = candidates - blocks_of(w);
    const int between = plan.between_end - plan.between_begin;
    plan.scored = between > 0 ? -1 : 0;
    if (between > 0) plan.quantile_low = static_cast<int>(__dmul_rn(budget.quantile, between - 1));
    plan.window = min(blocks_of(w), candidates);
    const int whole = plan.token_sink >> shift;
    plan.sink = min(max(plan.between_begin, whole), candidates - plan.window);
    if ((whole << shift) != plan.token_sink && whole >= plan.sink &&
        whole < candidates - plan.window) {
      plan.boundary = whole;
    }
  }
  return plan;
}

__device__ inline int forced_blocks(const DecodePlan& plan) { return plan.sink + plan.window; }

}  // namespace sw::cuda
