#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// Matrix products of selection on tensor cores, for sm_80 and later: operands are held as the sum
/// of two 16-bit numbers (high + low), and high high + high low + low high is their product to
/// about 22 bits (f16) or 16 bits (bf16, which has the range of f32).
namespace sw::cuda {

inline constexpr int kStep = 32;      ///< contraction elements of one pipeline stage
inline constexpr int kRowBytes = 64;  ///< of a tile row with the contraction contiguous

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void copy_async(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// c += a b for one 16 x 8 x 16 tile.
template <class T>
__device__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// Byte offset of the 16-byte chunk `chunk` (0..3) of a row in a tile [rows, kStep]: rows of a
/// matrix load fall into different banks.
__device__ inline int tile_offset(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
}
/// The same for a tile [kStep, kCols] with the contraction along the rows.
template <int kCols>
__device__ int transposed_offset(int k, int chunk) {
  return k * kCols * 2 + ((chunk ^ (k & 7)) << 4);
}

/// Starts the copy of a tile [kRows, kStep] whose row r begins at from + r * stride.
template <int kRows, int kThreads>
__device__ void copy_tile(std::uint32_t to, const std::uint16_t* from, std::int64_t stride) {
  static_assert(kRows * 4 % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kRows * 4 / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = index >> 2;
    const int chunk = index & 3;
    copy_async(to + tile_offset(row, chunk), from + row * stride + chunk * 8);
  }
}
/// Starts the copy of a tile [kStep, kCols].
template <int kCols, int kThreads>
__device__ void copy_tile_transposed(std::uint32_t to, const std::uint16_t* from,
                                     std::int64_t stride) {
  constexpr int kChunks = kCols / 8;
  static_assert(kStep * kChunks % kThreads == 0);
#pragma unroll
  for (int i = 0; i < kStep * kChunks / kThreads; ++i) {
    const int index = i * kThreads + static_cast<int>(threadIdx.x);
    const int k = index / kChunks;
    const int chunk = index % kChunks;
    copy_async(to + transposed_offset<kCols>(k, chunk), from + k * stride + chunk * 8);
  }
}

/// acc += A B over kStep elements, for the warp's part [kM * 16, kN * 8] of a tile that begins at
/// row m0 and column n0. `a` and `b` are shared addresses of the high parts; the low parts follow
/// after a_plane and b_plane bytes. kCols > 0: B lies as [kStep, kCols], else as [columns, kStep].
template <class T, int kM, int kN, int kTerms, int kCols>
__device__ void multiply_step(float (&acc)[kM][kN][4], std::uint32_t a, int a_plane,
                              std::uint32_t b, int b_plane, int m0, int n0) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const auto load_a = [&](std::uint32_t(&r)[kM][4], std::uint32_t base, int half) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      load_matrices(r[m], base + tile_offset(m0 + m * 16 + (lane & 15), half * 2 + (lane >> 4)));
    }
  };
  const auto load_b = [&](std::uint32_t(&r)[kN / 2][4], std::uint32_t base, int half) {
#pragma unroll
    for (int n = 0; n < kN / 2; ++n) {
      if constexpr (kCols > 0) {
        load_matrices_transposed(
            r[n],
            base + transposed_offset<kCols>(half * 16 + (lane & 15), n0 / 8 + n * 2 + (lane >> 4)));
      } else {
        load_matrices(r[n], base + tile_offset(n0 + n * 16 + (lane & 7) + ((lane >> 4) << 3),
                                               half * 2 + ((lane >> 3) & 1)));
      }
    }
  };
  const auto multiply = [&](const std::uint32_t(&ra)[kM][4], const std::uint32_t(&rb)[kN / 2][4]) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(acc[m][n], ra[m], rb[n / 2][n % 2 * 2], rb[n / 2][n % 2 * 2 + 1]);
      }
    }
  };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    std::uint32_t ra[kM][4];
    std::uint32_t rb[kN / 2][4];
    load_a(ra, a, half);
    load_b(rb, b, half);
    multiply(ra, rb);
    if constexpr (kTerms == 3) {
      std::uint32_t low[kN / 2][4];
      load_b(low, b + b_plane, half);
      multiply(ra, low);
      load_a(ra, a + a_plane, half);
      multiply(ra, rb);
    }
  }
}

/// x = high + low + an error below 2^-22 |x| (f16) or 2^-16 |x| (bf16).
template <class T>
__device__ void split(float x, std::uint16_t& high, std::uint16_t& low) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half h = __float2half_rn(x);
    high = __half_as_ushort(h);
    low = __half_as_ushort(__float2half_rn(x - __half2float(h)));
  } else {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    high = __bfloat16_as_ushort(h);
    low = __bfloat16_as_ushort(__float2bfloat16_rn(x - __bfloat162float(h)));
  }
}
/// The same for two neighbours, x.x in the lower half of a word.
template <class T>
__device__ void split(float2 x, std::uint32_t& high, std::uint32_t& low) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 h = __float22half2_rn(x);
    const float2 back = __half22float2(h);
    const __half2 l = __float22half2_rn(float2{x.x - back.x, x.y - back.y});
    high = reinterpret_cast<const std::uint32_t&>(h);
    low = reinterpret_cast<const std::uint32_t&>(l);
  } else {
    const __nv_bfloat162 h = __float22bfloat162_rn(x);
    const float2 back = __bfloat1622float2(h);
    const __nv_bfloat162 l = __float22bfloat162_rn(float2{x.x - back.x, x.y - back.y});
    high = reinterpret_cast<const std::uint32_t&>(h);
    low = reinterpret_cast<const std::uint32_t&>(l);
  }
}

}  // namespace sw::cuda
