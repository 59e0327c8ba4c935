#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

/// Descriptions of tensors for Hopper's copy engine.
namespace sw::cuda {

/// A 3-d tensor of 2-byte elements, the innermost dimension first and contiguous, and the box that
/// one copy moves. Rows of a box are 128 bytes and land in the 128-byte swizzle, or 64 in that of
/// 64.
struct TensorBox {
  CUtensorMapDataType type;
  const void* data;                      ///< 16-byte aligned
  std::array<std::uint64_t, 3> size;     ///< elements
  std::array<std::uint64_t, 2> strides;  ///< bytes of dimensions 1 and 2, multiples of 16
  std::array<std::uint32_t, 3> box;      ///< elements, at most 256 each
};

/// Throws Error(kResource) when the driver has no tensor maps or refuses this one.
CUtensorMap make_tensor_map(const TensorBox& tensor);

}  // namespace sw::cuda
