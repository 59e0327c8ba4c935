#include "kernels/cuda/common/selection/hopper_tile.cuh"
#include "kernels/cuda/common/selection/walk_step.cuh"

namespace sw::cuda {
namespace {

/// Two warpgroups below one another, kMs tiles of 64 rows each.
template <class T, int kMs, int kTerms>
struct HopperWalk {
  using Type = T;
  static constexpr int kM = kMs;
  static constexpr int kN = 16;
  static constexpr int kRows = 128 * kM;
  static constexpr int kChunk = 64;
  static constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  static constexpr int kXBytes = kRows * kSwizzledRow;
  static constexpr int kABytes = kWalkCols * kSwizzledRow;
  static constexpr int kBehind = 2;

  __device__ static int row(int warp, int m) { return (warp / 4 * kM + m) * 64 + warp % 4 * 16; }
  __device__ static int column(int) { return 0; }
  __device__ static void copy_x(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_swizzled<kRows>(to, from, stride);
  }
  __device__ static void copy_a(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_swizzled<kChunk>(to, from, stride);
    copy_swizzled<kChunk>(to + kABytes / 2, from + kWalkCols / 2, stride);
  }
  __device__ static void wait(int stages) {
    wait_copies(stages - kBehind - 1);
    fence_for_warpgroup();
    __syncthreads();
  }
  __device__ static void multiply(bool first, float (&acc)[kM][kN][4], std::uint32_t x,
                                  std::uint32_t a, int warp) {
    begin_warpgroup();
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      multiply_stage<T, kTerms, 1>(first, acc[m], x + (warp / 4 * kM + m) * 64 * kSwizzledRow,
                                   kXBytes, a, kABytes);
    }
    commit_warpgroup();
    wait_warpgroup<1>();
  }
  __device__ static void finish() { wait_warpgroup<0>(); }
};

}  // namespace

void launch_walk_hopper(const WalkArgs& args, Split split, bool single, cudaStream_t stream) {
  if (split == Split::kBf16) {
    launch_walk<HopperWalk<__nv_bfloat16, 1, 3>>(args, stream);
  } else if (!single) {
    launch_walk<HopperWalk<__half, 1, 3>>(args, stream);
  } else if (args.blocks > 1280) {  // large tiles once they fill the GPU
    launch_walk<HopperWalk<__half, 2, 1>>(args, stream);
  } else {
    launch_walk<HopperWalk<__half, 1, 1>>(args, stream);
  }
}

}  // namespace sw::cuda
