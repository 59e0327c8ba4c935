#pragma once

#include <cstdint>

#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection/matrix.hpp"
#include "kernels/cuda/common/selection/select.hpp"

/// The walk over block transition matrices (sketchwalk.md section 2) on tensor cores.
namespace sw::cuda {

/// Products X A of b x b matrices. Owns the memory between steps; allocates nothing later.
class Walk {
 public:
  /// `split` is that of every matrix it will be given. Throws Error(kResource) without memory.
  Walk(int max_blocks, Split split);

  /// `degree` times S := (1 - damping) A + damping S A, from S = state (A when it is empty); the
  /// result is the new state. Up to 128 blocks all is f32; beyond, steps before the last use the
  /// high parts alone: their rounding (2^-11) reaches the result times damping^2.
  /// With `select` (only where damped_selects()) the same launch selects by the new state.
  void damped(const SplitMatrix& a, SplitMatrix& state, double damping, int degree,
              cudaStream_t stream, const SelectArgs* select = nullptr);
  static bool damped_selects(int blocks, double damping, int degree) {
    return blocks <= kRowBlocks && damping != 0.0 && degree > 0;
  }

  static constexpr int kRowBlocks = 128;  ///< of which a walk is one launch, a CTA a row

  /// R = state A (A when it is empty), entries j > i zeroed, rows divided by their sum if it is not
  /// zero; the result is the new state.
  void product(const SplitMatrix& a, SplitMatrix& state, cudaStream_t stream);

  static KernelCost cost(int blocks, int products);

 private:
  SplitMatrix odd_;  ///< what a step writes while it reads the other
  SplitMatrix even_;
};

/// to := from, on `stream`.
void copy_matrix(const SplitMatrix& from, SplitMatrix& to, cudaStream_t stream);

}  // namespace sw::cuda
