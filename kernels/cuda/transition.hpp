#pragma once

#include <cstdint>

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

/// `degree` times S := alpha S a + beta a, from S = start: square matrices in double.
Matrix walk(const Matrix& a, const Matrix& start, double alpha, double beta, std::int64_t degree);

}  // namespace sw::cuda
