#pragma once

#include "attention/problem.hpp"
#include "attention/sketch.hpp"
#include "attention/stage.hpp"
#include "core/tensor.hpp"
#include "kernels/cuda/common/launch.hpp"

namespace sw::cuda {

/// Backend::transition for a problem whose queries and keys lie at `q` and `k` in device memory:
/// pooled, multiplied and summed in double there; the transform, which is linear and runs over
/// block means only, and the last elementwise steps on the host.
Matrix transition(const AttentionProblem& problem, const HeadsPointer& q, const HeadsPointer& k,
                  const SketchParams& params, StageTimes* times);

/// alpha x y + beta x_add (null: no addend), square matrices in double.
Matrix multiply(const Matrix& x, const Matrix& y, double alpha, double beta, const Matrix* addend);

}  // namespace sw::cuda
