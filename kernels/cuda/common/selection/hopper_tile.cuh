#pragma once

#include "kernels/cuda/common/selection/tile.cuh"

/// Tiles multiplied by Hopper's warpgroup instructions, which read both operands from shared
/// memory.
namespace sw::cuda {

/// Shared memory as wgmma sees it: rows of 128 bytes, 8 of them a swizzled unit of 1024 bytes.
inline constexpr int kSwizzledRow = 128;
inline constexpr int kSwizzleUnit = 1024;

__device__ inline std::uint64_t matrix_descriptor(std::uint32_t address, int leading_bytes) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<std::uint64_t>(kSwizzleUnit >> 4) << 32 | std::uint64_t{1} << 62;
}

/// Starts the copy of a tile [kRows, 64]; the rows of a transposed operand are the contraction.
template <int kRows>
__device__ void copy_swizzled(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
#pragma unroll
  for (int i = 0; i < kRows * 8 / kTileThreads; ++i) {
    const int index = i * kTileThreads + static_cast<int>(threadIdx.x);
    const int row = index >> 3;
    const int chunk = index & 7;
    copy_async(to + row * kSwizzledRow + ((chunk ^ (row & 7)) << 4),
               from + row * stride + chunk * 8);
  }
}

/// d (+)= a b for 64 x 128 x 16; the descriptors' layouts are K-major, or N-major for b if
/// kTransposed. Asynchronous.
template <class T, int kTransposed>
__device__ void multiply_warpgroup(float (&d)[16][4], std::uint64_t a, std::uint64_t b,
                                   bool accumulate) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, %67;}\n"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
          "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
          "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
          "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
          "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]),
          "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]),
          "+f"(d[11][2]), "+f"(d[11][3]), "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]),
          "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
          "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]),
          "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposed));
  } else {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, %67;}\n"
        : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
          "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
          "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
          "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
          "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
          "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
          "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]),
          "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]),
          "+f"(d[11][2]), "+f"(d[11][3]), "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]),
          "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
          "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]),
          "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(kTransposed));
  }
}

__device__ inline void begin_warpgroup() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ inline void commit_warpgroup() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
template <int kPending>
__device__ void wait_warpgroup() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
/// Makes ordinary writes to shared memory visible to wgmma.
__device__ inline void fence_for_warpgroup() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

/// d (+)= the products of one stage of 64 contraction elements; `a` and `b` are shared addresses of
/// the high parts. kTransposed: b lies as two halves [64, 64] of the columns.
template <class T, int kTerms, int kTransposed>
__device__ void multiply_stage(bool first, float (&d)[16][4], std::uint32_t a, int a_plane,
                               std::uint32_t b, int b_plane) {
  constexpr int kLeading = kTransposed ? 64 * kSwizzledRow : 16;
  constexpr int kBStep = kTransposed ? 16 * kSwizzledRow : 32;  // bytes of 16 contraction elements
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const std::uint64_t ah = matrix_descriptor(a + k * 32, 16);
    const std::uint64_t bh = matrix_descriptor(b + k * kBStep, kLeading);
    multiply_warpgroup<T, kTransposed>(d, ah, bh, !first || k > 0);
    if constexpr (kTerms == 3) {
      multiply_warpgroup<T, kTransposed>(
          d, ah, matrix_descriptor(b + b_plane + k * kBStep, kLeading), true);
      multiply_warpgroup<T, kTransposed>(d, matrix_descriptor(a + a_plane + k * 32, 16), bh, true);
    }
  }
}

/// Two warpgroups below one another, 64 x 128 each.
template <class T, int kTerms>
struct HopperTile {
  static constexpr int kM = 1;
  static constexpr int kN = 16;
  static constexpr int kWarpsN = 1;
  static constexpr int kChunk = 64;
  static constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  static constexpr int kBytes = 128 * kSwizzledRow;
  static constexpr int kBehind = 2;  ///< the products of one stage run on while the next is issued

  template <int kRows>
  __device__ static void copy(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
    copy_swizzled<kRows>(to, from, stride);
  }
  __device__ static void wait(int stages) {
    wait_copies(stages - kBehind - 1);
    fence_for_warpgroup();
    __syncthreads();
  }
  __device__ static void issue(bool first, float (&acc)[kM][kN][4], std::uint32_t a, int a_plane,
                               std::uint32_t b, int b_plane, int m0, int) {
    begin_warpgroup();
    multiply_stage<T, kTerms, 0>(first, acc[0], a + m0 / 64 * 64 * kSwizzledRow, a_plane, b,
                                 b_plane);
    commit_warpgroup();
    wait_warpgroup<1>();
  }
  __device__ static void finish() { wait_warpgroup<0>(); }
};

}  // namespace sw::cuda
