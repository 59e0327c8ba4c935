#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/selection/matrix.hpp"

/// One product of the walk: arguments of the kernel, and its launches.
namespace sw::cuda {

struct WalkArgs {
  const std::uint16_t* x_high;  ///< X: the state
  const std::uint16_t* x_low;
  const std::uint16_t* a_high;  ///< A
  const std::uint16_t* a_low;
  const float* a;  ///< A in f32, or null: the bare product
  float keep;      ///< out = keep A + gain X A
  float gain;
  float* values;        ///< out in f32, may be null
  std::uint16_t* high;  ///< out as operands, may be null
  std::uint16_t* low;
  int blocks;
  std::int64_t stride;
  int stages;
};

/// Launches one step with mma.sync (sm_80 and later). `single`: high parts alone, f16 only.
void launch_walk_portable(const WalkArgs& args, Split split, bool single, cudaStream_t stream);
/// The same with wgmma (sm_90).
void launch_walk_hopper(const WalkArgs& args, Split split, bool single, cudaStream_t stream);

}  // namespace sw::cuda
