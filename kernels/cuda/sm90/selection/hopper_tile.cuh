#pragma once

#include "kernels/cuda/common/selection/tile.cuh"
#include "kernels/cuda/sm90/cluster.cuh"
#include "kernels/cuda/sm90/ptx.cuh"

/// Tiles multiplied by Hopper's warpgroup instructions, which read both operands from shared
/// memory.
namespace sw::cuda {

/// f16, all three products of high and low parts. Warpgroups below one another, 64 x 128 each.
template <int kWarpgroups>
struct HopperTile {
  static constexpr int kThreads = 128 * kWarpgroups;
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr int kM = 1;
  static constexpr int kN = 16;
  static constexpr int kWarpsN = 1;
  static constexpr int kChunk = 64;
  static constexpr int kPlanes = 2;
  static constexpr int kRowBytes = 128;  ///< in the 128-byte swizzle
  static constexpr int kBytes = 128 * kRowBytes;
  static constexpr int kBehind = 2;  ///< the products of one stage run on while the next is issued

  template <int kCount>
  __device__ static void copy(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
#pragma unroll
    for (int i = 0; i < kCount * 8 / kThreads; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = index >> 3;
      const int chunk = index & 7;
      copy_async(to + row * kRowBytes + ((chunk ^ (row & 7)) << 4),
                 from + row * stride + chunk * 8);
    }
  }
  __device__ static void wait(int stages) {
    wait_copies(stages - kBehind - 1);
    ptx::fence_shared_writes();
    __syncthreads();
  }
  __device__ static void issue(bool first, float (&acc)[kM][kN][4], std::uint32_t a, int a_plane,
                               std::uint32_t b, int b_plane, int m0, int) {
    auto& d = reinterpret_cast<float(&)[64]>(acc);
    a += m0 / 64 * 64 * kRowBytes;
    ptx::mma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::uint64_t ah = ptx::matrix_descriptor(a + k * 32);
      const std::uint64_t bh = ptx::matrix_descriptor(b + k * 32);
      ptx::mma_shared<__half>(d, ah, bh, !first || k > 0);
      ptx::mma_shared<__half>(d, ah, ptx::matrix_descriptor(b + b_plane + k * 32), true);
      ptx::mma_shared<__half>(d, ptx::matrix_descriptor(a + a_plane + k * 32), bh, true);
    }
    ptx::mma_commit();
    ptx::mma_wait<1>();
  }
  __device__ static void finish() { ptx::mma_wait<0>(); }
};

}  // namespace sw::cuda
