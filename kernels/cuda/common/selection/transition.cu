#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/scores.hpp"
#include "kernels/cuda/common/selection/transition.hpp"

namespace sw::cuda {
namespace {

constexpr int kMaxDim = 256;
constexpr int kDimStep = 64;  ///< pooled vectors are padded to a multiple

/// What becomes of a pooled vector.
struct EmitArgs {
  int head_dim;
  int dim;
  int padded_dim;
  int transform_dim;  ///< d', or 0 without a transform
  const float* signs;
  const std::int32_t* permutation;
};

struct SideArgs {
  const void* data;
  std::int64_t head_stride;
  std::int64_t token_stride;
  int heads;
  int pool;
  int count;  ///< pooled vectors of a head
  int padded_count;
  std::uint16_t* operands;
  std::int64_t plane;
  float* scale;
  float factor;  ///< of the scales: what turns a product into a logit, base 2
  float* means;  ///< null: no mean over heads follows
};

/// A warp turns x [head_dim] in its shared memory into split operands and their scale.
__device__ void emit(float* x, const EmitArgs& e, std::uint16_t* high, std::int64_t plane,
                     float* scale, float factor) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (e.transform_dim > 0) {
    for (int j = lane; j < e.transform_dim; j += 32) {
      x[j] = j < e.head_dim ? x[j] * e.signs[j] : 0.0f;
    }
    __syncwarp();
    for (int half = 1; half < e.transform_dim; half *= 2) {
      for (int t = lane; t < e.transform_dim / 2; t += 32) {
        const int at = t / half * 2 * half + t % half;
        const float a = x[at];
        const float b = x[at + half];
        x[at] = a + b;
        x[at + half] = a - b;
      }
      __syncwarp();
    }
  }
  float y[kMaxDim / 32];
  unsigned largest = 0;
#pragma unroll
  for (int i = 0; i < kMaxDim / 32; ++i) {
    const int j = lane + 32 * i;
    y[i] = 0.0f;
    if (j < e.dim) y[i] = x[e.transform_dim > 0 ? e.permutation[j] : j];
    largest = max(largest, __float_as_uint(y[i]) & 0x7fffffffu);
  }
  largest = __reduce_max_sync(0xffffffffu, largest);
  // The largest element comes to lie in [2^13, 2^14): far from both ends of f16.
  const int exponent =
      largest >= 0x7f800000u ? 13 : max(static_cast<int>(largest >> 23) - 127, -100);
  const float up = __uint_as_float(static_cast<unsigned>(127 + 13 - exponent) << 23);
#pragma unroll
  for (int i = 0; i < kMaxDim / 32; ++i) {
    const int j = lane + 32 * i;
    if (j < e.padded_dim) split<__half>(y[i] * up, high[j], high[plane + j]);
  }
  if (lane == 0)
    *scale = __uint_as_float(static_cast<unsigned>(127 + exponent - 13) << 23) * factor;
}

template <class T>
__device__ float2 to_float2(unsigned packed) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(reinterpret_cast<const __half2&>(packed));
  } else {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
  }
}

constexpr int kPoolWarps = 4;

struct PoolArgs {
  SideArgs side[2];  ///< queries, keys
  std::int64_t tokens;
  bool partial;
  EmitArgs emit;
};

/// One warp a pooled vector: the lanes that cover a token's row add up every R-th token of the
/// pool.
template <class T>
__global__ void __launch_bounds__(kPoolWarps * 32) pool_tokens(const __grid_constant__ PoolArgs p) {
  __shared__ float shared[kPoolWarps][kMaxDim];
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPoolWarps + threadIdx.x / 32;
  const std::int64_t queries = static_cast<std::int64_t>(p.side[0].heads) * p.side[0].count;
  const int which = index < queries ? 0 : 1;
  if (which == 1) index -= queries;
  const SideArgs& s = p.side[which];
  const EmitArgs& e = p.emit;
  if (index >= static_cast<std::int64_t>(s.heads) * s.count) return;
  const auto head = static_cast<int>(index / s.count);
  const auto u = static_cast<int>(index % s.count);
  const std::int64_t begin = static_cast<std::int64_t>(u) * s.pool;
  const auto present = static_cast<int>(min(static_cast<std::int64_t>(s.pool), p.tokens - begin));

  const int lanes = e.head_dim / 8;  // a row of 16-byte loads
  const int rows = 32 / lanes;
  const int first = lane / lanes;
  const int column = lane % lanes;
  const T* from =
      static_cast<const T*>(s.data) + head * s.head_stride + begin * s.token_stride + column * 8;
  const std::int64_t stride = s.token_stride;
  float sum[8] = {};
  constexpr int kInFlight = 8;
  for (int t0 = 0; t0 < present; t0 += rows * kInFlight) {
    uint4 loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int t = min(t0 + i * rows + first, present - 1);  // in range: no load waits for a test
      loaded[i] = __ldcs(reinterpret_cast<const uint4*>(from + t * stride));
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first >= rows || t0 + i * rows + first >= present) loaded[i] = uint4{0, 0, 0, 0};
      const unsigned words[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = to_float2<T>(words[w]);
        sum[2 * w] += pair.x;
        sum[2 * w + 1] += pair.y;
      }
    }
  }
  const float divisor = 1.0f / static_cast<float>(p.partial ? present : s.pool);
  float* x = shared[threadIdx.x / 32];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float total = sum[i];
    for (int r = 1; r < rows; ++r) total += __shfl_sync(0xffffffffu, sum[i], lane + r * lanes);
    if (lane < lanes) x[column * 8 + i] = total * divisor;
  }
  __syncwarp();
  const std::int64_t row = static_cast<std::int64_t>(head) * s.padded_count + u;
  if (s.means == nullptr) {
    return emit(x, e, s.operands + row * e.padded_dim, s.plane, s.scale + row, s.factor);
  }
  for (int j = lane; j < e.head_dim; j += 32) s.means[index * e.head_dim + j] = x[j];
}

/// One warp a pooled vector: its mean over heads.
__global__ void __launch_bounds__(kPoolWarps * 32)
    mean_over_heads(const __grid_constant__ PoolArgs p) {
  __shared__ float shared[kPoolWarps][kMaxDim];
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int index = static_cast<int>(blockIdx.x) * kPoolWarps + static_cast<int>(threadIdx.x / 32);
  const int queries = p.side[0].count;
  if (index >= queries + p.side[1].count) return;
  const SideArgs& s = p.side[index < queries ? 0 : 1];
  const EmitArgs& e = p.emit;
  const int u = index < queries ? index : index - queries;
  float* x = shared[threadIdx.x / 32];
  for (int j = lane; j < e.head_dim; j += 32) {
    float sum = 0.0f;
    for (int h = 0; h < s.heads; ++h) {
      sum += s.means[(static_cast<std::int64_t>(h) * s.count + u) * e.head_dim + j];
    }
    x[j] = sum / static_cast<float>(s.heads);
  }
  __syncwarp();
  emit(x, e, s.operands + static_cast<std::int64_t>(u) * e.padded_dim, s.plane, s.scale + u,
       s.factor);
}

int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

/// Head chunks that keep all multiprocessors busy at the least cost; their partial sums must fit in
/// `capacity` matrices.
int choose_head_chunks(int tiles, int heads, int sms, std::int64_t capacity) {
  int best = 1;
  double best_cost = 1e30;
  for (int chunks = 1; chunks <= heads && chunks <= capacity; ++chunks) {
    const int per_chunk = (heads + chunks - 1) / chunks;
    const double waves = (static_cast<std::int64_t>(tiles) * chunks + sms - 1) / sms;
    const double cost = waves * (per_chunk + 1.0);  // 1: filling the pipeline, and the output
    if (cost < best_cost) {
      best_cost = cost;
      best = chunks;
    }
  }
  return best;
}

constexpr int kPowerShift = 8;

}  // namespace

std::optional<std::string> Transition::unsupported(const AttentionShape& shape,
                                                   const SketchParams& params) {
  if (shape.head_dim % 8 != 0 || shape.head_dim < 8 || shape.head_dim > kMaxDim) {
    return "head_dim must be a multiple of 8, at most " + std::to_string(kMaxDim) + ", not " +
           std::to_string(shape.head_dim);
  }
  if (params.split_heads > 0.0) return "the GPU pools the queries of a block in one part";
  for (const std::int64_t pool : {params.tokens_per_query(), params.tokens_per_key()}) {
    const std::int64_t ratio = params.block / pool;
    if (params.block % pool != 0 || ratio > kTile || !std::has_single_bit(std::uint64_t(ratio))) {
      return "a block must hold a power of two of pooled vectors, at most " +
             std::to_string(kTile) + "; a pool of " + std::to_string(pool) + " in blocks of " +
             std::to_string(params.block) + " does not";
    }
  }
  return {};
}

Transition::Transition(const AttentionShape& shape, const SketchParams& params)
    : shape_(shape), params_(params) {
  if (const auto reason = unsupported(shape, params)) {
    throw Error(ErrorKind::kUnsupported, "the GPU cannot select blocks here: " + *reason,
                "use --backend cpu");
  }
  // Signs and a permutation of all d' rows change no score (section 7): no transform then.
  const Sketch sketch(params, 0, shape.head_dim);
  transformed_ = !sketch.is_full();
  params_.exact = !transformed_;
  dim_ = transformed_ ? static_cast<int>(sketch.dim()) : shape.head_dim;
  padded_dim_ = round_up(dim_, kDimStep);
  const bool mean = params.aggregation == SketchParams::Aggregation::kHeadMean;
  const auto make_side = [&](Side& side, int heads, std::int64_t pool) {
    side.input_heads = heads;
    side.heads = mean ? 1 : heads;
    side.pool = static_cast<int>(pool);
    const auto count = static_cast<std::size_t>(side.count(shape.max_tokens));
    const auto vectors = static_cast<std::size_t>(side.heads) *
                         static_cast<std::size_t>(round_up(static_cast<int>(count), kTile));
    side.plane = static_cast<std::int64_t>(vectors) * padded_dim_;
    side.operands = DeviceBuffer<std::uint16_t>(static_cast<std::size_t>(2 * side.plane));
    side.scale = DeviceBuffer<float>(vectors);
    check(cudaMemset(side.operands.data(), 0, side.operands.bytes()), "clearing of pooled vectors");
    check(cudaMemset(side.scale.data(), 0, side.scale.bytes()), "clearing of pooled vectors");
    if (mean) {
      side.means = DeviceBuffer<float>(static_cast<std::size_t>(heads) * count *
                                       static_cast<std::size_t>(shape.head_dim));
    }
  };
  make_side(queries_, shape.num_heads, params.tokens_per_query());
  make_side(keys_, shape.num_kv_heads, params.tokens_per_key());
  lse_ = DeviceBuffer<float>(queries_.scale.size());
  const std::int64_t padded =
      SplitMatrix::padded((shape.max_tokens + params.block - 1) / params.block);
  const std::int64_t filling = std::int64_t{2} * multiprocessors() * kTile * kTile;
  const std::int64_t matrices = padded <= kMaxStripBlocks ? 2 : 1;
  sums_ =
      DeviceBuffer<float>(static_cast<std::size_t>(std::max(matrices * padded * padded, filling)));
  if (transformed_) {
    std::vector<float> signs;
    std::vector<std::int32_t> permutation;
    for (int layer = 0; layer < shape.layers; ++layer) {
      const Sketch of_layer(params, layer, shape.head_dim);
      signs.insert(signs.end(), of_layer.signs().begin(), of_layer.signs().end());
      permutation.insert(permutation.end(), of_layer.permutation().begin(),
                         of_layer.permutation().end());
    }
    signs_ = DeviceBuffer<float>(std::span<const float>(signs));
    permutation_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(permutation));
  }
}

void Transition::run(const HeadsPointer& q, const HeadsPointer& k, Element element,
                     std::int64_t tokens, std::int64_t layer, SplitMatrix& out,
                     cudaStream_t stream) {
  pool(q, k, element, tokens, layer, stream);
  score(stream);
  finish(out, stream);
}

void Transition::pool(const HeadsPointer& q, const HeadsPointer& k, Element element,
                      std::int64_t tokens, std::int64_t layer, cudaStream_t stream) {
  if (tokens < 1 || tokens > shape_.max_tokens || layer < 0 || layer >= shape_.layers) {
    throw std::logic_error("selection: more tokens or layers than the workspace was made for");
  }
  for (const HeadsPointer* x : {&q, &k}) {
    if (reinterpret_cast<std::uintptr_t>(x->data) % 16 != 0 || x->head_stride % 8 != 0 ||
        x->token_stride % 8 != 0) {
      throw Error(ErrorKind::kUnsupported, "queries and keys on the GPU must be 16-byte aligned",
                  "pad the rows to a multiple of 8 elements");
    }
  }
  tokens_ = tokens;
  const Sketch sketch(params_, layer, shape_.head_dim);
  const double rank = static_cast<double>(sketch.dim());
  const auto padded = static_cast<double>(sketch.padded_dim());
  double scale = sketch.logit_scale() / params_.temperature * std::numbers::log2e;
  if (transformed_) scale *= params_.unbiased ? 1.0 / rank : rank / padded;
  EmitArgs emit_args{shape_.head_dim, dim_, padded_dim_, 0, nullptr, nullptr};
  if (transformed_) {
    emit_args.transform_dim = static_cast<int>(sketch.padded_dim());
    emit_args.signs = signs_.data() + layer * sketch.padded_dim();
    emit_args.permutation = permutation_.data() + layer * sketch.padded_dim();
  }
  const auto side_args = [&](const Side& side, const HeadsPointer& x, double factor) {
    const int count = side.count(tokens);
    return SideArgs{x.data,
                    x.head_stride,
                    x.token_stride,
                    side.input_heads,
                    side.pool,
                    count,
                    round_up(count, kTile),
                    side.operands.data(),
                    side.plane,
                    side.scale.data(),
                    static_cast<float>(factor),
                    side.means.data()};
  };
  const PoolArgs args{{side_args(queries_, q, scale), side_args(keys_, k, 1.0)},
                      tokens,
                      params_.partial_mean,
                      emit_args};
  const auto grid = [](std::int64_t warps) {
    return dim3(static_cast<unsigned>((warps + kPoolWarps - 1) / kPoolWarps));
  };
  std::int64_t warps = 0;
  for (const SideArgs& side : args.side)
    warps += static_cast<std::int64_t>(side.heads) * side.count;
  const auto launch = [&](auto kernel) {
    launch_chained("launch of pool_tokens", kernel, grid(warps), kPoolWarps * 32, 0, stream, args);
  };
  element == Element::kBf16 ? launch(pool_tokens<__nv_bfloat16>) : launch(pool_tokens<__half>);
  if (args.side[0].means == nullptr) return;
  launch_chained("launch of mean_over_heads", mean_over_heads,
                 grid(args.side[0].count + args.side[1].count), kPoolWarps * 32, 0, stream, args);
}

void Transition::score(cudaStream_t stream) {
  ScoreArgs p{};
  p.q = queries_.operands.data();
  p.k = keys_.operands.data();
  p.q_plane = queries_.plane;
  p.k_plane = keys_.plane;
  p.q_scale = queries_.scale.data();
  p.k_scale = keys_.scale.data();
  p.lse = lse_.data();
  p.sums = sums_.data();
  p.heads = queries_.heads;
  p.kv_heads = keys_.heads;
  p.queries = queries_.count(tokens_);
  p.keys = keys_.count(tokens_);
  p.padded_queries = round_up(p.queries, kTile);
  p.padded_keys = round_up(p.keys, kTile);
  p.padded_dim = padded_dim_;
  p.blocks = static_cast<int>((tokens_ + params_.block - 1) / params_.block);
  p.sum_stride = SplitMatrix::padded(p.blocks);
  p.query_shift = std::countr_zero(static_cast<unsigned>(params_.block / queries_.pool));
  p.key_shift = std::countr_zero(static_cast<unsigned>(params_.block / keys_.pool));
  p.causal = params_.causal;
  const int row_tiles = p.padded_queries / kTile;
  const int col_tiles = p.padded_keys / kTile;
  const auto capacity = static_cast<std::int64_t>(sums_.size()) / (p.blocks * p.sum_stride);
  pieces_ = {};
  if (has_warpgroups() && fits_strips(p)) {
    pieces_ = launch_score_strips(p, capacity, stream);
    return;
  }
  head_chunks_ = choose_head_chunks(row_tiles * col_tiles, p.heads, multiprocessors(), capacity);
  p.head_chunk = (p.heads + head_chunks_ - 1) / head_chunks_;
  head_chunks_ = (p.heads + p.head_chunk - 1) / p.head_chunk;
  if (has_warpgroups()) {
    launch_scores_hopper(p, head_chunks_, stream);
  } else {
    launch_scores_portable(p, head_chunks_, stream);
  }
}

void Transition::finish(SplitMatrix& out, cudaStream_t stream) {
  const auto blocks = static_cast<int>((tokens_ + params_.block - 1) / params_.block);
  out.resize(blocks);
  const auto per_block = static_cast<int>(params_.block / queries_.pool);
  const int last = queries_.count(tokens_) - (blocks - 1) * per_block;
  const double scale = std::pow(out_scale(), 1.0 / params_.sharpness);
  RowRule rule;
  rule.factor = static_cast<float>(scale / (queries_.heads * per_block));
  rule.last_factor = static_cast<float>(scale / (queries_.heads * last));
  rule.sharpness = static_cast<float>(params_.sharpness);
  rule.normalize = params_.normalize;
  finish_rows(sums_.data(), out.stride(), head_chunks_, blocks * out.stride(), pieces_, rule, out,
              stream);
}

double Transition::out_scale() const {
  return params_.normalize ? 1.0 : std::pow(std::exp2(kPowerShift), params_.sharpness - 1.0);
}

KernelCost Transition::pool_cost(std::int64_t tokens) const {
  const double elements =
      static_cast<double>(tokens) * shape_.head_dim * (shape_.num_heads + shape_.num_kv_heads);
  return {elements, 2.0 * elements};
}

KernelCost Transition::score_cost(std::int64_t tokens) const {
  const double queries = queries_.count(tokens);
  const double keys = keys_.count(tokens);
  const double pairs = queries * keys * (params_.causal ? 0.5 : 1.0);
  const double blocks = static_cast<double>((tokens + params_.block - 1) / params_.block);
  return {2.0 * pairs * queries_.heads * dim_,
          4.0 * dim_ * (queries * queries_.heads + keys * keys_.heads) + 4.0 * blocks * blocks};
}

}  // namespace sw::cuda
