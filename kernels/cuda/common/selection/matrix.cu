#include <algorithm>
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
  StripPieces pieces;
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
  extern __shared__ float4 row_values[];
  wait_for_previous();
  const int i = static_cast<int>(blockIdx.x);
  const std::int64_t begin = i * p.stride;
  const auto quads = static_cast<int>(p.stride / 4);
  if (i >= p.blocks) {  // a padding row of the operands
    for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
      *reinterpret_cast<ushort4*>(p.high + begin + quad * 4) = ushort4{};
      *reinterpret_cast<ushort4*>(p.low + begin + quad * 4) = ushort4{};
    }
    return;
  }
  const int chunks = p.pieces.heads > 0 ? p.pieces.count(i / kStripRows) : p.chunks;
  const float factor = i + 1 == p.blocks ? p.rule.last_factor : p.rule.factor;
  const int visible = p.rule.causal ? i + 1 : p.blocks;
  // Threads beyond a short row take some of its chunks.
  const int groups = max(1, min(kThreads / quads, chunks));
  const auto add_chunks = [&](float(&x)[4], int quad, int first, int step) {
#pragma unroll 8  // that many loads under way
    for (int c = first; c < chunks; c += step) {
      const float4 more =
          *reinterpret_cast<const float4*>(p.in + c * p.chunk_stride + i * p.in_stride + quad * 4);
      x[0] += more.x, x[1] += more.y, x[2] += more.z, x[3] += more.w;
    }
  };
  if (groups > 1) {
    const int quad = static_cast<int>(threadIdx.x) % quads;
    const int group = static_cast<int>(threadIdx.x) / quads;
    if (group < groups) {
      float x[4] = {};
      if (quad * 4 < visible) add_chunks(x, quad, group, groups);
      row_values[threadIdx.x] = float4{x[0], x[1], x[2], x[3]};
    }
    __syncthreads();
  }
  float largest = 0.0f;
  float sum = 0.0f;
  for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
    float x[4] = {};
    if (groups > 1) {
      for (int group = 0; group < groups; ++group) {
        const float4 more = row_values[group * quads + quad];
        x[0] += more.x, x[1] += more.y, x[2] += more.z, x[3] += more.w;
      }
    } else if (quad * 4 < visible) {
      add_chunks(x, quad, 0, 1);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[e] = quad * 4 + e < visible ? x[e] * factor : 0.0f;
      largest = fmaxf(largest, x[e]);
      sum += x[e];
    }
    row_values[quad] = float4{x[0], x[1], x[2], x[3]};
  }
  if (p.rule.sharpness != 1.0f) {
    // A row that is divided by its sum may be scaled by anything first: powers stay in range.
    float scale = 1.0f;
    if (p.rule.normalize) {
      largest = reduce_block(largest, 0.0f, [](float a, float b) { return fmaxf(a, b); });
      if (largest > 0.0f) scale = 1.0f / largest;
    }
    sum = 0.0f;
    for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
      float4 x = row_values[quad];
      x = float4{power(x.x * scale, p.rule.sharpness), power(x.y * scale, p.rule.sharpness),
                 power(x.z * scale, p.rule.sharpness), power(x.w * scale, p.rule.sharpness)};
      row_values[quad] = x;
      sum += (x.x + x.y) + (x.z + x.w);
    }
  }
  float scale = 1.0f;
  if (p.rule.normalize) {
    sum = reduce_block(sum, 0.0f, [](float a, float b) { return a + b; });
    if (sum != 0.0f) scale = 1.0f / sum;  // a sum that is not a number reaches every element
  }
  for (int quad = threadIdx.x; quad < quads; quad += kThreads) {
    float4 x = row_values[quad];
    x = float4{x.x * scale, x.y * scale, x.z * scale, x.w * scale};
    *reinterpret_cast<float4*>(p.values + begin + quad * 4) = x;
    ushort4 high;
    ushort4 low;
    split<T>(x.x * kSplitScale<T>, high.x, low.x);
    split<T>(x.y * kSplitScale<T>, high.y, low.y);
    split<T>(x.z * kSplitScale<T>, high.z, low.z);
    split<T>(x.w * kSplitScale<T>, high.w, low.w);
    *reinterpret_cast<ushort4*>(p.high + begin + quad * 4) = high;
    *reinterpret_cast<ushort4*>(p.low + begin + quad * 4) = low;
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
                 const StripPieces& pieces, const RowRule& rule, const SplitMatrix& out,
                 cudaStream_t stream) {
  const FinishArgs args{in,           in_stride,    chunks,       chunk_stride, pieces,   rule,
                        out.blocks(), out.stride(), out.values(), out.high(),   out.low()};
  const auto shared =
      std::max(static_cast<std::size_t>(out.stride()) * sizeof(float), kThreads * sizeof(float4));
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
