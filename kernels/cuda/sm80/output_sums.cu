#include <cuda_runtime.h>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/output_sums.hpp"

namespace sw::cuda::sm80 {
namespace {

constexpr int kThreads = 128;

/// One thread block a (block row, head): strided sums of each thread, then a tree over threads.
__global__ void __launch_bounds__(kThreads) output_sums_kernel(const OutputPair c) {
  __shared__ double partial[kSums][kThreads];
  const std::int64_t query_begin = c.tokens - c.queries;
  const std::int64_t row = query_begin / c.block + blockIdx.x;
  const std::int64_t begin = max(row * c.block, query_begin);
  const std::int64_t end = min((row + 1) * c.block, c.tokens);
  const std::int64_t first = (blockIdx.y * c.queries + begin - query_begin) * c.head_dim;
  const std::int64_t count = (end - begin) * c.head_dim;
  double sums[kSums] = {};
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
    const double a = c.dense[first + i];
    const double b = c.sparse[first + i];
    sums[0] += (a - b) * (a - b);
    sums[1] += a * a;
    sums[2] += b * b;
    sums[3] += a * b;
  }
  for (int x = 0; x < kSums; ++x) partial[x][threadIdx.x] = sums[x];
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      for (int x = 0; x < kSums; ++x) partial[x][threadIdx.x] += partial[x][threadIdx.x + width];
    }
  }
  if (threadIdx.x == 0) {
    double* to = c.sums + (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * kSums;
    for (int x = 0; x < kSums; ++x) to[x] = partial[x][0];
  }
}

}  // namespace

void output_sums(const OutputPair& c, cudaStream_t stream) {
  const std::int64_t rows = (c.tokens + c.block - 1) / c.block - (c.tokens - c.queries) / c.block;
  output_sums_kernel<<<dim3(static_cast<unsigned>(rows), static_cast<unsigned>(c.heads)), kThreads,
                       0, stream>>>(c);
  check_launch("sums of two outputs");
}

}  // namespace sw::cuda::sm80
