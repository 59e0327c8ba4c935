#pragma once

#include <cuda_fp16.h>

#include <type_traits>

namespace sw::cuda {

/// Operands of the walk hold this times the matrix (see Split). Its square times a row sum of 1
/// stays far inside f32.
template <class T>
inline constexpr float kSplitScale = std::is_same_v<T, __half> ? 16384.0f : 1.0f;

}  // namespace sw::cuda
