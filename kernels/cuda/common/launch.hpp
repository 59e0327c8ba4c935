#pragma once

#include <cstdint>

/// What kernels share on the host side: element types and stated costs.
namespace sw::cuda {

enum class Element { kBf16, kF16, kF32 };

/// What one launch must do at least: operations (a multiply-add is two) of the work that it was
/// asked for, and bytes with each input read once and each output written once. The profiler turns
/// them into FLOP/s and GB/s.
struct KernelCost {
  double flops = 0.0;
  double bytes = 0.0;
};

/// Strides are in elements; the head_dim axis is contiguous.
struct HeadsPointer {
  const void* data = nullptr;  ///< [heads, tokens, head_dim]
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
};

}  // namespace sw::cuda
