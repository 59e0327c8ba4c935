#include <algorithm>
#include <stdexcept>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/select_row.cuh"
#include "kernels/cuda/common/selection/split_scale.hpp"
#include "kernels/cuda/common/selection/walk.hpp"
#include "kernels/cuda/common/selection/walk_step.hpp"

namespace sw::cuda {
namespace {

constexpr int kRowBlocks = Walk::kRowBlocks;
constexpr int kParts = 4;  ///< of the contraction, one group of 128 threads each

struct RowsArgs {
  const float* x;  ///< [blocks, stride] the state
  const float* a;
  float* values;
  std::uint16_t* high;
  std::uint16_t* low;
  float keep;
  float gain;
  int degree;
  int blocks;
  std::int64_t stride;
};

/// All steps of a damped walk over at most 128 blocks in f32, a CTA a row: rows need no other rows
/// of the state, and A stays in the L1 cache. kSelect: then selects by the row.
template <class T, bool kSelect>
__global__ void __launch_bounds__(kRowBlocks* kParts) walk_rows(RowsArgs p, SelectArgs s) {
  __shared__ float state[kRowBlocks];
  __shared__ float parts[kParts][kRowBlocks];
  const RowPlan plan(s, static_cast<int>(blockIdx.x) + 1);
  wait_for_previous();
  const int j = static_cast<int>(threadIdx.x) % kRowBlocks;
  const int part = static_cast<int>(threadIdx.x) / kRowBlocks;
  const bool inside = j < p.blocks;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * p.stride + j;
  if (part == 0) state[j] = inside ? p.x[at] : 0.0f;
  const float own = inside ? p.a[at] : 0.0f;
  __syncthreads();
  constexpr int kRows = kRowBlocks / kParts;
  float column[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int row = part * kRows + m;
    column[m] = inside && row < p.blocks ? p.a[row * p.stride + j] : 0.0f;
  }
  for (int step = 0; step < p.degree; ++step) {
    float sums[4] = {};
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      sums[m % 4] = fmaf(state[part * kRows + m], column[m], sums[m % 4]);
    }
    parts[part][j] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    __syncthreads();
    if (part == 0) {
      const float sum = (parts[0][j] + parts[1][j]) + (parts[2][j] + parts[3][j]);
      state[j] = fmaf(p.keep, own, p.gain * sum);
    }
    __syncthreads();
  }
  if (part == 0) {
    if (inside) p.values[at] = state[j];
    split<T>(state[j] * kSplitScale<T>, p.high[at], p.low[at]);
  }
  if constexpr (kSelect) {
    using RowType = Row<32, kRowBlocks / 32>;
    __shared__ typename RowType::Shared shared;
    if (threadIdx.x >= 32) return;
    RowType row(shared);
    select_row<RowType, kRowBlocks / 32>(row, s, plan, 0, static_cast<int>(blockIdx.x),
                                         [&](int j) { return state[j]; });
  }
}

void multiply(const SplitMatrix& x, const SplitMatrix& a, bool single, WalkArgs args,
              cudaStream_t stream) {
  args.x_high = x.high();
  args.x_low = x.low();
  args.a_high = a.high();
  args.a_low = a.low();
  args.blocks = a.blocks();
  args.stride = a.stride();
  if (has_warpgroups()) {
    launch_walk_hopper(args, a.split(), single && a.split() == Split::kF16, stream);
  } else {
    launch_walk_portable(args, a.split(), single && a.split() == Split::kF16, stream);
  }
}

}  // namespace

Walk::Walk(int max_blocks, Split split) : odd_(max_blocks, split), even_(max_blocks, split) {}

void Walk::damped(const SplitMatrix& a, SplitMatrix& state, double damping, int degree,
                  cudaStream_t stream, const SelectArgs* select) {
  if (select != nullptr && !damped_selects(a.blocks(), damping, degree)) {
    throw std::logic_error("selection by the rows of a walk that has none at hand");
  }
  const bool first = state.empty();
  state.resize(a.blocks());
  if (damping == 0.0 || degree == 0) return copy_matrix(a, state, stream);
  const SplitMatrix* x = first ? &a : &state;
  const auto keep = static_cast<float>(1.0 - damping);
  const auto gain = static_cast<float>(damping);
  if (a.blocks() <= kRowBlocks) {
    const RowsArgs args{x->values(), a.values(), state.values(), state.high(), state.low(),
                        keep,        gain,       degree,         a.blocks(),   a.stride()};
    const auto launch = [&](auto kernel) {
      launch_chained("launch of walk_rows", kernel, dim3(static_cast<unsigned>(a.blocks())),
                     kRowBlocks * kParts, 0, stream, args,
                     select != nullptr ? *select : SelectArgs{});
    };
    if (a.split() == Split::kF16) {
      select != nullptr ? launch(walk_rows<__half, true>) : launch(walk_rows<__half, false>);
    } else {
      select != nullptr ? launch(walk_rows<__nv_bfloat16, true>)
                        : launch(walk_rows<__nv_bfloat16, false>);
    }
    return;
  }
  odd_.resize(a.blocks());
  even_.resize(a.blocks());
  if (degree == 1 && !first) {  // the only step would read what it writes
    copy_matrix(state, even_, stream);
    x = &even_;
  }
  for (int step = 0; step < degree; ++step) {
    const bool last = step + 1 == degree;
    const SplitMatrix& out = last ? state : step % 2 == 0 ? odd_ : even_;
    WalkArgs args{};
    args.a = a.values();
    args.keep = keep;
    args.gain = gain;
    args.values = last ? out.values() : nullptr;
    args.high = out.high();
    // Only a product by all parts reads low parts: the last step's, or the first of the next layer.
    args.low = step + 2 == degree || last ? out.low() : nullptr;
    multiply(*x, a, !last, args, stream);
    x = &out;
  }
}

void Walk::product(const SplitMatrix& a, SplitMatrix& state, cudaStream_t stream) {
  const bool first = state.empty();
  RowRule rule;
  rule.causal = true;
  rule.normalize = true;
  const SplitMatrix* bare = &a;
  if (!first) {
    odd_.resize(a.blocks());
    WalkArgs args{};
    args.gain = 1.0f;
    args.values = odd_.values();
    multiply(state, a, false, args, stream);
    bare = &odd_;
  }
  state.resize(a.blocks());
  finish_rows(bare->values(), bare->stride(), 1, 0, {}, rule, state, stream);
}

KernelCost Walk::cost(int blocks, int products) {
  const double b = blocks;
  return {2.0 * b * b * b * products, 4.0 * 3.0 * b * b * products};
}

void copy_matrix(const SplitMatrix& from, SplitMatrix& to, cudaStream_t stream) {
  to.resize(from.blocks());
  const auto elements = static_cast<std::size_t>(from.stride() * from.stride());
  const auto copy = [&](void* target, const void* source, std::size_t bytes) {
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream),
          "copy of a walk state");
  };
  copy(to.values(), from.values(), elements * sizeof(float));
  copy(to.high(), from.high(), elements * sizeof(std::uint16_t));
  copy(to.low(), from.low(), elements * sizeof(std::uint16_t));
}

}  // namespace sw::cuda
