#include <algorithm>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/walk.hpp"
#include "kernels/cuda/common/selection/walk_step.hpp"

namespace sw::cuda {
namespace {

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
                  cudaStream_t stream) {
  const bool first = state.empty();
  state.resize(a.blocks());
  if (damping == 0.0 || degree == 0) return copy_matrix(a, state, stream);
  odd_.resize(a.blocks());
  even_.resize(a.blocks());
  const SplitMatrix* x = first ? &a : &state;
  if (degree == 1 && !first) {  // the only step would read what it writes
    copy_matrix(state, even_, stream);
    x = &even_;
  }
  for (int step = 0; step < degree; ++step) {
    const bool last = step + 1 == degree;
    const SplitMatrix& out = last ? state : step % 2 == 0 ? odd_ : even_;
    WalkArgs args{};
    args.a = a.values();
    args.keep = static_cast<float>(1.0 - damping);
    args.gain = static_cast<float>(damping);
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
  finish_rows(bare->values(), bare->stride(), 1, 0, rule, state, stream);
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
