#pragma once

#include "kernels/cuda/sm80/block_mass.cuh"
#include "kernels/cuda/sm80/fused_multiply_add.cuh"
#include "kernels/cuda/sm80/prefill_attention.cuh"
#include "kernels/cuda/sm80/tensor_core.cuh"

/// Definitions of Kernels<kHeadDim>: the choice of the arithmetic.
namespace sw::cuda::sm80 {

template <int kHeadDim, class F>
void visit_math(Element element, F&& f) {
  if (element == Element::kBf16) {
    f.template operator()<TensorCore<Element::kBf16, kHeadDim>>();
  } else if (element == Element::kF16) {
    f.template operator()<TensorCore<Element::kF16, kHeadDim>>();
  } else {
    if constexpr (kHeadDim == 64 || kHeadDim == 128 || kHeadDim == 256) {
      f.template operator()<FusedMultiplyAdd<kHeadDim>>();
    }
  }
}

template <int kHeadDim>
void Kernels<kHeadDim>::attend(const AttentionLaunch& launch, cudaStream_t stream) {
  visit_math<kHeadDim>(launch.problem.element,
                       [&]<class Math>() { launch_prefill_attention<Math>(launch, stream); });
}

template <int kHeadDim>
void Kernels<kHeadDim>::masses(const MassLaunch& launch, cudaStream_t stream) {
  visit_math<kHeadDim>(launch.problem.element,
                       [&]<class Math>() { launch_block_masses<Math>(launch, stream); });
}

}  // namespace sw::cuda::sm80
