#include <stdexcept>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/matrix.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/split_scale.hpp"

namespace sw::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kReadAhead = 128;  ///< rows that a tile of 256 may read past the last

struct FinishArgs {
  const float* in;
  std::int64_t in_stride;
  int chunks;
  std::int64_t chunk_stride;
  RowRule rule;
  int blocks;
  std::int64_t stride;
  float* values;
  std::uint16_t* high;
  std::uint16_t* low;
};

__device__ float power(float x, float exponent) {
  const int whole = static_cast<int>(exponent);
  if (static_cast<float>(whole) != exponent || whole > 64) return exp2f(exponent * log2f(x));
  float result = 1.0f;
  for (int bit = whole; bit != 0; bit >>= 1) {
    if (bit & 1) result *= x;
    x *= x;
  }
  return result;
}

/// Reduces over the block in a fixed order.
template <class Combine>
__device__ float reduce_block(float x, float neutral, Combine combine) {
  __shared__ float parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float total = neutral;
  for (int i = 0; i < kThreads / 32; ++i) total = combine(total, parts[i]);
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads) finish_rows_kernel(FinishArgs p) {
  extern __shared__ float row_values[];
  wait_for_previous();
  const int i = static_cast<int>(blockIdx.x);
  const std::int64_t begin = i * p.stride;
  if (i >= p.blocks) {  // a padding row of the operands
    for (std::int64_t j = threadIdx.x; j < p.stride; j += kThreads) {
      p.high[begin + j] = 0;
      p.low[begin + j] = 0;
    }
    return;
  }
  const float factor = i + 1 == p.blocks ? p.rule.last_factor : p.rule.factor;
  const int visible = p.rule.causal ? i + 1 : p.blocks;
  float largest = 0.0f;
  for (int j = threadIdx.x; j < p.blocks; j += kThreads) {
    float x = 0.0f;
    if (j < visible) {
      for (int c = 0; c < p.chunks; ++c) x += p.in[c * p.chunk_stride + i * p.in_stride + j];
      x *= factor;
    }
    row_values[j] = x;
    largest = fmaxf(largest, x);
  }
  if (p.rule.sharpness != 1.0f) {
    // A row that is divided by its sum may be scaled by anything first: powers stay in range.
    float scale = 1.0f;
    if (p.rule.normalize) {
      largest = reduce_block(largest, 0.0f, [](float a, float b) { return fmaxf(a, b); });
      if (largest > 0.0f) scale = 1.0f / largest;
    }
    for (int j = threadIdx.x; j < visible; j += kThreads) {
      row_values[j] = power(row_values[j] * scale, p.rule.sharpness);
    }
  }
  float scale = 1.0f;
  if (p.rule.normalize) {
    float sum = 0.0f;
    for (int j = threadIdx.x; j < visible; j += kThreads) sum += row_values[j];
    sum = reduce_block(sum, 0.0f, [](float a, float b) { return a + b; });
    if (sum != 0.0f) scale = 1.0f / sum;  // a sum that is not a number reaches every element
  }
  for (int j = threadIdx.x; j < p.stride; j += kThreads) {
    const float x = j < p.blocks ? row_values[j] * scale : 0.0f;
    if (j < p.blocks) p.values[begin + j] = x;
    split<T>(x * kSplitScale<T>, p.high[begin + j], p.low[begin + j]);
  }
}

}  // namespace

SplitMatrix::SplitMatrix(int max_blocks, Split split)
    : max_blocks_(max_blocks),
      split_(split),
      values_(static_cast<std::size_t>(padded(max_blocks) * padded(max_blocks))),
      operands_(
          static_cast<std::size_t>(2 * (padded(max_blocks) + kReadAhead) * padded(max_blocks))) {
  check(cudaMemset(operands_.data(), 0, operands_.bytes()), "clearing of a matrix");
}

void SplitMatrix::resize(int blocks) {
  if (blocks < 1 || blocks > max_blocks_) {
    throw std::logic_error("selection: more blocks than the workspace was made for");
  }
  blocks_ = blocks;
}

Matrix SplitMatrix::download() const {
  const std::vector<float> host =
      values_.download(static_cast<std::size_t>(blocks_) * static_cast<std::size_t>(stride()));
  Matrix matrix(blocks_, blocks_);
  for (std::int64_t i = 0; i < blocks_; ++i) {
    for (std::int64_t j = 0; j < blocks_; ++j) {
      matrix(i, j) = host[static_cast<std::size_t>(i * stride() + j)];
    }
  }
  return matrix;
}

void finish_rows(const float* in, std::int64_t in_stride, int chunks, std::int64_t chunk_stride,
                 const RowRule& rule, const SplitMatrix& out, cudaStream_t stream) {
  const FinishArgs args{in,           in_stride,    chunks,       chunk_stride, rule,
                        out.blocks(), out.stride(), out.values(), out.high(),   out.low()};
  const auto shared = static_cast<std::size_t>(out.blocks()) * sizeof(float);
  const auto launch = [&](auto kernel) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "shared memory of finish_rows");
    launch_chained("launch of finish_rows", kernel, dim3(static_cast<unsigned>(out.stride())),
                   kThreads, shared, stream, args);
  };
  out.split() == Split::kF16 ? launch(finish_rows_kernel<__half>)
                             : launch(finish_rows_kernel<__nv_bfloat16>);
}

}  // namespace sw::cuda
