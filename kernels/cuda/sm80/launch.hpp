#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/sm80/block_mass.hpp"
#include "kernels/cuda/sm80/prefill_attention.hpp"

/// What the host works out for a launch, and the kernels by head dimension, one instantiation a
/// file (head_dim_*.cu).
namespace sw::cuda::sm80 {

struct AttentionLaunch {
  PrefillAttention problem;
  int pack_heads = 1;     ///< query heads that share KV head and row set
  int heads_per_set = 1;  ///< query heads that share a row set
  std::int64_t rows = 1;  ///< tile rows of a full block row: its queries, of all packed heads
  /// Blocks that token-level parts reach into and that the row does not keep.
  const int* extra_count = nullptr;  ///< [groups * rows]; null: no token-level parts
  const int* extra = nullptr;        ///< [groups * rows, extra_capacity]
  int extra_capacity = 0;
};

struct MassLaunch {
  BlockMasses problem;
  int rows = 0;         ///< query block rows
  int key_blocks = 0;   ///< of the context
  int row_pitch = 16;   ///< tile rows of a head: its queries, rounded up to 16
  int tile_heads = 1;   ///< heads in a tile
  int span_blocks = 1;  ///< key blocks of a thread block
};

/// Kernels for head dimensions up to kHeadDim; f32 has those of 64, 128 and 256.
template <int kHeadDim>
struct Kernels {
  static void attend(const AttentionLaunch& launch, cudaStream_t stream);
  static void masses(const MassLaunch& launch, cudaStream_t stream);
};

/// Calls f.operator()<kHeadDim>() with the smallest instantiation that holds head_dim.
template <class F>
void visit_head_dim(int head_dim, Element element, F&& f) {
  if (head_dim <= 64) {
    f.template operator()<64>();
  } else if (head_dim <= 96 && element != Element::kF32) {
    f.template operator()<96>();
  } else if (head_dim <= 128) {
    f.template operator()<128>();
  } else if (head_dim <= 192 && element != Element::kF32) {
    f.template operator()<192>();
  } else {
    f.template operator()<256>();
  }
}

}  // namespace sw::cuda::sm80
