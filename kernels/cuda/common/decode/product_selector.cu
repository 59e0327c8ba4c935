#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/common/decode/launch.hpp"
#include "kernels/cuda/common/decode/product_selector.hpp"
#include "kernels/cuda/common/decode/ptx.cuh"
#include "kernels/cuda/common/decode/rank.cuh"
#include "kernels/cuda/common/decode/selector_host.hpp"
#include "kernels/cuda/common/decode/sketch.cuh"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kColumns = 16;  ///< of the logits that a thread block multiplies: half a line a row
constexpr unsigned kAll = 0xffffffffu;

struct Arguments {
  KvCache cache;
  const void* q;
  DecodeBudget budget;
  int num_heads;
  int capacity;  ///< blocks, a multiple of 64
  int rank;      ///< stored length of a transformed vector, zeros past r
  bool partial_mean;
  float sharpness;
  float logit_scale_log2;
  DeviceSketch sketch;
  float* sums;
  float* queries;
  float* keys;
  float* logits;
  float* row_log;
  double* walk;
  const double* below;  ///< `scores` of the layer below, or null
  double* scores;
  std::int32_t* blocks;
  std::int32_t* counts;
  std::int32_t* faults;
};

struct Step {
  int sequence;
  int tokens;   ///< n
  int blocks;   ///< b
  int current;  ///< c
};

__device__ inline Step make_step(const Arguments& a, int sequence) {
  Step s;
  s.sequence = sequence;
  s.tokens = a.cache.lengths[sequence];
  s.blocks = (s.tokens + a.cache.block - 1) / a.cache.block;
  s.current = s.blocks - 1;
  return s;
}

/// Where the arrays of a sequence begin.
struct State {
  float* queries;
  float* keys;
  float* logits;
  float* row_log;

  __device__ State(const Arguments& a, int sequence) {
    const std::int64_t first = static_cast<std::int64_t>(sequence) * a.capacity;
    queries = a.queries + first * a.rank;
    keys = a.keys + first * a.rank;
    logits = a.logits + first * a.capacity;
    row_log = a.row_log + first;
  }
};

/// Sum of block c of the sequence's queries (which = 0) or keys (1), averaged over heads, in the
/// step of context length `tokens`.
__device__ inline float* block_sum(const Arguments& a, int tokens, int which, int sequence,
                                   int dim) {
  return a.sums +
         (static_cast<std::int64_t>((tokens & 1) * 2 + which) * a.cache.batch + sequence) * dim;
}

/// What a block's sum is divided by to be its mean.
__device__ inline float mean_divisor(const Arguments& a, const Step& s, int block) {
  return static_cast<float>(a.partial_mean ? min(a.cache.block, s.tokens - block * a.cache.block)
                                           : a.cache.block);
}

__device__ inline float dot(const float* x, const float* y, int count) {
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < count; i += 32) sum += x[i] * y[i];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(kAll, sum, mask);
  return sum;
}

/// Running log2 of a sum of powers of 2.
struct LogSum {
  float largest = -INFINITY;
  float sum = 0.0f;

  __device__ void add(float x) {
    const float top = fmaxf(largest, x);
    sum = top == -INFINITY ? 0.0f : sum * exp2f(largest - top) + exp2f(x - top);
    largest = top;
  }
  __device__ void add(const LogSum& other) {
    const float top = fmaxf(largest, other.largest);
    if (top != -INFINITY) {
      sum = sum * exp2f(largest - top) + other.sum * exp2f(other.largest - top);
    }
    largest = top;
  }
  __device__ void add_lanes() {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      LogSum other;
      other.largest = __shfl_xor_sync(kAll, largest, mask);
      other.sum = __shfl_xor_sync(kAll, sum, mask);
      add(other);
    }
  }
  __device__ float value() const { return largest + log2f(sum); }
};

/// Takes the new token into block c, and renews row and column c of the logits and the sums of the
/// rows but for row c, which no warp sees whole. A warp takes a row at a time.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    update_logits_kernel(const __grid_constant__ Arguments a) {
  constexpr int kEach = kDim / 32;
  __shared__ float fresh[2][kDim];  // of block c: query and key
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const Step s = make_step(a, static_cast<int>(blockIdx.y));
  const State state(a, s.sequence);
  if (warp < 2) {  // 0: the query, 1: the key
    const bool is_key = warp == 1;
    const int heads = is_key ? a.cache.kv_heads : a.num_heads;
    const int within = s.tokens - 1 - s.current * a.cache.block;
    const T* from =
        static_cast<const T*>(a.q) + static_cast<std::int64_t>(s.sequence) * a.num_heads * kDim;
    std::int64_t stride = kDim;
    if (is_key) {
      stride = a.cache.head_stride;
      from =
          static_cast<const T*>(a.cache.k) + within * a.cache.token_stride +
          (a.cache.pages != nullptr
               ? a.cache.pages[s.sequence * a.cache.pages_stride + s.current] * a.cache.page_stride
               : s.sequence * a.cache.sequence_stride +
                     static_cast<std::int64_t>(s.current) * a.cache.block * a.cache.token_stride);
    }
    const float* before = block_sum(a, s.tokens - 1, warp, s.sequence, kDim);
    float* after = block_sum(a, s.tokens, warp, s.sequence, kDim);
    float x[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      float sum = 0.0f;
      for (int h = 0; h < heads; ++h) sum += widen(from[h * stride + e * 32 + lane]);
      sum /= static_cast<float>(heads);
      if (within > 0) sum += before[e * 32 + lane];
      if (blockIdx.x == 0) after[e * 32 + lane] = sum;
      x[e] = sum / mean_divisor(a, s, s.current);
    }
    transform<kDim>(a.sketch, x, fresh[warp]);
    float* kept =
        (is_key ? state.keys : state.queries) + static_cast<std::int64_t>(s.current) * a.rank;
    for (int i = lane; blockIdx.x == 0 && i < a.rank; i += 32) {
      kept[i] = i < kDim ? fresh[warp][i] : 0.0f;
    }
  }
  __syncthreads();
  const int length = min(a.rank, kDim);
  float* current = state.logits + static_cast<std::int64_t>(s.current) * a.capacity;
  for (int i = static_cast<int>(blockIdx.x) * kWarps + warp; i < s.blocks;
       i += static_cast<int>(gridDim.x) * kWarps) {
    const std::int64_t vector = static_cast<std::int64_t>(i) * a.rank;
    const float* key = i == s.current ? fresh[1] : state.keys + vector;
    const float in_row = a.logit_scale_log2 * dot(fresh[0], key, length);
    if (lane == 0) current[i] = in_row;
    if (i == s.current) continue;
    const float in_column = a.logit_scale_log2 * dot(state.queries + vector, fresh[1], length);
    float* row = state.logits + static_cast<std::int64_t>(i) * a.capacity;
    LogSum sum;
    for (int j = lane; j < s.blocks; j += 32) sum.add(j == s.current ? in_column : row[j]);
    sum.add_lanes();
    if (lane == 0) {
      row[s.current] = in_column;
      state.row_log[i] = sum.value();
    }
  }
}

/// 2^y; below -1000 it stays there, so that products keep their place in the range of a double.
__device__ inline double power_of_two(float y) {
  const float whole = rintf(fmaxf(y, -1000.0f));
  return scalbn(static_cast<double>(exp2f(y - whole)), static_cast<int>(whole));
}

/// kColumns columns of R = R_below W but for a factor: sums of 2^(sharpness logit + weight of the
/// row), the weights counted from the largest.
__global__ void __launch_bounds__(kThreads) walk_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ double weights[];  // [b] log2 of R_below, less the row's sum
  __shared__ double scratch[kThreads / 4][kColumns];
  __shared__ LogSum warp_sums[kWarps];
  __shared__ double warp_largest[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const Step s = make_step(a, static_cast<int>(blockIdx.y));
  const int first = static_cast<int>(blockIdx.x) * kColumns;
  if (first >= s.blocks) return;
  const State state(a, s.sequence);
  const float* current = state.logits + static_cast<std::int64_t>(s.current) * a.capacity;
  LogSum sum;
  for (int j = threadIdx.x; j < s.blocks; j += kThreads) sum.add(current[j]);
  sum.add_lanes();
  if (lane == 0) warp_sums[warp] = sum;
  __syncthreads();
  sum = warp_sums[0];
  for (int w = 1; w < kWarps; ++w) sum.add(warp_sums[w]);

  const double* below =
      a.below == nullptr ? nullptr : a.below + static_cast<std::int64_t>(s.sequence) * a.capacity;
  double largest = -INFINITY;
  for (int i = threadIdx.x; i < s.blocks; i += kThreads) {
    const double row_log = i == s.current ? sum.value() : state.row_log[i];
    double weight = -INFINITY;  // at the first sparse layer R is row c of W
    if (below != nullptr) {
      weight = log2(below[i]) - static_cast<double>(a.sharpness) * row_log;
    } else if (i == s.current) {
      weight = -static_cast<double>(a.sharpness) * row_log;
    }
    weights[i] = weight;
    // The largest term of a row is at most its weight, as a logit is at most the row's sum.
    largest = fmax(largest, weight + static_cast<double>(a.sharpness) * row_log);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    largest = fmax(largest, __shfl_xor_sync(kAll, largest, mask));
  }
  if (lane == 0) warp_largest[warp] = largest;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) largest = fmax(largest, warp_largest[w]);

  // Four neighbouring columns a thread, every 64th row.
  const int column = first + static_cast<int>(threadIdx.x) % 4 * 4;
  double total[4] = {};
#pragma unroll 2
  for (int i = threadIdx.x / 4; i < s.blocks; i += kThreads / 4) {
    const double weight = weights[i] - largest;
    if (weight == -INFINITY) continue;
    const float4 row = *reinterpret_cast<const float4*>(
        state.logits + static_cast<std::int64_t>(i) * a.capacity + column);
    const float logits[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      total[e] +=
          power_of_two(static_cast<float>(static_cast<double>(a.sharpness) * logits[e] + weight));
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) scratch[threadIdx.x / 4][threadIdx.x % 4 * 4 + e] = total[e];
  __syncthreads();
  if (threadIdx.x < kColumns && first + static_cast<int>(threadIdx.x) < s.blocks) {
    double score = 0.0;
    for (int part = 0; part < kThreads / 4; ++part) score += scratch[part][threadIdx.x];
    a.walk[static_cast<std::int64_t>(s.sequence) * a.capacity + first + threadIdx.x] = score;
  }
}

/// Scales R to the sum 1 and writes a thread block's share of the list.
__global__ void __launch_bounds__(kThreads) choose_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) double shared[];
  __shared__ double warp_totals[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const Step s = make_step(a, static_cast<int>(blockIdx.y));
  const std::int64_t base = static_cast<std::int64_t>(s.sequence) * a.capacity;
  double* scores = shared;
  double* free_scores = shared + a.capacity;
  double total = 0.0;
  for (int j = threadIdx.x; j < s.blocks; j += kThreads) {
    double score = a.walk[base + j];
    if (!(score < INFINITY)) {
      score = 0.0;
      a.faults[s.sequence] = 1;
    }
    scores[j] = score;
    total += score;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(kAll, total, mask);
  if (lane == 0) warp_totals[warp] = total;
  __syncthreads();
  total = 0.0;
  for (int w = 0; w < kWarps; ++w) total += warp_totals[w];
  const DecodePlan plan = decode_plan(a.budget, s.tokens, a.cache.block);
  const int padded = (s.blocks + 3) / 4 * 4;
  const int each = (s.blocks + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = min(static_cast<int>(blockIdx.x) * each, s.blocks);
  const int end = min(begin + each, s.blocks);
  for (int j = threadIdx.x; j < padded; j += kThreads) {
    double score = -INFINITY;
    if (j < s.blocks) {
      score = scores[j] = total > 0.0 ? scores[j] / total : 0.0;
      if (j >= begin && j < end) a.scores[base + j] = score;
      if (!competes(plan, s.blocks, j)) score = -INFINITY;
    }
    free_scores[j] = score;
  }
  __syncthreads();
  rank_blocks(plan, s.blocks, begin, end, kWarps, scores, free_scores,
              [&](int place, int entry) { a.blocks[base + place] = entry; });
  if (blockIdx.x > 0) return;
  int above = max(plan.scored, 0);
  if (plan.scored < 0) {
    // Of the blocks that compete as many as have enough of the others below them; a thread each.
    for (int j = threadIdx.x; j < s.blocks; j += kThreads) {
      int less = 0;
      if (!competes(plan, s.blocks, j)) continue;
      for (int i = plan.between_begin; i < plan.between_end; ++i) less += scores[i] < scores[j];
      above += less > plan.quantile_low;
    }
  }
  __shared__ int warp_above[kWarps];
  if (plan.scored < 0) {
    above = __reduce_add_sync(kAll, above);
    if (lane == 0) warp_above[warp] = above;
    __syncthreads();
    above = 0;
    for (int w = 0; w < kWarps; ++w) above += warp_above[w];
  }
  if (threadIdx.x == 0) a.counts[s.sequence] = listed_always(plan) + above;
}

/// One warp for each block: head means of its queries (which = 0) and keys (1), transformed.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    load_means_kernel(const __grid_constant__ Arguments a, const float* query_sums,
                      const float* key_sums, int blocks) {
  __shared__ float buffers[kWarps][kDim];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int i = static_cast<int>(blockIdx.x) * kWarps + warp;
  const auto which = static_cast<int>(blockIdx.z);
  const Step s = make_step(a, static_cast<int>(blockIdx.y));
  if (i >= s.blocks) return;
  const int heads = which == 0 ? a.num_heads : a.cache.kv_heads;
  const float* from = (which == 0 ? query_sums : key_sums) +
                      (static_cast<std::int64_t>(s.sequence) * heads * blocks + i) * kDim;
  float x[kDim / 32];
#pragma unroll
  for (int e = 0; e < kDim / 32; ++e) {
    float sum = 0.0f;
    for (int h = 0; h < heads; ++h) {
      sum += from[static_cast<std::int64_t>(h) * blocks * kDim + e * 32 + lane];
    }
    sum /= static_cast<float>(heads);
    if (i == s.current) block_sum(a, s.tokens, which, s.sequence, kDim)[e * 32 + lane] = sum;
    x[e] = sum / mean_divisor(a, s, i);
  }
  transform<kDim>(a.sketch, x, buffers[warp]);
  const State state(a, s.sequence);
  float* to = (which == 0 ? state.queries : state.keys) + static_cast<std::int64_t>(i) * a.rank;
  for (int k = lane; k < a.rank; k += 32) to[k] = k < kDim ? buffers[warp][k] : 0.0f;
}

/// One thread for each logit.
__global__ void __launch_bounds__(kThreads)
    load_logits_kernel(const __grid_constant__ Arguments a) {
  const Step s = make_step(a, static_cast<int>(blockIdx.z));
  const State state(a, s.sequence);
  const int i = static_cast<int>(blockIdx.y) * 16 + static_cast<int>(threadIdx.x) / 16;
  const int j = static_cast<int>(blockIdx.x) * 16 + static_cast<int>(threadIdx.x) % 16;
  if (i >= s.blocks || j >= s.blocks) return;
  const float* query = state.queries + static_cast<std::int64_t>(i) * a.rank;
  const float* key = state.keys + static_cast<std::int64_t>(j) * a.rank;
  float sum = 0.0f;
  for (int k = 0; k < a.rank; ++k) sum += query[k] * key[k];
  state.logits[static_cast<std::int64_t>(i) * a.capacity + j] = a.logit_scale_log2 * sum;
}

}  // namespace

struct ProductSelector::Launch {
  static Arguments arguments(const ProductSelector& s, const KvCache& cache, const void* q) {
    Arguments a{};
    a.cache = cache;
    a.q = q;
    a.budget = s.shape_.budget;
    a.num_heads = s.shape_.num_heads;
    a.capacity = s.shape_.capacity;
    a.rank = s.rank_;
    a.partial_mean = s.partial_mean_;
    a.sharpness = s.sharpness_;
    a.logit_scale_log2 = s.logit_scale_log2_;
    a.sketch = {s.signs_.data(), s.permutation_.data(), s.dim_used_, s.exact_};
    a.sums = s.sums_.data();
    a.queries = s.queries_.data();
    a.keys = s.keys_.data();
    a.logits = s.logits_.data();
    a.row_log = s.row_log_.data();
    a.walk = s.walk_.data();
    a.scores = s.scores_.data();
    a.blocks = s.blocks_.data();
    a.counts = s.counts_.data();
    a.faults = s.faults_.data();
    return a;
  }
};

ProductSelector::ProductSelector(const KvCache& cache, const ProductSelectorShape& shape,
                                 const SketchParams& params, std::int64_t layer)
    : shape_(shape), batch_(cache.batch) {
  const int d = cache.head_dim;
  if (params.aggregation != SketchParams::Aggregation::kHeadMean) {
    refuse_selection("walk=product with aggregation=per_head");
  }
  if (params.causal) refuse_selection("causal_sketch with walk=product");
  if (params.normalize) refuse_selection("normalize_walk with walk=product");
  if (params.tokens_per_query() != params.block || params.tokens_per_key() != params.block) {
    refuse_selection("query_pool and key_pool below the block size");
  }
  if (d != 64 && d != 128 && d != 256) refuse_selection("head_dim " + std::to_string(d));
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 8) {
    refuse_selection("a GPU below compute capability 8.0");
  }
  const Sketch sketch(params, layer, d);
  exact_ = params.exact;
  partial_mean_ = params.partial_mean;
  sharpness_ = static_cast<float>(params.sharpness);
  dim_used_ = static_cast<int>(sketch.dim());
  rank_ = (dim_used_ + 31) / 32 * 32;
  logit_scale_log2_ = sketch_scale_log2(sketch, params, d);
  shape_.capacity = (shape.capacity + 63) / 64 * 64;
  const int shared_bytes = 2 * 8 * shape_.capacity;
  constexpr int kStaticBytes = 12 * 1024;
  if (shared_bytes > device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticBytes) {
    refuse_selection("contexts of " + std::to_string(shape.capacity) +
                     " blocks: their scores are held in shared memory");
  }
  thread_blocks_ = std::max(1, 2 * device_attribute(cudaDevAttrMultiProcessorCount) / batch_);

  const std::vector<float> signs(sketch.signs().begin(), sketch.signs().end());
  const std::vector<std::int32_t> permutation(sketch.permutation().begin(),
                                              sketch.permutation().end());
  signs_ = DeviceBuffer<float>(std::span<const float>(signs));
  permutation_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(permutation));
  const auto batch = static_cast<std::size_t>(batch_);
  const auto capacity = static_cast<std::size_t>(shape_.capacity);
  sums_ = zeros<float>(4 * batch * static_cast<std::size_t>(d));
  queries_ = zeros<float>(batch * capacity * static_cast<std::size_t>(rank_));
  keys_ = zeros<float>(batch * capacity * static_cast<std::size_t>(rank_));
  logits_ = zeros<float>(batch * capacity * capacity);
  row_log_ = zeros<float>(batch * capacity);
  walk_ = zeros<double>(batch * capacity);
  scores_ = zeros<double>(batch * capacity);
  blocks_ = zeros<std::int32_t>(batch * capacity);
  counts_ = zeros<std::int32_t>(batch);
  faults_ = zeros<std::int32_t>(batch);
  allow_shared_memory(walk_kernel, 8 * shape_.capacity);
  allow_shared_memory(choose_kernel, shared_bytes);
}

void ProductSelector::load(const KvCache& cache, const ProductInitialState& state,
                           cudaStream_t stream) {
  const Arguments a = Launch::arguments(*this, cache, nullptr);
  const auto batch = static_cast<unsigned>(batch_);
  const auto parts = [&](int part) {
    return static_cast<unsigned>((state.blocks + part - 1) / part);
  };
  visit_dim(cache.head_dim, [&]<int kDim>() {
    load_means_kernel<kDim><<<dim3(parts(kWarps), batch, 2), kThreads, 0, stream>>>(
        a, state.query_sums, state.key_sums, state.blocks);
    check_launch("load_means_kernel");
  });
  load_logits_kernel<<<dim3(parts(16), parts(16), batch), kThreads, 0, stream>>>(a);
  check_launch("load_logits_kernel");
}

void ProductSelector::run(const KvCache& cache, const void* q, const ProductSelector* below,
                          cudaStream_t stream) {
  Arguments a = Launch::arguments(*this, cache, q);
  a.below = below == nullptr ? nullptr : below->scores_.data();
  const auto batch = static_cast<unsigned>(batch_);
  const dim3 grid(static_cast<unsigned>(thread_blocks_), batch);
  visit_element(cache.element, [&]<class T>() {
    visit_dim(cache.head_dim, [&]<int kDim>() {
      update_logits_kernel<T, kDim><<<grid, kThreads, 0, stream>>>(a);
      check_launch("update_logits_kernel");
    });
  });
  const auto columns = static_cast<unsigned>(shape_.capacity / kColumns);
  const auto row_bytes = static_cast<std::size_t>(8 * shape_.capacity);
  walk_kernel<<<dim3(columns, batch), kThreads, row_bytes, stream>>>(a);
  check_launch("walk_kernel");
  choose_kernel<<<grid, kThreads, 2 * row_bytes, stream>>>(a);
  check_launch("choose_kernel");
}

DecodeList ProductSelector::list() const {
  return {blocks_.data(), counts_.data(), 1, shape_.capacity};
}

std::size_t ProductSelector::bytes() const {
  return sums_.bytes() + queries_.bytes() + keys_.bytes() + logits_.bytes() + row_log_.bytes() +
         walk_.bytes() + scores_.bytes() + blocks_.bytes();
}

}  // namespace sw::cuda
