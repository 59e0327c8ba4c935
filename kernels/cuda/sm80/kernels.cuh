#pragma once

#include "kernels/cuda/sm80/block_mass.cuh"
#include "kernels/cuda/sm80/fused_multiply_add.cuh"
#include "kernels/cuda/sm80/prefill_attention.cuh"
#include "kernels/cuda/sm80/tensor_core.cuh"

/// Definitions of Kernels<kHeadDim>: the choice of the arithmetic.
namespace sw::cuda::sm80 {

template <int kHeadDim, int kRowTiles, class F>
void visit_math(Element element, F&& f) {
  if (element == Element::kBf16) {
    f.template operator()<TensorCore<Element::kBf16, kHeadDim, kRowTiles>>();
  } else if (element == Element::kF16) {
    f.template operator()<TensorCore<Element::kF16, kHeadDim, kRowTiles>>();
  } else {
    if constexpr (kHeadDim == 64 || kHeadDim == 128 || kHeadDim == 256) {
      f.template operator()<FusedMultiplyAdd<kHeadDim>>();
    }
  }
}

/// Row tiles that the registers of a warp hold.
template <int kHeadDim>
inline constexpr int kMostRowTiles = kHeadDim <= 128 ? 2 : 1;

template <int kHeadDim>
void Kernels<kHeadDim>::attend(const AttentionLaunch& launch, cudaStream_t stream) {
  const auto run = [&]<class Math>() { launch_prefill_attention<Math>(launch, stream); };
  if (launch.rows <= 64) {
    visit_math<kHeadDim, 1>(launch.problem.element, run);
  } else {
    visit_math<kHeadDim, kMostRowTiles<kHeadDim>>(launch.problem.element, run);
  }
}

template <int kHeadDim>
void Kernels<kHeadDim>::masses(const MassLaunch& launch, cudaStream_t stream) {
  visit_math<kHeadDim, kMostRowTiles<kHeadDim>>(
      launch.problem.element, [&]<class Math>() { launch_block_masses<Math>(launch, stream); });
}

}  // namespace sw::cuda::sm80
