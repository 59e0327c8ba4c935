#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/block_mass.hpp"
#include "kernels/cuda/sm80/launch.hpp"

namespace sw::cuda::sm80 {
namespace {

MassLaunch plan(const BlockMasses& problem) {
  MassLaunch launch;
  launch.problem = problem;
  launch.key_blocks = static_cast<int>((problem.tokens + problem.block - 1) / problem.block);
  launch.rows =
      launch.key_blocks - static_cast<int>((problem.tokens - problem.queries) / problem.block);
  const std::int64_t queries = std::min<std::int64_t>(problem.queries, problem.block);
  launch.row_pitch = static_cast<int>((queries + 15) / 16 * 16);
  return launch;
}

std::size_t mass_bytes(const MassLaunch& launch) {
  return static_cast<std::size_t>(launch.problem.num_heads) *
         static_cast<std::size_t>(launch.rows) * static_cast<std::size_t>(launch.key_blocks) *
         sizeof(float);
}

}  // namespace

KernelCost cost(const BlockMasses& problem) {
  const double size = problem.element == Element::kF32 ? 4.0 : 2.0;
  const auto dim = static_cast<double>(problem.head_dim);
  const auto queries = static_cast<double>(problem.queries);
  const auto tokens = static_cast<double>(problem.tokens);
  KernelCost cost;
  cost.flops = 2.0 * dim * problem.num_heads * queries * (tokens - 0.5 * (queries - 1.0));
  cost.bytes = size * dim * (problem.num_heads * queries + problem.num_kv_heads * tokens) +
               4.0 * problem.num_heads * queries + static_cast<double>(mass_bytes(plan(problem)));
  return cost;
}

void block_masses(const BlockMasses& problem, cudaStream_t stream) {
  const MassLaunch launch = plan(problem);
  check(cudaMemsetAsync(problem.mass, 0, mass_bytes(launch), stream), "clearing of block masses");
  visit_head_dim(problem.head_dim, problem.element,
                 [&]<int kHeadDim>() { Kernels<kHeadDim>::masses(launch, stream); });
}

}  // namespace sw::cuda::sm80
