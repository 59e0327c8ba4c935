#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/common/launch.hpp"

/// From run-time shapes to the instantiations of the decode kernels.
namespace sw::cuda {

template <class F>
void visit_element(Element element, F&& f) {
  if (element == Element::kBf16) {
    f.template operator()<__nv_bfloat16>();
  } else {
    f.template operator()<__half>();
  }
}

/// `dim` is 64, 128 or 256: others are refused before.
template <class F>
void visit_dim(int dim, F&& f) {
  switch (dim) {
    case 64:
      return f.template operator()<64>();
    case 128:
      return f.template operator()<128>();
    default:
      return f.template operator()<256>();
  }
}

}  // namespace sw::cuda
