#pragma once

#include "kernels/cuda/common/selection/mma.cuh"

/// Ways of multiplying tiles: what the kernels of selection are written for. A tile of kRows x 128
/// is the work of kThreads; a warp holds kM x kN fragments of 16 x 8 in the layout of mma.sync.
namespace sw::cuda {

inline constexpr int kTileThreads = 256;

/// Tiles begin at multiples of 1024 bytes, for which a launch asks that much more.
inline constexpr int kAlignment = 1024;
__device__ inline unsigned char* align_shared(unsigned char* pointer) {
  return pointer + (kAlignment - shared_address(pointer) % kAlignment) % kAlignment;
}

/// The `pending` (at most 6) newest groups of copies may still be under way.
__device__ inline void wait_copies(int pending) {
  switch (pending) {
    case 0:
      return wait_copies<0>();
    case 1:
      return wait_copies<1>();
    case 2:
      return wait_copies<2>();
    case 3:
      return wait_copies<3>();
    case 4:
      return wait_copies<4>();
    case 5:
      return wait_copies<5>();
    default:
      return wait_copies<6>();
  }
}

/// mma.sync: 2 warps below one another, 4 abreast.
template <class T, int kTerms>
struct PortableTile {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kRows = 128;
  static constexpr int kM = 4;
  static constexpr int kN = 4;
  static constexpr int kWarpsN = 4;
  static constexpr int kChunk = kStep;  ///< contraction elements of a stage
  static constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  static constexpr int kBytes = 128 * kRowBytes;  ///< of one operand tile
  static constexpr int kBehind = 1;  ///< stages that are being read when the next is asked for

  template <int kCount>
  __device__ static void copy(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_tile<kCount, kTileThreads>(to, from, stride);
  }
  __device__ static void wait(int stages) {
    wait_copies(stages - kBehind - 1);
    __syncthreads();
  }
  /// Starts acc (+)= a b^T over one stage; done after finish().
  __device__ static void issue(bool first, float (&acc)[kM][kN][4], std::uint32_t a, int a_plane,
                               std::uint32_t b, int b_plane, int m0, int n0) {
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
    multiply_step<T, kM, kN, kTerms, 0>(acc, a, a_plane, b, b_plane, m0, n0);
  }
  __device__ static void finish() {}
};

}  // namespace sw::cuda
