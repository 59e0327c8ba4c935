#pragma once

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/split_scale.hpp"
#include "kernels/cuda/common/selection/tile.cuh"
#include "kernels/cuda/common/selection/walk_step.hpp"

/// out = keep A + gain X A with mma.sync.
namespace sw::cuda {

inline constexpr int kWalkCols = 128;  ///< columns of a CTA's tile of `out`

/// mma.sync: kWarpsM of the 8 warps below one another, kM fragments of 16 rows each.
template <class T, int kMs, int kWarpsM, int kTerms>
struct PortableWalk {
  using Type = T;
  static constexpr int kM = kMs;
  static constexpr int kWarpsN = 8 / kWarpsM;
  static constexpr int kN = kWalkCols / 8 / kWarpsN;
  static constexpr int kRows = kM * 16 * kWarpsM;
  static constexpr int kChunk = kStep;
  static constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  static constexpr int kXBytes = kRows * kRowBytes;
  static constexpr int kABytes = kWalkCols * kRowBytes;
  static constexpr int kBehind = 1;

  __device__ static int row(int warp, int m) { return (warp / kWarpsN * kM + m) * 16; }
  __device__ static int column(int warp) { return warp % kWarpsN * kN * 8; }
  __device__ static void copy_x(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_tile<kRows, kTileThreads>(to, from, stride);
  }
  __device__ static void copy_a(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_tile_transposed<kWalkCols, kTileThreads>(to, from, stride);
  }
  __device__ static void wait(int stages) {
    wait_copies(stages - kBehind - 1);
    __syncthreads();
  }
  __device__ static void multiply(bool first, float (&acc)[kM][kN][4], std::uint32_t x,
                                  std::uint32_t a, int warp) {
    if (first) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
#pragma unroll
          for (int c = 0; c < 4; ++c) acc[m][n][c] = 0.0f;
        }
      }
    }
    multiply_step<T, kM, kN, kTerms, kWalkCols>(acc, x, kXBytes, a, kABytes, row(warp, 0),
                                                column(warp));
  }
};

template <class Tile>
__global__ void __launch_bounds__(kTileThreads, 1) walk_step(WalkArgs p) {
  using T = typename Tile::Type;
  constexpr int kStageBytes = Tile::kPlanes * (Tile::kXBytes + Tile::kABytes);
  extern __shared__ unsigned char unaligned[];
  const std::uint32_t base = shared_address(align_shared(unaligned));
  wait_for_previous();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * Tile::kRows;
  const std::int64_t col0 = static_cast<std::int64_t>(blockIdx.x) * kWalkCols;
  const int steps = (p.blocks + Tile::kChunk - 1) / Tile::kChunk;

  int next_slot = 0;
  const auto load = [&](int step) {
    if (step < steps) {
      const std::uint32_t x = base + next_slot * kStageBytes;
      const std::uint32_t a = x + Tile::kPlanes * Tile::kXBytes;
      const std::int64_t x_from = row0 * p.stride + step * Tile::kChunk;
      const std::int64_t a_from = step * Tile::kChunk * p.stride + col0;
      Tile::copy_x(x, p.x_high + x_from, p.stride);
      Tile::copy_a(a, p.a_high + a_from, p.stride);
      if constexpr (Tile::kPlanes == 2) {
        Tile::copy_x(x + Tile::kXBytes, p.x_low + x_from, p.stride);
        Tile::copy_a(a + Tile::kABytes, p.a_low + a_from, p.stride);
      }
      if (++next_slot == p.stages) next_slot = 0;
    }
    commit_copies();
  };

  float acc[Tile::kM][Tile::kN][4];
  const int ahead = p.stages - Tile::kBehind;
  for (int step = 0; step < ahead; ++step) load(step);
  int slot = 0;
  for (int step = 0; step < steps; ++step) {
    Tile::wait(p.stages);
    load(step + ahead);
    const std::uint32_t x = base + slot * kStageBytes;
    Tile::multiply(step == 0, acc, x, x + Tile::kPlanes * Tile::kXBytes, warp);
    if (++slot == p.stages) slot = 0;
  }

  const float gain = p.gain / (kSplitScale<T> * kSplitScale<T>);
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t i = row0 + Tile::row(warp, m) + half * 8 + lane / 4;
      if (i >= p.blocks) continue;
      // All loads first: the compiler may not move one across a store.
      float2 a[Tile::kN] = {};
      if (p.a != nullptr) {
        const float* from = p.a + i * p.stride + col0 + Tile::column(warp) + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < Tile::kN; ++n) a[n] = *reinterpret_cast<const float2*>(from + n * 8);
      }
#pragma unroll
      for (int n = 0; n < Tile::kN; ++n) {
        const std::int64_t j = col0 + Tile::column(warp) + n * 8 + lane % 4 * 2;
        const std::int64_t at = i * p.stride + j;
        float2 out{gain * acc[m][n][half * 2], gain * acc[m][n][half * 2 + 1]};
        out.x = j < p.blocks ? fmaf(p.keep, a[n].x, out.x) : 0.0f;
        out.y = j + 1 < p.blocks ? fmaf(p.keep, a[n].y, out.y) : 0.0f;
        if (p.values != nullptr) *reinterpret_cast<float2*>(p.values + at) = out;
        if (p.high == nullptr) continue;
        ushort2 high;
        ushort2 low;
        split<T>(out.x * kSplitScale<T>, high.x, low.x);
        split<T>(out.y * kSplitScale<T>, high.y, low.y);
        *reinterpret_cast<ushort2*>(p.high + at) = high;
        if (p.low != nullptr) *reinterpret_cast<ushort2*>(p.low + at) = low;
      }
    }
  }
}

template <class Tile>
void launch_walk(WalkArgs args, cudaStream_t stream) {
  constexpr int kStageBytes = Tile::kPlanes * (Tile::kXBytes + Tile::kABytes);
  args.stages = pipeline_stages(kStageBytes, kAlignment);
  const int shared = args.stages * kStageBytes + kAlignment;
  const auto kernel = walk_step<Tile>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "shared memory of walk_step");
  const dim3 grid(static_cast<unsigned>((args.blocks + kWalkCols - 1) / kWalkCols),
                  static_cast<unsigned>((args.blocks + Tile::kRows - 1) / Tile::kRows));
  launch_chained("launch of walk_step", kernel, grid, kTileThreads,
                 static_cast<std::size_t>(shared), stream, args);
}

}  // namespace sw::cuda
