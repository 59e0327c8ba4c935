#pragma once

#include <cstdint>
#include <vector>

#include "attention/sketch.hpp"
#include "core/tensor.hpp"

/// What every backend does alike to block scores, whatever computes their products: pooled vectors
/// before, and the rows of the transition matrix after (sketchwalk.md sections 1 and 9).
namespace sw {

/// Pooled vectors [heads, count, dim] in fp64.
struct PooledVectors {
  std::int64_t heads = 0;
  std::int64_t count = 0;
  std::int64_t dim = 0;
  std::vector<double> values;

  double* row(std::int64_t head, std::int64_t u) {
    return values.data() + (head * count + u) * dim;
  }
  const double* row(std::int64_t head, std::int64_t u) const {
    return values.data() + (head * count + u) * dim;
  }
};

/// [1, count, dim].
PooledVectors mean_over_heads(const PooledVectors& x);

/// Each vector sketched: [heads, count, sketch.dim()].
PooledVectors transform(const PooledVectors& x, const Sketch& sketch);

/// Turns `a` [b, b], the sums of the softmax rows of `heads` heads and of the pooled queries of
/// each block (`count` of them in all), into the transition matrix: means, to the power
/// `sharpness`, rows divided by their sum if `normalize`.
void finish_transition(Matrix& a, const SketchParams& params, std::int64_t heads,
                       std::int64_t count);

}  // namespace sw
