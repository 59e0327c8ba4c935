#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/common/selection/matrix.hpp"

/// Which products of high and low parts a step of the walk takes, for every kernel that has one.
namespace sw::cuda {

/// Calls launch.operator()<T, kTerms>() for the type of the parts and how many of their products
/// are taken: 3, or with `single` that of the high parts alone (f16 only).
template <class F>
void for_products(Split split, bool single, F&& launch) {
  if (split == Split::kBf16) {
    launch.template operator()<__nv_bfloat16, 3>();
  } else if (single) {
    launch.template operator()<__half, 1>();
  } else {
    launch.template operator()<__half, 3>();
  }
}

}  // namespace sw::cuda
