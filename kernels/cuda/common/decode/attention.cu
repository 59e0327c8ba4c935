#include <cmath>
#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/decode/attention.cuh"
#include "kernels/cuda/common/decode/launch.hpp"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/device_attribute.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {

using namespace decode;

namespace {

/// kSelected runs in two passes, over the forced blocks and then over the scored ones.
__device__ inline int passes_of(const Arguments& a) {
  return a.blocks.kind == DecodeBlocks::Kind::kSelected ? 2 : 1;
}

/// One head of one sequence, as the kernel walks over it.
struct Unit {
  int sequence;
  int head;     ///< KV head
  int tokens;   ///< n
  int entries;  ///< blocks of this pass
  int token_sink;
  const std::int32_t* list;  ///< null: those below, then those from window_begin on
  int sink;                  ///< leading blocks
  int window_begin;
};

/// Which of the lists is that of a step at length `tokens`.
__device__ inline int list_of_length(const Arguments& a, int sequence, int tokens) {
  return (a.blocks.list.twice ? (tokens & 1) * a.cache.batch : 0) + sequence;
}

__device__ inline Unit load_unit(const Arguments& a, int pass, int index) {
  using Kind = DecodeBlocks::Kind;
  Unit unit;
  unit.sequence = index / a.units;
  const int head = index % a.units;
  unit.head = head / a.kv_divisor;
  unit.tokens = a.cache.lengths[unit.sequence];
  unit.entries = (unit.tokens + a.cache.block - 1) / a.cache.block;
  unit.list = nullptr;
  unit.token_sink = 0;
  unit.sink = unit.entries;
  unit.window_begin = 0;
  const Kind kind = a.blocks.kind;
  if (kind == Kind::kDense) return unit;
  DecodePlan plan;
  if (kind == Kind::kSelected || a.blocks.token_sink) {
    plan = decode_plan(a.blocks.budget, unit.tokens, a.cache.block);
    unit.token_sink = plan.token_sink;
    unit.sink = plan.sink;
    unit.window_begin = plan.candidates - plan.window;
  }
  const int forced = kind == Kind::kSelected ? forced_blocks(plan) : 0;
  if (kind == Kind::kSelected && pass == 0) {
    unit.entries = forced;
    return unit;
  }
  const DecodeList& list = a.blocks.list;
  const int set =
      list_of_length(a, unit.sequence, unit.tokens) * list.sets + (list.sets == 1 ? 0 : head);
  const bool planned = kind == Kind::kSelected && plan.scored >= 0;
  unit.entries = planned ? plan.scored : list.counts[set] - forced;
  unit.list = list.blocks + static_cast<std::int64_t>(set) * list.capacity + forced;
  return unit;
}

/// Tiles of a unit; an empty list still takes one, which sees no token, so that somebody writes
/// the result.
__device__ inline int tiles_of(const Unit& unit, int block) {
  return max(1, unit.entries * (block / kTile));
}

/// How the tiles of all units in one pass are dealt out to the thread blocks: those with one more
/// than others lie evenly among them.
struct Deal {
  int total;
  int shares;
  int each;   ///< tiles of a share
  int extra;  ///< shares with one more

  __device__ int begin(int share) const {
    return share * each + share * extra / shares;  // below 2^31: shares are some hundreds
  }
  __device__ int share_of(int tile) const {
    int share = static_cast<int>(__fdividef(static_cast<float>(tile), static_cast<float>(total)) *
                                 static_cast<float>(shares));
    while (begin(share) > tile) --share;
    while (begin(share + 1) <= tile) ++share;
    return share;
  }
};

/// Shares that hold tiles of a unit, in one pass.
struct Parts {
  int first = 0;
  int last = -1;
  __device__ int count() const { return last - first + 1; }
};

/// The units by lanes of a warp, some neighbouring ones each: tiles of a lane and those before it.
struct Scan {
  int per_lane;
  int mine;
  int before;
  Deal deal;
};

/// Thread blocks that take part when none gets parts of two units; 0 where that would idle too
/// many.
__device__ inline int even_shares(const Arguments& a) {
  const int grid = static_cast<int>(gridDim.x);
  const int even = grid / (a.cache.batch * a.units) * (a.cache.batch * a.units);
  return even * 10 >= grid * 9 ? even : 0;
}

__device__ inline Scan scan_units(const Arguments& a, int even, int pass) {
  const int lane = threadIdx.x % 32;
  const int units = a.cache.batch * a.units;
  Scan scan;
  scan.per_lane = (units + 31) / 32;
  scan.mine = 0;
#pragma unroll 1
  for (int u = lane * scan.per_lane; u < min((lane + 1) * scan.per_lane, units); ++u) {
    scan.mine += tiles_of(load_unit(a, pass, u), a.cache.block);
  }
  int sum = scan.mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int left = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += left;
  }
  scan.before = sum - scan.mine;
  scan.deal.total = __shfl_sync(0xffffffffu, sum, 31);
  scan.deal.shares = min(even > 0 ? even : static_cast<int>(gridDim.x), scan.deal.total);
  scan.deal.each = scan.deal.total / scan.deal.shares;
  scan.deal.extra = scan.deal.total - scan.deal.each * scan.deal.shares;
  return scan;
}

/// The shares of unit `index` in a pass.
__device__ inline Parts parts_of(const Arguments& a, const Scan& scan, int pass, int index) {
  const int owner = index / scan.per_lane;
  int begin = __shfl_sync(0xffffffffu, scan.before, owner);
  for (int u = owner * scan.per_lane; u < index; ++u) {
    begin += tiles_of(load_unit(a, pass, u), a.cache.block);
  }
  const int tiles = tiles_of(load_unit(a, pass, index), a.cache.block);
  return {scan.deal.share_of(begin), scan.deal.share_of(begin + tiles - 1)};
}

/// Where the result of share `share` for a unit lies. A share may hold many whole units, and parts
/// of two at most: one that it begins with and one that it ends with.
__device__ inline int slot_of(const Arguments& a, int pass, int unit_index, const Parts& parts,
                              int share) {
  const int grid = static_cast<int>(gridDim.x);
  if (parts.count() == 1) {
    return passes_of(a) * 2 * grid + pass * a.cache.batch * a.units + unit_index;
  }
  return pass * 2 * grid + 2 * share + (share == parts.first ? 1 : 0);
}

/// Fetches the slices of one warp, tile after tile of a unit, into its ring.
template <class T, int kDim>
class Fetcher {
 public:
  __device__ Fetcher(const Arguments& a, const Unit& unit, std::uint32_t ring,
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
    const auto [offset, within, visible] = locate(tile);
    if (threadIdx.x % 32 == 0) spans_[stage] = visible;
    const std::uint32_t to = ring_ + stage * 2 * Ring<kDim>::kSliceBytes;
    const std::int64_t at = offset + within * a_.cache.token_stride;
    copy_slice<T, kDim>(to, k_ + at, a_.cache.token_stride, visible, policy_);
    copy_slice<T, kDim>(to + Ring<kDim>::kSliceBytes, v_ + at, a_.cache.token_stride, visible,
                        policy_);
  }

 private:
  struct Place {
    std::int64_t offset;  ///< elements from k_ to the block
    int within;           ///< the slice's first token in it
    int visible;          ///< tokens of the slice, when below 16
  };

  __device__ Place locate(int tile) {
    const int split = a_.cache.block == kTile ? 0 : 1;  // log2 of the tiles of a block
    const int entry = tile >> split;
    if (entry >= batch_end_) load_entries(entry);
    const int source = entry - (batch_end_ - 32);
    const int within = (tile & split) * kTile + static_cast<int>(threadIdx.x / 32) * kSlice;
    return {__shfl_sync(0xffffffffu, offset_, source), within,
            __shfl_sync(0xffffffffu, limit_, source) - within};
  }

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
      j = __ldcg(unit_.list + index);
      if (j < 0) {
        j = ~j;
        limit = min(limit, unit_.token_sink);
      }
    } else if (index >= unit_.sink) {
      j = unit_.window_begin + index - unit_.sink;
    }
    if (j * a_.cache.block >= limit) return;
    limit_ = limit - j * a_.cache.block;
    offset_ =
        a_.cache.pages != nullptr
            ? a_.cache.pages[unit_.sequence * a_.cache.pages_stride + j] * a_.cache.page_stride
            : static_cast<std::int64_t>(j) * a_.cache.block * a_.cache.token_stride;
  }

  const Arguments& a_;
  const Unit& unit_;
  std::uint32_t ring_;
  int (&spans_)[Ring<kDim>::kStages];
  const std::uint64_t policy_ = read_once_policy();
  const T* k_;
  const T* v_;
  int batch_end_ = 0;
  int limit_ = 0;            ///< visible tokens from the start of this lane's block on
  std::int64_t offset_ = 0;  ///< elements from k_ to the block
};

/// Joins the parts of a unit, pass by pass in the order of the thread blocks that made them. Each
/// thread makes four elements of a row and works out the weights of the parts itself: that is less
/// than waiting for others to do it.
template <class T, int kDim>
__device__ inline void merge_parts(const Arguments& a, int unit_index, const Parts& forced,
                                   const Parts& others) {
  constexpr int kAtOnce = 8;  // parts whose loads are under way together
  const int split = forced.count();
  const int count = split + others.count();
  // Parts of a pass lie two slots apart, but for the first.
  const int forced_slot = slot_of(a, 0, unit_index, forced, forced.first);
  const int other_slot = slot_of(a, passes_of(a) - 1, unit_index, others, others.first);
#pragma unroll 1
  for (int index = threadIdx.x; index < a.rows * kDim / 4; index += kThreads) {
    const int row = index / (kDim / 4);
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float largest = -INFINITY;
    float sum = 0.0f;
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce) {
      float4 piece[kAtOnce];
      float2 ml[kAtOnce];
      float top = largest;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int part = first + k;
        piece[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        ml[k] = make_float2(-INFINITY, 0.0f);
        if (part < count) {
          const int within = part < split ? part : part - split;
          const int slot =
              (part < split ? forced_slot : other_slot) + 2 * within - (within > 0 ? 1 : 0);
          piece[k] = __ldcg(reinterpret_cast<const float4*>(a.partial) +
                            static_cast<std::int64_t>(slot) * a.rows * (kDim / 4) + index);
          ml[k] = __ldcg(a.partial_ml + slot * a.rows + row);
        }
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) top = fmaxf(top, ml[k].x);
      const float before = rescale(largest, top);
      total = make_float4(total.x * before, total.y * before, total.z * before, total.w * before);
      sum *= before;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const float weight = rescale(ml[k].x, top);
        total.x += piece[k].x * weight;
        total.y += piece[k].y * weight;
        total.z += piece[k].z * weight;
        total.w += piece[k].w * weight;
        sum += ml[k].y * weight;
      }
      largest = top;
    }
    store_result<T>(a, unit_index, row, index % (kDim / 4) * 4, kDim, total, largest, sum);
  }
}

/// Tells that `added` parts of a unit are in global memory; true in the thread block that completes
/// the `expected` ones.
__device__ inline bool arrive(const Arguments& a, int unit_index, int added, int expected) {
  __shared__ bool complete;
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_gpu();
    const auto before = static_cast<int>(atomicAdd(a.arrivals + unit_index, added));
    complete = before + added == expected;
    if (complete) {
      a.arrivals[unit_index] = 0;  // ready for the next launch
      fence_gpu();
    }
  }
  __syncthreads();
  return complete;
}

template <class T, int kDim, int kTiles, bool kBeside>
__global__ void __maxnreg__(kBeside ? Ring<kDim>::kRegistersBeside : Ring<kDim>::kRegisters)
    decode_attention_kernel(const __grid_constant__ Arguments a) {
  constexpr int kStages = Ring<kDim>::kStages;
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  __shared__ int spans[kWarps][kStages];
  __shared__ float2 warp_ml[kWarps][16];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const std::uint32_t ring =
      shared_address(shared_bytes) + warp * kStages * 2 * Ring<kDim>::kSliceBytes;
  float* shared = reinterpret_cast<float*>(shared_bytes);
  const int share = static_cast<int>(blockIdx.x);
  const int passes = passes_of(a);
  // Of the first and the last pass: how tiles are dealt out, and which units this share holds.
  Scan scans[2];
  int unit_first[2] = {};
  int unit_last[2] = {-1, -1};
  int known_unit = -1;  // whose shares in the two passes are these
  Parts known[2];
  const int even = even_shares(a);
  Softmax<kDim, kTiles> state;
  state.reset();
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    // Only a threshold leaves the number of scored blocks open.
    if (pass == 1 && a.blocks.budget.kind == Budget::Kind::kRelease) wait_for_grid_before();
    const Scan scan = scan_units(a, even, pass);
    int begin = share < scan.deal.shares ? scan.deal.begin(share) : 0;
    const int end = share < scan.deal.shares ? scan.deal.begin(share + 1) : 0;
    const int owner = __ffs(__ballot_sync(0xffffffffu, scan.before + scan.mine > begin)) - 1;
    int unit_begin = __shfl_sync(0xffffffffu, scan.before, owner);
    int unit_index = owner * scan.per_lane;

    for (; begin < end; ++unit_index) {
      const Unit unit = load_unit(a, pass, unit_index);
      const int tiles = tiles_of(unit, a.cache.block);
      if (unit_begin + tiles <= begin) {
        unit_begin += tiles;
        continue;
      }
      const int first = begin - unit_begin;
      const int last = min(end - unit_begin, tiles);
      if (unit_last[1] < 0) unit_first[1] = unit_index;
      unit_last[1] = unit_index;

      std::uint32_t q[kTiles][kDim / 16][2];
      load_query<T, kDim, kTiles>(a, unit_index, q);
      const Parts parts = {scan.deal.share_of(unit_begin),
                           scan.deal.share_of(unit_begin + tiles - 1)};
      if (pass + 1 == passes) {
        let_next_grid_start();
        known_unit = unit_index;
        known[1] = parts;
        if (passes == 2) known[0] = parts_of(a, scans[0], 0, unit_index);
      }
      if (pass == 1) wait_for_grid_before();
      Fetcher<T, kDim> fetcher(a, unit, ring, spans[warp]);
      // Copies run kStages - 1 tiles ahead; beside a selection one, which is enough to keep memory
      // busy: what queues up beyond that, the selection's loads would have to wait for.
      const int ahead = pass + 1 < passes ? 1 : kStages - 1;
      int stage = 0;
      int next_stage = 0;
#pragma unroll 1
      for (int tile = first - ahead; tile < last; ++tile) {
        if (ahead == 1) {
          copy_async_wait<0>();
        } else {
          copy_async_wait<kStages - 2>();
        }
        __syncwarp();
        if (tile + ahead < last) fetcher.start(tile + ahead, next_stage);
        next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
        copy_async_commit();
        if (tile >= first) {
          const int visible = spans[warp][stage];
          const std::uint32_t k = ring + stage * 2 * Ring<kDim>::kSliceBytes;
          if (visible > 0) {
            attend_slice<T, kDim, kTiles>(state, q, k, k + Ring<kDim>::kSliceBytes, visible,
                                          a.scale_log2, [] {});
          }
          stage = stage + 1 == kStages ? 0 : stage + 1;
        }
      }
      begin = unit_begin + last;
      unit_begin += tiles;
      copy_async_wait<0>();
      __syncthreads();

      // The four warps' results become one, in the rings' memory. Rows are a little longer there,
      // so that columns of a product fall on different banks.
      constexpr int kRow = kDim + 4;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int head = n * 8 + lane % 4 * 2 + e;
          const float sum = reduce_rows(state.sum[n][e], [](float x, float y) { return x + y; });
          if (lane < 4) warp_ml[warp][head] = make_float2(state.largest[n][e], sum);
          if (head >= a.rows) continue;
          float* to = shared + (warp * a.rows + head) * kRow + lane / 4;
#pragma unroll
          for (int i = 0; i < kDim / 16; ++i) {
            to[i * 16] = state.acc[n][i][e];
            to[i * 16 + 8] = state.acc[n][i][e + 2];
          }
        }
      }
      __syncthreads();
      const bool whole = passes == 1 && parts.count() == 1;
      const std::int64_t slot = slot_of(a, pass, unit_index, parts, share);
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
          const float4 part = *reinterpret_cast<const float4*>(shared + (w * a.rows + row) * kRow +
                                                               index % (kDim / 4) * 4);
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
      __syncthreads();  // the rings are free again
      state.reset();
    }
    scans[1] = scan;
    if (pass + 1 < passes) {
      scans[0] = scan;
      unit_first[0] = unit_first[1];
      unit_last[0] = unit_last[1];
      unit_last[1] = -1;
    }
  }

  // Whoever completes the parts of a unit joins them.
  const bool has_first = unit_last[0] >= 0;
  const bool has_last = unit_last[1] >= 0;
  if (!has_first && !has_last) return;
  const int units_begin = !has_first  ? unit_first[1]
                          : !has_last ? unit_first[0]
                                      : min(unit_first[0], unit_first[1]);
#pragma unroll 1
  for (int u = units_begin; u <= max(unit_last[0], unit_last[1]); ++u) {
    const bool before = u >= unit_first[0] && u <= unit_last[0];
    const bool now = has_last && u >= unit_first[1] && u <= unit_last[1];
    if (!before && !now) continue;
    Parts forced = known[0];
    Parts others = known[1];
    if (u != known_unit) {
      if (passes == 2) forced = parts_of(a, scans[0], 0, u);
      others = parts_of(a, scans[1], passes - 1, u);
    }
    if (passes == 1 && others.count() == 1) continue;  // its result is written
    if (arrive(a, u, (before ? 1 : 0) + (now ? 1 : 0), forced.count() + others.count())) {
      merge_parts<T, kDim>(a, u, forced, others);
    }
    __syncthreads();
  }
}

/// Calls f with the kernel for `rows` query heads of a unit, beside a selection or alone.
template <class T, int kDim, class F>
void visit_kernel(int rows, bool beside, F&& f) {
  const auto visit = [&]<bool kBeside>() {
    if (rows <= 8) {
      f(decode_attention_kernel<T, kDim, 1, kBeside>);
    } else {
      f(decode_attention_kernel<T, kDim, 2, kBeside>);
    }
  };
  if constexpr (Ring<kDim>::kFitsBeside) {
    if (beside) return visit.template operator()<true>();
  }
  visit.template operator()<false>();
}

}  // namespace

DecodeAttention::DecodeAttention(const KvCache& shape, int num_heads)
    : shape_(shape), num_heads_(num_heads) {
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  multiprocessors_ = device_attribute(cudaDevAttrMultiProcessorCount);
  if (major < 8) {
    throw Error(ErrorKind::kUnsupported,
                "decode attention needs a GPU of compute capability 8.0 or later, this one has " +
                    std::to_string(major) + ".x",
                "use --backend cpu");
  }
  starts_early_ = major >= 9 && waits_for_grid_before(decode_attention_kernel<__half, 64, 1, true>);
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
  const std::size_t heads = static_cast<std::size_t>(shape.batch) * num_heads;
  const std::size_t parts =
      4 * static_cast<std::size_t>(multiprocessors_) * rows + 2 * heads;  // rows of them
  partial_ = DeviceBuffer<float>(parts * static_cast<std::size_t>(d));
  partial_ml_ = DeviceBuffer<float>(parts * 2);
  arrivals_ = DeviceBuffer<unsigned>(heads);
  check(cudaMemset(arrivals_.data(), 0, arrivals_.bytes()), "clearing of the arrival counters");
  // Where thread blocks would idle, heads are better divided pass by pass.
  const int shares = multiprocessors_ / shape.kv_heads * shape.kv_heads;
  reads_ahead_ = shape.batch == 1 && shares * 10 >= multiprocessors_ * 9 &&
                 prepare_beside(shape.element, d, static_cast<int>(rows));
  if (reads_ahead_) {
    const auto grid = static_cast<std::size_t>(multiprocessors_);
    exchange_ = DeviceBuffer<float>(2 * grid * rows * static_cast<std::size_t>(d));
    exchange_ml_ = DeviceBuffer<float>(2 * grid * rows * 2);
    launches_ = DeviceBuffer<unsigned>(static_cast<std::size_t>(shape.kv_heads));
    check(cudaMemset(exchange_.data(), 0xff, exchange_.bytes()), "clearing of the exchange");
    check(cudaMemset(exchange_ml_.data(), 0xff, exchange_ml_.bytes()), "clearing of the exchange");
    check(cudaMemset(launches_.data(), 0, launches_.bytes()), "clearing of the exchange");
  }
  visit_element(shape.element, [&]<class T>() {
    visit_dim(d, [&]<int kDim>() {
      for (const int rows : {1, 16}) {
        for (const bool beside : {false, true}) {
          visit_kernel<T, kDim>(
              rows, beside, [](auto kernel) { allow_shared_memory(kernel, Ring<kDim>::kBytes); });
        }
      }
    });
  });
}

void DecodeAttention::run(const KvCache& cache, const void* q, const DecodeBlocks& blocks,
                          void* out, float* lse, cudaStream_t stream) {
  using Kind = DecodeBlocks::Kind;
  const bool per_head =
      blocks.kind == Kind::kList && blocks.list.sets == num_heads_ && num_heads_ != cache.kv_heads;
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
  a.arrivals = arrivals_.data();
  if (reads_ahead(blocks)) {
    a.exchange = exchange_.data();
    a.exchange_ml = reinterpret_cast<float2*>(exchange_ml_.data());
    a.launches = launches_.data();
    launch_beside(a, multiprocessors_, stream);
    return;
  }
  visit_element(cache.element, [&]<class T>() {
    visit_dim(cache.head_dim, [&]<int kDim>() {
      // The forced blocks run beside the selection, which needs room on every multiprocessor.
      const bool selected = blocks.kind == Kind::kSelected;
      const int grid = multiprocessors_ * (selected ? 1 : Ring<kDim>::kBlocksPerMultiprocessor);
      visit_kernel<T, kDim>(a.rows, selected, [&](auto kernel) {
        launch_early(kernel, dim3(static_cast<unsigned>(grid)), kThreads, Ring<kDim>::kBytes,
                     stream, selected && starts_early_, a);
      });
    });
  });
}

bool DecodeAttention::reads_ahead(const DecodeBlocks& blocks) const {
  return reads_ahead_ && blocks.kind == DecodeBlocks::Kind::kSelected && blocks.list.twice &&
         blocks.list.sets == 1 && blocks.list.capacity <= kMostBlocksBeside &&
         blocks.budget.kind != Budget::Kind::kRelease;
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
