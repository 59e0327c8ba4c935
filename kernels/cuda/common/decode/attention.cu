#include <cmath>
#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/decode/attention.hpp"
#include "kernels/cuda/common/decode/plan.cuh"
#include "kernels/cuda/common/decode/ptx.cuh"
#include "kernels/cuda/common/decode/shared_memory.hpp"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 64;   ///< tokens of a tile: 16 for each warp
constexpr int kSlice = 16;  ///< tokens of one warp
constexpr float kLn2 = 0.6931471805599453f;

struct Arguments {
  KvCache cache;
  const void* q;
  void* out;
  float* lse;
  DecodeBlocks blocks;
  int units;       ///< work units of a sequence: KV heads, or query heads with a list of their own
  int rows;        ///< query heads of a unit
  int kv_divisor;  ///< units of a KV head
  float scale_log2;
  float* partial;
  float2* partial_ml;
  float* carry;
  float2* carry_ml;
  unsigned* arrivals;
};

/// Shared-memory rings: each warp has its own, with one slice of K and one of V a stage.
template <int kDim>
struct Ring {
  static constexpr int kStages = kDim == 64 ? 4 : 3;
  static constexpr int kSliceElements = kSlice * kDim;
  static constexpr int kElements = kWarps * kStages * 2 * kSliceElements;
  static constexpr int kBytes = 2 * kElements;
  static constexpr int kBlocksPerMultiprocessor = kDim == 256 ? 1 : 2;
  /// Registers are held down to three blocks' share, so that a selection fits beside one block.
  static constexpr int kRegisterShare = kDim == 256 ? 1 : 3;
};

/// Element offset of 16-byte chunk `chunk` of row `row`: neighbouring rows start in other banks.
template <int kDim>
__device__ inline int swizzled(int row, int chunk) {
  return row * kDim + ((chunk ^ (row & 7)) << 3);
}

/// One head of one sequence, as the kernel walks over it.
struct Unit {
  int sequence;
  int head;     ///< KV head
  int tokens;   ///< n
  int entries;  ///< listed blocks
  int token_sink;
  int sink;          ///< kForced: entries below are the leading blocks
  int window_begin;  ///< kForced: the first block of the window
  const std::int32_t* list;
};

__device__ inline Unit load_unit(const Arguments& a, int index) {
  using Kind = DecodeBlocks::Kind;
  Unit unit;
  unit.sequence = index / a.units;
  const int head = index % a.units;
  unit.head = head / a.kv_divisor;
  unit.tokens = a.cache.lengths[unit.sequence];
  unit.list = nullptr;
  unit.token_sink = 0;
  unit.sink = 0;
  unit.window_begin = 0;
  const Kind kind = a.blocks.kind;
  if (kind == Kind::kDense) {
    unit.entries = (unit.tokens + a.cache.block - 1) / a.cache.block;
    return unit;
  }
  int forced = 0;
  if (kind != Kind::kList || a.blocks.token_sink) {
    const DecodePlan plan = decode_plan(a.blocks.budget, unit.tokens, a.cache.block);
    unit.token_sink = plan.token_sink;
    unit.sink = plan.sink;
    unit.window_begin = plan.candidates - plan.window;
    forced = forced_blocks(plan);
  }
  if (kind == Kind::kForced) {
    unit.entries = forced;
    return unit;
  }
  if (kind == Kind::kList) forced = 0;
  const DecodeList& list = a.blocks.list;
  const int set = unit.sequence * list.sets + (list.sets == 1 ? 0 : head);
  unit.entries = list.counts[set] - forced;
  unit.list = list.blocks + static_cast<std::int64_t>(set) * list.capacity + forced;
  return unit;
}

/// Tiles of a unit; an empty list still takes one, which sees no token, so that somebody writes
/// the result.
__device__ inline int tiles_of(const Unit& unit, int block) {
  return max(1, unit.entries * (block / kTile));
}

/// Running softmax of 16 rows by one warp, in the layout of the accumulators of the matrix
/// instruction: rows lane / 4 and lane / 4 + 8.
template <int kDim>
struct Softmax {
  float acc[kDim / 8][4];
  float largest[2];
  float sum[2];  ///< of this lane's columns

  __device__ void reset() {
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][e] = 0.0f;
    }
    largest[0] = largest[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }
};

template <class T, int kDim>
__device__ inline void load_query(const Arguments& a, const Unit& unit, int unit_index,
                                  std::uint32_t (&q)[kDim / 16][4]) {
  const int lane = threadIdx.x % 32;
  const T* base =
      static_cast<const T*>(a.q) + static_cast<std::int64_t>(unit_index) * a.rows * kDim;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + (e & 1) * 8;
      const int column = step * 16 + (lane % 4) * 2 + (e >> 1) * 8;
      q[step][e] =
          row < a.rows ? *reinterpret_cast<const std::uint32_t*>(base + row * kDim + column) : 0u;
    }
  }
}

/// Adds 16 keys and values in shared memory to the running softmax.
template <class T, int kDim>
__device__ inline void attend_slice(Softmax<kDim>& state, const std::uint32_t (&q)[kDim / 16][4],
                                    const T* k, const T* v, int visible, float scale_log2) {
  const int lane = threadIdx.x % 32;
  const int matrix_row = lane & 7;
  const int matrix = lane >> 3;
  float s[2][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    std::uint32_t b[4];
    load_matrix_x4(b, k + swizzled<kDim>((matrix >> 1) * 8 + matrix_row, step * 2 + (matrix & 1)));
    mma_16x8x16<T>(s[0], q[step], b[0], b[1]);
    mma_16x8x16<T>(s[1], q[step], b[2], b[3]);
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[tile][e] *= scale_log2;
      if (visible < kSlice && tile * 8 + (lane % 4) * 2 + (e & 1) >= visible) {
        s[tile][e] = -INFINITY;
      }
    }
  }
  float largest[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float mine =
        fmaxf(fmaxf(s[0][half * 2], s[0][half * 2 + 1]), fmaxf(s[1][half * 2], s[1][half * 2 + 1]));
    largest[half] =
        fmaxf(state.largest[half], reduce_quad(mine, [](float x, float y) { return fmaxf(x, y); }));
  }
  if (__any_sync(0xffffffffu, largest[0] > state.largest[0] || largest[1] > state.largest[1])) {
    const float factor[2] = {exp2_fast(state.largest[0] - largest[0]),
                             exp2_fast(state.largest[1] - largest[1])};
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state.acc[i][e] *= factor[e >> 1];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.sum[half] *= factor[half];
      state.largest[half] = largest[half];
    }
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[tile][e] = exp2_fast(s[tile][e] - largest[e >> 1]);
      state.sum[e >> 1] += s[tile][e];
    }
  }
  const std::uint32_t p[4] = {pack_pair<T>(s[0][0], s[0][1]), pack_pair<T>(s[0][2], s[0][3]),
                              pack_pair<T>(s[1][0], s[1][1]), pack_pair<T>(s[1][2], s[1][3])};
#pragma unroll
  for (int pair = 0; pair < kDim / 16; ++pair) {
    std::uint32_t b[4];
    load_matrix_x4_transposed(
        b, v + swizzled<kDim>((matrix & 1) * 8 + matrix_row, pair * 2 + (matrix >> 1)));
    mma_16x8x16<T>(state.acc[pair * 2], p, b[0], b[1]);
    mma_16x8x16<T>(state.acc[pair * 2 + 1], p, b[2], b[3]);
  }
}

/// Fetches the slices of one warp, tile after tile of a unit, into its ring.
template <class T, int kDim>
class Fetcher {
 public:
  __device__ Fetcher(const Arguments& a, const Unit& unit, T* ring,
                     int (&spans)[Ring<kDim>::kStages])
      : a_(a), unit_(unit), ring_(ring), spans_(spans) {
    const std::int64_t head = static_cast<std::int64_t>(unit.head) * a.cache.head_stride;
    const std::int64_t sequence =
        a.cache.pages == nullptr ? unit.sequence * a.cache.sequence_stride : 0;
    k_ = static_cast<const T*>(a.cache.k) + head + sequence;
    v_ = static_cast<const T*>(a.cache.v) + head + sequence;
  }

  /// Starts the copy of the warp's slice of tile `tile` into stage `stage`.
  __device__ void start(int tile, int stage) {
    const int lane = threadIdx.x % 32;
    const int split = a_.cache.block == kTile ? 0 : 1;  // log2 of the tiles of a block
    const int entry = tile >> split;
    if (entry >= batch_end_) load_entries(entry);
    const int source = entry - (batch_end_ - 32);
    const int limit = __shfl_sync(0xffffffffu, limit_, source);
    const std::int64_t offset = __shfl_sync(0xffffffffu, offset_, source);
    const int within = (tile & split) * kTile + static_cast<int>(threadIdx.x / 32) * kSlice;
    const int visible = limit - within;  // tokens of the slice, when below 16
    if (lane == 0) spans_[stage] = visible;
    // Lanes lie along a row, kRows rows at a time. The row's low bits and its steps do not overlap,
    // so the swizzle is an exclusive or with a constant.
    constexpr int kChunks = kDim / 8;
    constexpr int kRows = 32 / kChunks;
    const int row = lane / kChunks;
    const int chunk = lane % kChunks;
    const std::int64_t at = offset + (within + row) * a_.cache.token_stride + chunk * 8;
    const std::int64_t step = kRows * a_.cache.token_stride;
    T* to = ring_ + stage * 2 * kSlice * kDim + row * kDim;
    const int swizzle = chunk ^ row;
    const auto copy = [&](T* shared, const T* global) {
#pragma unroll
      for (int i = 0; i < kSlice / kRows; ++i) {
        copy_async_16(shared + i * kRows * kDim + ((swizzle ^ (i * kRows & 7)) << 3), global,
                      i * kRows + row < visible);
        global += step;
      }
    };
    copy(to, k_ + at);
    copy(to + kSlice * kDim, v_ + at);
  }

 private:
  /// Each lane looks up one of 32 entries from `first` on.
  __device__ void load_entries(int first) {
    const int index = first + static_cast<int>(threadIdx.x % 32);
    batch_end_ = first + 32;
    limit_ = 0;
    offset_ = 0;
    if (index >= unit_.entries) return;
    int j = index;
    int limit = unit_.tokens;
    if (unit_.list != nullptr) {
      j = unit_.list[index];
      if (j < 0) {
        j = ~j;
        limit = min(limit, unit_.token_sink);
      }
    } else if (a_.blocks.kind == DecodeBlocks::Kind::kForced) {
      j = index < unit_.sink ? index : unit_.window_begin + index - unit_.sink;
    }
    limit_ = limit - j * a_.cache.block;
    offset_ =
        a_.cache.pages != nullptr
            ? a_.cache.pages[unit_.sequence * a_.cache.pages_stride + j] * a_.cache.page_stride
            : static_cast<std::int64_t>(j) * a_.cache.block * a_.cache.token_stride;
  }

  const Arguments& a_;
  const Unit& unit_;
  T* ring_;
  int (&spans_)[Ring<kDim>::kStages];
  const T* k_;
  const T* v_;
  int batch_end_ = 0;
  int limit_ = 0;            ///< visible tokens from the start of this lane's block on
  std::int64_t offset_ = 0;  ///< elements from k_ to the block
};

__device__ inline float rescale(float largest, float total_largest) {
  return largest == -INFINITY ? 0.0f : exp2_fast(largest - total_largest);
}

/// Four neighbouring elements of a row's result: to the output, or kept for the launch that joins
/// it.
template <class T>
__device__ inline void store_result(const Arguments& a, int unit_index, int row, int column,
                                    int dim, float4 value, float largest, float sum) {
  const std::int64_t at = static_cast<std::int64_t>(unit_index) * a.rows + row;
  if (a.blocks.kind == DecodeBlocks::Kind::kForced) {
    *reinterpret_cast<float4*>(a.carry + at * dim + column) = value;
    if (column == 0) a.carry_ml[at] = make_float2(largest, sum);
    return;
  }
  const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
  *reinterpret_cast<uint2*>(static_cast<T*>(a.out) + at * dim + column) =
      make_uint2(pack_pair<T>(value.x * scale, value.y * scale),
                 pack_pair<T>(value.z * scale, value.w * scale));
  if (column == 0 && a.lse != nullptr) {
    a.lse[at] = sum > 0.0f ? (largest + log2f(sum)) * kLn2 : -INFINITY;
  }
}

/// Joins the parts of a unit in the order of the thread blocks that made them.
template <class T, int kDim>
__device__ void merge_parts(const Arguments& a, int unit_index, int first, int last,
                            float* shared) {
  const int lane = threadIdx.x % 32;
  const std::int64_t carry = static_cast<std::int64_t>(unit_index) * a.rows;
  const int parts = last - first + 1;
  const int count = parts + (a.blocks.kind == DecodeBlocks::Kind::kScored ? 1 : 0);
  float* weights = shared;                 // [count, rows]
  float* sums = weights + count * a.rows;  // [count, rows]
  float* total = sums + count * a.rows;    // [rows, 2]
  // Part i; the last may be the one carried over from the forced blocks.
  const auto slot = [&](int part) {
    return static_cast<std::int64_t>(2 * (first + part) + (part == 0 ? 1 : 0)) * a.rows;
  };
  const auto load = [&](int part, int index) {
    const float* from = part == parts ? a.carry + carry * kDim : a.partial + slot(part) * kDim;
    return __ldcg(reinterpret_cast<const float4*>(from) + index);
  };
  // The first loads of the sums go ahead of the weights, which they do not depend on.
  constexpr int kBatch = 8;
  float4 batch[kBatch];
  const auto load_batch = [&](int part, int index) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      batch[k] = part + k < count ? load(part + k, index) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  };
  const int indices = a.rows * kDim / 4;
  if (static_cast<int>(threadIdx.x) < indices) load_batch(0, threadIdx.x);

  for (int row = threadIdx.x / 32; row < a.rows; row += kWarps) {
    float largest = -INFINITY;
    for (int part = lane; part < count; part += 32) {
      const float2 ml =
          __ldcg(part == parts ? a.carry_ml + carry + row : a.partial_ml + slot(part) + row);
      weights[part * a.rows + row] = ml.x;
      sums[part * a.rows + row] = ml.y;
      largest = fmaxf(largest, ml.x);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, mask));
    }
    float sum = 0.0f;
    for (int part = lane; part < count; part += 32) {
      const float weight = rescale(weights[part * a.rows + row], largest);
      weights[part * a.rows + row] = weight;
      sum += sums[part * a.rows + row] * weight;
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (lane == 0) {
      total[2 * row] = largest;
      total[2 * row + 1] = sum;
    }
  }
  __syncthreads();
  for (int index = threadIdx.x; index < indices; index += kThreads) {
    const int row = index / (kDim / 4);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int part = 0; part < count; part += kBatch) {
      if (part > 0 || index >= kThreads) load_batch(part, index);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const float weight = part + k < count ? weights[(part + k) * a.rows + row] : 0.0f;
        sum.x += batch[k].x * weight;
        sum.y += batch[k].y * weight;
        sum.z += batch[k].z * weight;
        sum.w += batch[k].w * weight;
      }
    }
    store_result<T>(a, unit_index, row, index % (kDim / 4) * 4, kDim, sum, total[2 * row],
                    total[2 * row + 1]);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, Ring<kDim>::kRegisterShare)
    decode_attention_kernel(const __grid_constant__ Arguments a) {
  constexpr int kStages = Ring<kDim>::kStages;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  __shared__ int spans[kWarps][kStages];
  __shared__ float2 warp_ml[kWarps][16];
  __shared__ unsigned arrived;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  T* ring = reinterpret_cast<T*>(shared_bytes) + warp * kStages * 2 * Ring<kDim>::kSliceElements;
  float* shared = reinterpret_cast<float*>(shared_bytes);

  // This thread block's share of the tiles of all units, and the unit that it starts in.
  const int units = a.cache.batch * a.units;
  const int block = a.cache.block;
  const int per_lane = (units + 31) / 32;
  int mine = 0;
#pragma unroll 1
  for (int u = lane * per_lane; u < min((lane + 1) * per_lane, units); ++u) {
    mine += tiles_of(load_unit(a, u), block);
  }
  int scan = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int left = __shfl_up_sync(0xffffffffu, scan, offset);
    if (lane >= offset) scan += left;
  }
  // Thread blocks with one tile more than others lie evenly among them.
  const int total = __shfl_sync(0xffffffffu, scan, 31);
  const int shares = min(static_cast<int>(gridDim.x), total);
  const int share = static_cast<int>(blockIdx.x);
  if (share >= shares) return;
  int begin = static_cast<int>(static_cast<unsigned long long>(share) * total / shares);
  const int end = static_cast<int>(static_cast<unsigned long long>(share + 1) * total / shares);
  const auto share_of = [&](int tile) {
    return static_cast<int>((static_cast<unsigned long long>(tile + 1) * shares - 1) / total);
  };
  const int owner = __ffs(__ballot_sync(0xffffffffu, scan > begin)) - 1;
  int unit_begin = __shfl_sync(0xffffffffu, scan - mine, owner);
  int unit_index = owner * per_lane;

  for (; begin < end; ++unit_index) {
    const Unit unit = load_unit(a, unit_index);
    const int tiles = tiles_of(unit, block);
    if (unit_begin + tiles <= begin) {
      unit_begin += tiles;
      continue;
    }
    const int first = begin - unit_begin;
    const int last = min(end - unit_begin, tiles);

    std::uint32_t q[kDim / 16][4];
    load_query<T, kDim>(a, unit, unit_index, q);
    Softmax<kDim> state;
    state.reset();
    Fetcher<T, kDim> fetcher(a, unit, ring, spans[warp]);
    // Copies run kStages - 1 tiles ahead.
    int stage = 0;
#pragma unroll 1
    for (int tile = first - (kStages - 1); tile < last; ++tile) {
      copy_async_wait<kStages - 2>();
      __syncwarp();
      const int free_stage = stage == 0 ? kStages - 1 : stage - 1;
      if (tile + kStages - 1 < last) fetcher.start(tile + kStages - 1, free_stage);
      copy_async_commit();
      if (tile >= first) {
        const int visible = spans[warp][stage];
        const T* k = ring + stage * 2 * Ring<kDim>::kSliceElements;
        if (visible > 0) {
          attend_slice<T, kDim>(state, q, k, k + Ring<kDim>::kSliceElements, visible, a.scale_log2);
        }
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    __syncthreads();

    // The four warps' results become one, in the rings' memory.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = reduce_quad(state.sum[half], [](float x, float y) { return x + y; });
      if (lane % 4 == 0) {
        warp_ml[warp][lane / 4 + half * 8] = make_float2(state.largest[half], sum);
      }
    }
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + half * 8;
        if (row < a.rows) {
          *reinterpret_cast<float2*>(shared + (warp * a.rows + row) * kDim + i * 8 +
                                     (lane % 4) * 2) =
              make_float2(state.acc[i][half * 2], state.acc[i][half * 2 + 1]);
        }
      }
    }
    __syncthreads();
    const int first_share = share_of(unit_begin);
    const int last_share = share_of(unit_begin + tiles - 1);
    const bool whole = first_share == last_share && a.blocks.kind != DecodeBlocks::Kind::kScored;
    const std::int64_t slot = 2 * blockIdx.x + (first == 0 ? 1 : 0);
#pragma unroll 1
    for (int index = threadIdx.x; index < a.rows * kDim / 4; index += kThreads) {
      const int row = index / (kDim / 4);
      float largest = -INFINITY;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, warp_ml[w][row].x);
      float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float weight = rescale(warp_ml[w][row].x, largest);
        const float4 part = reinterpret_cast<const float4*>(shared + w * a.rows * kDim)[index];
        value.x += part.x * weight;
        value.y += part.y * weight;
        value.z += part.z * weight;
        value.w += part.w * weight;
        sum += warp_ml[w][row].y * weight;
      }
      const int column = index % (kDim / 4) * 4;
      if (whole) {
        store_result<T>(a, unit_index, row, column, kDim, value, largest, sum);
      } else {
        reinterpret_cast<float4*>(a.partial + slot * a.rows * kDim)[index] = value;
        if (column == 0) a.partial_ml[slot * a.rows + row] = make_float2(largest, sum);
      }
    }
    if (!whole) {
      __syncthreads();
      if (threadIdx.x == 0) {
        fence_gpu();
        const unsigned parts = last_share - first_share + 1;
        const bool complete = atomicAdd(a.arrivals + unit_index, 1u) + 1 == parts;
        if (complete) a.arrivals[unit_index] = 0;  // ready for the next launch
        arrived = complete ? 1u : 0u;
        fence_gpu();
      }
      __syncthreads();
      if (arrived != 0) merge_parts<T, kDim>(a, unit_index, first_share, last_share, shared);
    }
    __syncthreads();  // the rings are free again
    begin = unit_begin + last;
    unit_begin += tiles;
  }
}

}  // namespace

DecodeAttention::DecodeAttention(const KvCache& shape, int num_heads)
    : shape_(shape), num_heads_(num_heads) {
  int device = 0;
  int major = 0;
  check(cudaGetDevice(&device), "query of the current GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "query of the compute capability");
  check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
        "query of the multiprocessors");
  if (major < 8) {
    throw Error(ErrorKind::kUnsupported,
                "decode attention needs a GPU of compute capability 8.0 or later, this one has " +
                    std::to_string(major) + ".x",
                "use --backend cpu");
  }
  const int d = shape.head_dim;
  if (d != 64 && d != 128 && d != 256) {
    throw Error(ErrorKind::kUnsupported, "decode attention on the GPU has no kernel for head_dim " +
                                             std::to_string(d) + " (64, 128 and 256 are built)");
  }
  if (shape.block != 64 && shape.block != 128) {
    throw Error(ErrorKind::kUnsupported,
                "decode attention on the GPU takes blocks of 64 or 128, not " +
                    std::to_string(shape.block));
  }
  if (shape.kv_heads < 1 || num_heads % shape.kv_heads != 0 || num_heads / shape.kv_heads > 16) {
    throw Error(ErrorKind::kUnsupported,
                "decode attention on the GPU takes 1 to 16 query heads a KV head, not " +
                    std::to_string(num_heads) + " for " + std::to_string(shape.kv_heads));
  }
  const std::size_t rows = static_cast<std::size_t>(num_heads / shape.kv_heads);
  const std::size_t parts = 4 * static_cast<std::size_t>(multiprocessors_);
  const std::size_t heads = static_cast<std::size_t>(shape.batch) * num_heads;
  const auto dim = static_cast<std::size_t>(d);
  partial_ = DeviceBuffer<float>(parts * rows * dim);
  partial_ml_ = DeviceBuffer<float>(parts * rows * 2);
  carry_ = DeviceBuffer<float>(heads * dim);
  carry_ml_ = DeviceBuffer<float>(heads * 2);
  arrivals_ = DeviceBuffer<unsigned>(heads);
  check(cudaMemset(arrivals_.data(), 0, arrivals_.bytes()), "clearing of the arrival counters");
  visit_element(shape.element, [&]<class T>() {
    visit_dim(d, [&]<int kDim>() {
      allow_shared_memory(decode_attention_kernel<T, kDim>, Ring<kDim>::kBytes);
    });
  });
}

void DecodeAttention::run(const KvCache& cache, const void* q, const DecodeBlocks& blocks,
                          void* out, float* lse, cudaStream_t stream) {
  using Kind = DecodeBlocks::Kind;
  const bool listed = blocks.kind == Kind::kList || blocks.kind == Kind::kScored;
  const bool per_head = listed && blocks.list.sets == num_heads_ && num_heads_ != cache.kv_heads;
  Arguments a{};
  a.cache = cache;
  a.q = q;
  a.out = out;
  a.lse = lse;
  a.blocks = blocks;
  a.units = per_head ? num_heads_ : cache.kv_heads;
  a.rows = num_heads_ / a.units;
  a.kv_divisor = a.units / cache.kv_heads;
  a.scale_log2 =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(cache.head_dim)));
  a.partial = partial_.data();
  a.partial_ml = reinterpret_cast<float2*>(partial_ml_.data());
  a.carry = carry_.data();
  a.carry_ml = reinterpret_cast<float2*>(carry_ml_.data());
  a.arrivals = arrivals_.data();
  visit_element(cache.element, [&]<class T>() {
    visit_dim(cache.head_dim, [&]<int kDim>() {
      // The forced blocks run beside the selection, which needs room on every multiprocessor.
      const int per_multiprocessor =
          blocks.kind == Kind::kForced ? 1 : Ring<kDim>::kBlocksPerMultiprocessor;
      decode_attention_kernel<T, kDim>
          <<<multiprocessors_ * per_multiprocessor, kThreads, Ring<kDim>::kBytes, stream>>>(a);
    });
  });
  check_launch("decode_attention_kernel");
}

KernelCost DecodeAttention::cost(std::int64_t blocks) const {
  const double keys = static_cast<double>(blocks) * shape_.block;
  const double d = shape_.head_dim;
  KernelCost cost;
  cost.flops = 4.0 * keys * d * num_heads_ / shape_.kv_heads;
  cost.bytes = 2.0 * (2.0 * keys * d + 2.0 * shape_.batch * num_heads_ * d);
  return cost;
}

}  // namespace sw::cuda
