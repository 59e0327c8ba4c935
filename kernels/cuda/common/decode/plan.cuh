#pragma once

#include "kernels/cuda/common/decode/budget.hpp"

/// The device's form of lib/attention/budget.cpp for one decode row. Products and sums of doubles
/// are rounded one by one, as on the host, or a fused multiply-add could move a floor.
namespace sw::cuda {

__device__ inline int round_half_up(double x) { return static_cast<int>(floor(__dadd_rn(x, 0.5))); }

__device__ inline DecodePlan decode_plan(const DecodeBudget& budget, int tokens, int block) {
  DecodePlan plan;
  const int candidates = (tokens + block - 1) / block;
  plan.candidates = candidates;
  if (budget.kind == Budget::Kind::kMatched) {
    const double area = candidates - 0.5;
    int m = static_cast<int>(floor(__dadd_rn(__dmul_rn(budget.density, area), 1.0)));
    m = min(candidates, max(budget.min_blocks, min(max(m, 1), candidates)));
    plan.sink = m >= 3 ? max(1, round_half_up(m / 8.0)) : (m == 2 ? 1 : 0);
    plan.window = m >= 3 ? max(1, round_half_up(m / 4.0)) : 1;
    plan.scored = m - plan.sink - plan.window;
  } else if (budget.kind == Budget::Kind::kFixed) {
    const int tau = budget.tau > 0
                        ? budget.tau
                        : max(1, round_half_up(__dmul_rn(budget.density, double(candidates))));
    plan.window = 1;
    plan.scored = max(0, min(tau, candidates) - 1);
  } else {
    const int w = max(1, static_cast<int>(__dmul_rn(budget.window_frac, double(tokens))));
    const int k0 = max(1, static_cast<int>(__dmul_rn(budget.sink_frac, double(tokens))));
    const int window = (w + block - 1) / block;
    const int sink = (k0 + block - 1) / block;
    plan.token_sink = budget.release_sink_bug ? w : k0;
    plan.between_begin = sink;
    plan.between_end = candidates - window;
    const int between = plan.between_end - plan.between_begin;
    plan.scored = between > 0 ? -1 : 0;
    if (between > 0) {
      plan.quantile_low = static_cast<int>(__dmul_rn(budget.quantile, double(between - 1)));
    }
    plan.window = min(window, candidates);
    const int whole = plan.token_sink / block;
    plan.sink = min(max(sink, whole), candidates - plan.window);
    if (plan.token_sink % block != 0 && whole >= plan.sink && whole < candidates - plan.window) {
      plan.boundary = whole;
    }
  }
  return plan;
}

__device__ inline int forced_blocks(const DecodePlan& plan) { return plan.sink + plan.window; }

}  // namespace sw::cuda
