#pragma once

#include <cstdint>

/// Device helpers that the kernels of this folder share: asynchronous copies into padded tiles, and
/// warp reductions. A tile is [rows, kStride] in shared memory; a row is padded by 16 bytes, so
/// that eight consecutive rows lie in different banks.
namespace sw::cuda::sm80 {

/// Keys of the unit that tiles are put together from: blocks are multiples of it.
inline constexpr int kChunkKeys = 16;
/// First token of a chunk that does not exist: no query sees it, no copy reads it.
inline constexpr int kNoChunk = 0x7FFFFFF0;

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory, or zeros when not `valid`.
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Reduces over groups of kLanes neighbouring lanes; every lane gets the result.
template <int kLanes, class Combine>
__device__ float reduce_lanes(float x, Combine combine) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, mask));
  }
  return x;
}

template <int kLanes>
__device__ float sum_lanes(float x) {
  return reduce_lanes<kLanes>(x, [](float a, float b) { return a + b; });
}

template <int kLanes>
__device__ float max_lanes(float x) {
  return reduce_lanes<kLanes>(x, [](float a, float b) { return fmaxf(a, b); });
}

/// Starts the copy of kCount rows of one head, tokens [first, first + kCount), by one warp. Tokens
/// and columns that do not exist become zeros.
template <class Math, int kCount>
__device__ void copy_rows(typename Math::Storage* tile, const typename Math::Storage* head,
                          std::int64_t token_stride, int first, int tokens, int head_dim) {
  constexpr int kPiece = 16 / sizeof(typename Math::Storage);
  constexpr int kPieces = Math::kDim / kPiece;
  // A row is copied by the largest power of two of lanes that divides its pieces.
  constexpr int kPower = kPieces & -kPieces;
  constexpr int kLanes = kPower < 32 ? kPower : 32;
  const int first_row = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const int first_column = static_cast<int>(threadIdx.x) % kLanes * kPiece;
  const auto* from = head + (first + first_row) * token_stride + first_column;
  auto* to = tile + first_row * Math::kStride + first_column;
#pragma unroll
  for (int row = 0; row < kCount; row += 32 / kLanes) {
#pragma unroll
    for (int column = 0; column < Math::kDim; column += kLanes * kPiece) {
      const bool valid = first + first_row < tokens - row && first_column + column < head_dim;
      copy_async(to + row * Math::kStride + column,
                 valid ? from + row * token_stride + column : head, valid);
    }
  }
}

/// Starts the copy of the tile's kTileRows query rows by the whole thread block; locate(row) is the
/// offset of the row from `data`, or -1 for a row that does not exist.
template <class Math, class Locate>
__device__ void copy_queries(typename Math::Storage* tile, const void* data, int head_dim,
                             Locate locate) {
  constexpr int kPiece = 16 / sizeof(typename Math::Storage);
  constexpr int kPieces = Math::kDim / kPiece;
  for (int index = threadIdx.x; index < Math::kTileRows * kPieces; index += Math::kThreads) {
    const int row = index / kPieces;
    const int column = index % kPieces * kPiece;
    const std::int64_t offset = locate(row);
    const bool valid = offset >= 0 && column < head_dim;
    copy_async(tile + row * Math::kStride + column,
               static_cast<const typename Math::Storage*>(data) + (valid ? offset + column : 0),
               valid);
  }
}

}  // namespace sw::cuda::sm80
