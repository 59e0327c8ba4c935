#include <algorithm>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/split_scale.hpp"
#include "kernels/cuda/common/selection/walk.hpp"

namespace sw::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileCols = 128;

struct WalkArgs {
  const std::uint16_t* x_high;  ///< X: the state
  const std::uint16_t* x_low;
  const std::uint16_t* a_high;  ///< A
  const std::uint16_t* a_low;
  const float* a;  ///< A in f32, or null: the bare product
  float keep;      ///< out = keep A + gain X A
  float gain;
  float* values;        ///< out in f32, may be null
  std::uint16_t* high;  ///< out as operands, may be null
  std::uint16_t* low;
  int blocks;
  std::int64_t stride;
  int stages;
};

/// Shared memory of one stage: a tile of X with kM 16-row tiles for each of kWarpsM warps, and of
/// A.
template <int kM, int kWarpsM, int kTerms>
constexpr int stage_bytes() {
  return (kM * 16 * kWarpsM + kTileCols) * kRowBytes * (kTerms == 3 ? 2 : 1);
}

/// A CTA makes one tile of `out`, with kWarpsM of its 8 warps below one another.
template <class T, int kM, int kWarpsM, int kTerms>
__global__ void __launch_bounds__(kThreads, 1) walk_step(WalkArgs p) {
  constexpr int kWarpsN = 8 / kWarpsM;
  constexpr int kN = kTileCols / 8 / kWarpsN;
  constexpr int kRows = kM * 16 * kWarpsM;
  constexpr int kXBytes = kRows * kRowBytes;
  constexpr int kABytes = kTileCols * kRowBytes;
  constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  extern __shared__ __align__(128) unsigned char shared[];
  const std::uint32_t base = shared_address(shared);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int m0 = warp / kWarpsN * kM * 16;
  const int n0 = warp % kWarpsN * kN * 8;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * kRows;
  const std::int64_t col0 = static_cast<std::int64_t>(blockIdx.x) * kTileCols;
  const int steps = (p.blocks + kStep - 1) / kStep;

  const auto load = [&](int step) {
    if (step < steps) {
      const std::uint32_t x = base + step % p.stages * stage_bytes<kM, kWarpsM, kTerms>();
      const std::uint32_t a = x + kPlanes * kXBytes;
      const std::int64_t x_from = row0 * p.stride + step * kStep;
      const std::int64_t a_from = step * kStep * p.stride + col0;
      copy_tile<kRows, kThreads>(x, p.x_high + x_from, p.stride);
      copy_tile_transposed<kTileCols, kThreads>(a, p.a_high + a_from, p.stride);
      if constexpr (kTerms == 3) {
        copy_tile<kRows, kThreads>(x + kXBytes, p.x_low + x_from, p.stride);
        copy_tile_transposed<kTileCols, kThreads>(a + kABytes, p.a_low + a_from, p.stride);
      }
    }
    commit_copies();
  };

  float acc[kM][kN][4] = {};
  for (int step = 0; step < p.stages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    if (p.stages >= 4) {
      wait_copies<2>();
    } else if (p.stages == 3) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    load(step + p.stages - 1);
    const std::uint32_t x = base + step % p.stages * stage_bytes<kM, kWarpsM, kTerms>();
    multiply_step<T, kM, kN, kTerms, kTileCols>(acc, x, kXBytes, x + kPlanes * kXBytes, kABytes, m0,
                                                n0);
  }

  const float gain = p.gain / (kSplitScale<T> * kSplitScale<T>);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t i = row0 + m0 + m * 16 + half * 8 + lane / 4;
      if (i >= p.blocks) continue;
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const std::int64_t j = col0 + n0 + n * 8 + lane % 4 * 2;
        const std::int64_t at = i * p.stride + j;
        float2 out{gain * acc[m][n][half * 2], gain * acc[m][n][half * 2 + 1]};
        if (p.a != nullptr) {
          const float2 a = *reinterpret_cast<const float2*>(p.a + at);
          out.x = j < p.blocks ? fmaf(p.keep, a.x, out.x) : 0.0f;
          out.y = j + 1 < p.blocks ? fmaf(p.keep, a.y, out.y) : 0.0f;
        }
        if (p.values != nullptr) *reinterpret_cast<float2*>(p.values + at) = out;
        if (p.high == nullptr) continue;
        ushort2 high;
        ushort2 low;
        split<T>(out.x * kSplitScale<T>, high.x, low.x);
        split<T>(out.y * kSplitScale<T>, high.y, low.y);
        *reinterpret_cast<ushort2*>(p.high + at) = high;
        *reinterpret_cast<ushort2*>(p.low + at) = low;
      }
    }
  }
}

template <class T, int kM, int kWarpsM, int kTerms>
void launch_tiles(WalkArgs args, cudaStream_t stream) {
  constexpr int kRows = kM * 16 * kWarpsM;
  constexpr int kBytes = stage_bytes<kM, kWarpsM, kTerms>();
  args.stages = pipeline_stages(kBytes, 0);
  const int shared = args.stages * kBytes;
  const auto kernel = walk_step<T, kM, kWarpsM, kTerms>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "shared memory of walk_step");
  const dim3 grid(static_cast<unsigned>((args.blocks + kTileCols - 1) / kTileCols),
                  static_cast<unsigned>((args.blocks + kRows - 1) / kRows));
  kernel<<<grid, kThreads, static_cast<std::size_t>(shared), stream>>>(args);
  check_launch("walk_step");
}

/// Large tiles once they fill the GPU.
template <class T, int kTerms>
void launch_step(const WalkArgs& args, cudaStream_t stream) {
  if (args.blocks > 1280) {
    launch_tiles<T, 4, 4, kTerms>(args, stream);  // 256 x 128
  } else {
    launch_tiles<T, 2, 2, kTerms>(args, stream);  // 64 x 128
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
  if (a.split() == Split::kBf16) {
    launch_step<__nv_bfloat16, 3>(args, stream);
  } else if (single) {
    launch_step<__half, 1>(args, stream);
  } else {
    launch_step<__half, 3>(args, stream);
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
    args.low = out.low();
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
