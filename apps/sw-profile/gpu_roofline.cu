#include <cublas_v2.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "eval/statistics.hpp"
#include "gpu_roofline.hpp"

namespace sw {
namespace {

constexpr std::int64_t kComposedRows = 1024;

void check_cublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorKind::kResource,
              std::string("cuBLAS failed at the ") + what + ": " + cublasGetStatusString(status),
              "check that the CUDA libraries belong to the driver");
}

/// Row i of `scores` [rows, stride] holds the logits of the query at position first + i; keys after
/// it are masked. Writes the softmax as bf16.
__global__ void softmax_rows(const float* scores, __nv_bfloat16* weights, std::int64_t stride,
                             std::int64_t keys, std::int64_t first, float scale) {
  __shared__ float partial[32];
  const std::int64_t row = blockIdx.x;
  const float* s = scores + row * stride;
  __nv_bfloat16* w = weights + row * stride;
  const std::int64_t visible = min(first + row + 1, keys);
  const auto reduce = [&](float value, auto combine) {
    for (int offset = 16; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(~0u, value, offset));
    }
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[threadIdx.x % (blockDim.x / 32)];
    for (int offset = 16; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(~0u, value, offset));
    }
    __syncthreads();
    return value;
  };
  float largest = -INFINITY;
  for (std::int64_t j = threadIdx.x; j < visible; j += blockDim.x) largest = fmaxf(largest, s[j]);
  largest = reduce(largest, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0.0f;
  for (std::int64_t j = threadIdx.x; j < visible; j += blockDim.x) {
    sum += __expf(scale * (s[j] - largest));
  }
  // Every warp adds the same partial sums: blockDim.x / 32 of them, repeated over its lanes.
  sum = reduce(sum, [](float a, float b) { return a + b; }) /
        static_cast<float>(32 / (blockDim.x / 32));
  for (std::int64_t j = threadIdx.x; j < keys; j += blockDim.x) {
    w[j] = __float2bfloat16(j < visible ? __expf(scale * (s[j] - largest)) / sum : 0.0f);
  }
}

constexpr int kStreamThreads = 512;
constexpr int kStreamBlocks = 132 * 8;

__global__ void read_kernel(const uint4* data, std::size_t count, uint4* never) {
  uint4 sum = {0, 0, 0, 0};
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < count; i += step) {
    const uint4 x = data[i];
    sum.x ^= x.x;
    sum.y ^= x.y;
    sum.z ^= x.z;
    sum.w ^= x.w;
  }
  // The compiler may not drop the loads, and `never` is null.
  if (never != nullptr) *never = sum;
}

__global__ void copy_kernel(const uint4* __restrict__ from, uint4* __restrict__ to,
                            std::size_t count) {
  constexpr int kUnroll = 4;
  const std::size_t step = std::size_t{gridDim.x} * blockDim.x;
  std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x;
  for (; i + (kUnroll - 1) * step < count; i += kUnroll * step) {
    uint4 x[kUnroll];
    for (int u = 0; u < kUnroll; ++u) x[u] = __ldcs(from + i + u * step);
    for (int u = 0; u < kUnroll; ++u) __stcs(to + i + u * step, x[u]);
  }
  for (; i < count; i += step) __stcs(to + i, __ldcs(from + i));
}

}  // namespace

void read_memory(const void* data, std::size_t bytes, cudaStream_t stream) {
  read_kernel<<<kStreamBlocks, kStreamThreads, 0, stream>>>(static_cast<const uint4*>(data),
                                                            bytes / sizeof(uint4), nullptr);
  cuda::check_launch("read_kernel");
}

Roofline measure_gpu_roofline(GpuTimer& timer) {
  Roofline roofline;
  constexpr int kRuns = 7;
  const auto median_of = [&](const GpuTimer::Work& work, const char* what) {
    std::vector<double> seconds;
    for (int i = 0; i < kRuns; ++i) seconds.push_back(work.seconds(what));
    return median(seconds);
  };
  {
    constexpr int kSize = 8192;
    std::vector<__nv_bfloat16> host(std::size_t{kSize} * kSize);
    SplitMix64 rng(3);
    for (auto& x : host) x = __float2bfloat16(static_cast<float>(rng.uniform() - 0.5));
    const cuda::DeviceBuffer<__nv_bfloat16> a{std::span<const __nv_bfloat16>(host)};
    std::rotate(host.begin(), host.begin() + 12345, host.end());
    const cuda::DeviceBuffer<__nv_bfloat16> b{std::span<const __nv_bfloat16>(host)};
    const cuda::DeviceBuffer<__nv_bfloat16> c(host.size());
    const cuda::DeviceBuffer<unsigned char> workspace(std::size_t{64} << 20);
    cublasHandle_t handle = nullptr;
    check_cublas(cublasCreate(&handle), "creation of a handle");
    check_cublas(cublasSetWorkspace(handle, workspace.data(), workspace.bytes()), "workspace");
    {
      const GpuTimer::Work product = timer.capture([&](cudaStream_t stream) {
        const float one = 1.0f;
        const float zero = 0.0f;
        check_cublas(cublasSetStream(handle, stream), "choice of a stream");
        check_cublas(cublasSetWorkspace(handle, workspace.data(), workspace.bytes()), "workspace");
        check_cublas(
            cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kSize, kSize, kSize, &one, a.data(),
                         CUDA_R_16BF, kSize, b.data(), CUDA_R_16BF, kSize, &zero, c.data(),
                         CUDA_R_16BF, kSize, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            "matrix product");
      });
      roofline.flops_per_second =
          2.0 * kSize * kSize * kSize / median_of(product, "matrix product");
    }
    cublasDestroy(handle);
    roofline.product = "cuBLAS bf16 8192^3";
  }
  {
    constexpr std::size_t kBytes = std::size_t{1} << 30;
    const cuda::DeviceBuffer<unsigned char> from(kBytes);
    const cuda::DeviceBuffer<unsigned char> to(kBytes);
    cuda::check(cudaMemset(from.data(), 5, kBytes), "memset");
    const GpuTimer::Work copy = timer.capture([&](cudaStream_t stream) {
      copy_kernel<<<kStreamBlocks, kStreamThreads, 0, stream>>>(
          reinterpret_cast<const uint4*>(from.data()), reinterpret_cast<uint4*>(to.data()),
          kBytes / sizeof(uint4));
      cuda::check_launch("copy_kernel");
    });
    roofline.bytes_per_second = 2.0 * kBytes / median_of(copy, "copy");
    roofline.copy = "copy of 1 GiB, read and written";
  }
  return roofline;
}

ComposedAttention::ComposedAttention(int heads, int kv_heads, int dim, std::int64_t tokens)
    : heads_(heads),
      kv_heads_(kv_heads),
      dim_(dim),
      tokens_(tokens),
      scores_(static_cast<std::size_t>(kComposedRows * tokens)),
      weights_(static_cast<std::size_t>(kComposedRows * tokens)),
      workspace_(std::size_t{64} << 20) {
  cublasHandle_t handle = nullptr;
  check_cublas(cublasCreate(&handle), "creation of a handle");
  handle_ = handle;
}

ComposedAttention::~ComposedAttention() { cublasDestroy(static_cast<cublasHandle_t>(handle_)); }

void ComposedAttention::launch(const void* q, const void* k, const void* v, void* out,
                               cudaStream_t stream) {
  const auto handle = static_cast<cublasHandle_t>(handle_);
  check_cublas(cublasSetStream(handle, stream), "choice of a stream");
  check_cublas(cublasSetWorkspace(handle, workspace_.data(), workspace_.bytes()), "workspace");
  const float one = 1.0f;
  const float zero = 0.0f;
  const auto* queries = static_cast<const __nv_bfloat16*>(q);
  const auto* keys = static_cast<const __nv_bfloat16*>(k);
  const auto* values = static_cast<const __nv_bfloat16*>(v);
  auto* result = static_cast<__nv_bfloat16*>(out);
  auto* weights = reinterpret_cast<__nv_bfloat16*>(weights_.data());
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim_));
  for (int h = 0; h < heads_; ++h) {
    const std::int64_t kv = h / (heads_ / kv_heads_) * tokens_ * dim_;
    for (std::int64_t first = 0; first < tokens_; first += kComposedRows) {
      const auto rows = static_cast<int>(std::min(kComposedRows, tokens_ - first));
      const auto visible = static_cast<int>(first + rows);
      const std::int64_t at = (h * tokens_ + first) * dim_;
      const auto stride = static_cast<int>(tokens_);
      // cuBLAS is column-major: scores^T [keys, rows] = K Q^T.
      check_cublas(
          cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, visible, rows, dim_, &one, keys + kv,
                       CUDA_R_16BF, dim_, queries + at, CUDA_R_16BF, dim_, &zero, scores_.data(),
                       CUDA_R_32F, stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "product of queries and keys");
      softmax_rows<<<rows, 512, 0, stream>>>(scores_.data(), weights, stride, visible, first,
                                             scale);
      cuda::check_launch("softmax_rows");
      check_cublas(
          cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, dim_, rows, visible, &one, values + kv,
                       CUDA_R_16BF, dim_, weights, CUDA_R_16BF, stride, &zero, result + at,
                       CUDA_R_16BF, dim_, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "product of weights and values");
    }
  }
}

}  // namespace sw
