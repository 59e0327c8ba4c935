#pragma once

#include "core/tensor.hpp"
#include "kernels/cpu/scores.hpp"

/// Walks over block transition matrices, as Backend declares them, in fp64. A matrix without
/// entries after the diagonal (a causal sketch, the state of a product walk) costs what is left.
namespace sw::cpu {

Matrix damped_walk(const Matrix& a, const Matrix* previous, double damping, std::int64_t degree,
                   const ScoreKernel& kernel);
Matrix product_walk(const Matrix& a, const Matrix* previous, const ScoreKernel& kernel);

}  // namespace sw::cpu
