#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/block_scores.hpp"

namespace sw::cuda::sm80 {
namespace {

__device__ double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ double to_double(__half x) { return __half2float(x); }
__device__ double to_double(float x) { return x; }

/// One thread a column of a pool, tokens in order: the sums are those of the CPU, bit for bit.
template <class T>
__global__ void pool_kernel(const TokenPooling p) {
  const std::int64_t begin = blockIdx.x * p.pool;
  const std::int64_t end = min(begin + p.pool, p.tokens);
  const auto* head = static_cast<const T*>(p.x.data) + blockIdx.y * p.x.head_stride;
  for (int column = threadIdx.x; column < p.head_dim; column += blockDim.x) {
    double sum = 0.0;
#pragma unroll 8
    for (std::int64_t t = begin; t < end; ++t) {
      sum += to_double(head[t * p.x.token_stride + column]);
    }
    const auto divisor = static_cast<double>(p.partial_mean ? end - begin : p.pool);
    p.means[(static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * p.head_dim +
            column] = sum / divisor;
  }
}

constexpr int kTile = 64;  // of the product, 4 x 4 elements a thread
constexpr int kDepth = 16;
constexpr int kProductThreads = kTile * kTile / 16;

template <bool kTransposed>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const DoubleProduct p) {
  __shared__ double a[kDepth][kTile + 1];
  __shared__ double b[kDepth][kTile + 1];
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t column0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const int x = threadIdx.x % 16;
  const int y = threadIdx.x / 16;
  double sums[4][4] = {};
  for (std::int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += kProductThreads) {
      const std::int64_t k = k0 + i % kDepth;
      const std::int64_t row = row0 + i / kDepth;
      a[i % kDepth][i / kDepth] = row < p.m && k < p.k ? p.a[row * p.k + k] : 0.0;
      if constexpr (kTransposed) {
        const std::int64_t column = column0 + i / kDepth;
        b[i % kDepth][i / kDepth] = column < p.n && k < p.k ? p.b[column * p.k + k] : 0.0;
      } else {
        const std::int64_t column = column0 + i % kTile;
        const std::int64_t inner = k0 + i / kTile;
        b[i / kTile][i % kTile] = column < p.n && inner < p.k ? p.b[inner * p.n + column] : 0.0;
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] = fma(a[k][y + 16 * i], b[k][x + 16 * j], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const std::int64_t row = row0 + y + 16 * i;
      const std::int64_t column = column0 + x + 16 * j;
      if (row >= p.m || column >= p.n) continue;
      double value = p.alpha * sums[i][j];
      if (p.beta != 0.0) value += p.beta * p.d[row * p.n + column];
      p.c[row * p.n + column] = value;
    }
  }
}

constexpr int kSoftmaxThreads = 256;

/// Combines the values of all threads in a fixed order.
template <class Combine>
__device__ double reduce_block(double value, double* shared, Combine combine) {
  shared[threadIdx.x] = value;
  for (int width = kSoftmaxThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) {
      shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + width]);
    }
  }
  __syncthreads();
  const double result = shared[0];
  __syncthreads();
  return result;
}

__global__ void __launch_bounds__(kSoftmaxThreads)
    probabilities_kernel(const BlockProbabilities p) {
  __shared__ double shared[kSoftmaxThreads];
  const std::int64_t i = p.first_row + blockIdx.x;
  const std::int64_t visible = p.causal ? min((i + 1) * p.keys_per_block, p.keys) : p.keys;
  const std::int64_t begin = blockIdx.x * p.queries_per_block;
  const std::int64_t end = min(begin + p.queries_per_block, p.queries);
  for (std::int64_t u = begin; u < end; ++u) {
    const double* logits = p.logits + u * p.keys;
    double largest = logits[0];
    for (std::int64_t v = threadIdx.x; v < visible; v += kSoftmaxThreads) {
      largest = fmax(largest, logits[v]);
    }
    largest = reduce_block(largest, shared, [](double x, double y) { return fmax(x, y); });
    double total = 0.0;
    for (std::int64_t v = threadIdx.x; v < visible; v += kSoftmaxThreads) {
      total += exp(logits[v] - largest);
    }
    total = reduce_block(total, shared, [](double x, double y) { return x + y; });
    for (std::int64_t j = threadIdx.x; j * p.keys_per_block < visible; j += kSoftmaxThreads) {
      const std::int64_t last = min((j + 1) * p.keys_per_block, visible);
      double sum = 0.0;
      for (std::int64_t v = j * p.keys_per_block; v < last; ++v) sum += exp(logits[v] - largest);
      p.sum[i * p.blocks + j] += sum / total;
    }
  }
}

}  // namespace

void pool_tokens(const TokenPooling& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.tokens + p.pool - 1) / p.pool),
                  static_cast<unsigned>(p.heads));
  const unsigned threads = p.head_dim <= 64 ? 64 : 128;
  if (p.element == Element::kBf16) {
    pool_kernel<__nv_bfloat16><<<grid, threads, 0, stream>>>(p);
  } else if (p.element == Element::kF16) {
    pool_kernel<__half><<<grid, threads, 0, stream>>>(p);
  } else {
    pool_kernel<float><<<grid, threads, 0, stream>>>(p);
  }
  check_launch("pooling of tokens");
}

void multiply(const DoubleProduct& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.n + kTile - 1) / kTile),
                  static_cast<unsigned>((p.m + kTile - 1) / kTile));
  if (p.b_transposed) {
    product_kernel<true><<<grid, kProductThreads, 0, stream>>>(p);
  } else {
    product_kernel<false><<<grid, kProductThreads, 0, stream>>>(p);
  }
  check_launch("product in double");
}

void add_block_probabilities(const BlockProbabilities& p, cudaStream_t stream) {
  const auto rows =
      static_cast<unsigned>((p.queries + p.queries_per_block - 1) / p.queries_per_block);
  probabilities_kernel<<<rows, kSoftmaxThreads, 0, stream>>>(p);
  check_launch("block probabilities");
}

}  // namespace sw::cuda::sm80
