#include <climits>

#include "kernels/cuda/common/decode/attention.cuh"
#include "kernels/cuda/common/decode/launch.hpp"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/device_attribute.hpp"

namespace sw::cuda::decode {
namespace {

// Most of the kernel's instructions run once in a step, and come from memory when they do: one loop
// attends to whatever there is, and what is unrolled has to be worth its bytes.
constexpr int kExpected = 8;  ///< blocks of the last list that a warp attends to, at most
constexpr int kWords = kMostBlocksBeside / 32;
constexpr int kJoining = 16;  ///< lanes that join an element of the parts of a head

// Attention of one sequence, one query token, beside the selection of its blocks (attention.hpp):
// `shares` thread blocks for each KV head, each with as many of the forced blocks and of those on
// the last list.

/// The thread block's place among those of its head.
struct Share {
  int head;
  int index;   ///< of the shares
  int shares;  ///< thread blocks of the head
};

/// A warp's ring of two slices, and behind it the softmaxes that the warp puts aside. Where keys
/// have been multiplied and where values have been, the next but one are copied at once.
template <int kDim, int kTiles>
struct Room {
  static constexpr int kSliceBytes = kSlice * kDim * 2;
  static constexpr int kRingBytes = 2 * 2 * kSliceBytes;
  static constexpr int kVectors = kTiles * (kDim / 16 + 1);  ///< of a softmax in a lane
  static constexpr int kShelfBytes = kTiles == 1 ? 8192 : kVectors * 32 * 16;
  static constexpr int kWarpBytes = kRingBytes + kShelfBytes;
  static constexpr int kBytes = kWarps * kWarpBytes;
};

/// Softmaxes that a warp puts aside. Each lane takes back what it has stored, and lanes whose
/// columns are no heads store nothing.
template <int kDim, int kTiles>
class Shelf {
 public:
  static constexpr int kVectors = Room<kDim, kTiles>::kVectors;

  __device__ Shelf(const Arguments& a, unsigned char* bytes)
      : quads_(kTiles == 1 ? min(4, (a.rows + 1) / 2) : 4),
        base_(reinterpret_cast<float4*>(bytes) + threadIdx.x % 32 / 4 * quads_ + threadIdx.x % 4) {}

  __device__ int places() const {
    return Room<kDim, kTiles>::kShelfBytes / (kVectors * 8 * quads_ * 16);
  }

  __device__ void put(int place, const Softmax<kDim, kTiles>& state) const {
    if (!has_heads()) return;
    const int step = 8 * quads_;
    float4* to = base_ + place * kVectors * step;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      *to = make_float4(state.largest[n][0], state.largest[n][1], state.sum[n][0], state.sum[n][1]);
      to += step;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const float(&x)[4] = state.acc[n][i];
        *to = make_float4(x[0], x[1], x[2], x[3]);
        to += step;
      }
    }
  }

  /// Adds what lies at `place` to a softmax.
  __device__ void join(int place, Softmax<kDim, kTiles>& state) const {
    if (!has_heads()) return;
    const int step = 8 * quads_;
    const float4* from = base_ + place * kVectors * step;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float4 ml = *from;
      from += step;
      const float first = fmaxf(state.largest[n][0], ml.x);
      const float second = fmaxf(state.largest[n][1], ml.y);
      const float mine[2] = {rescale(state.largest[n][0], first),
                             rescale(state.largest[n][1], second)};
      const float theirs[2] = {rescale(ml.x, first), rescale(ml.y, second)};
      state.largest[n][0] = first;
      state.largest[n][1] = second;
      state.sum[n][0] = state.sum[n][0] * mine[0] + ml.z * theirs[0];
      state.sum[n][1] = state.sum[n][1] * mine[1] + ml.w * theirs[1];
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        const float4 x = *from;
        from += step;
        float(&acc)[4] = state.acc[n][i];
        acc[0] = acc[0] * mine[0] + x.x * theirs[0];
        acc[1] = acc[1] * mine[1] + x.y * theirs[1];
        acc[2] = acc[2] * mine[0] + x.z * theirs[0];
        acc[3] = acc[3] * mine[1] + x.w * theirs[1];
      }
    }
  }

 private:
  __device__ bool has_heads() const { return static_cast<int>(threadIdx.x % 4) < quads_; }

  int quads_;  ///< lanes of four that have heads
  float4* base_;
};

/// The exchange of parts: each float holds kEmpty until it is there, so that nobody needs a flag or
/// a fence. A launch uses one half and empties the other, which the next one uses; thread blocks
/// that have no part empty their places in both.
struct Exchange {
  float4* parts;  ///< [grid, rows, dim / 4]
  float2* ml;     ///< [grid, rows] maximum and sum

  __device__ Exchange(const Arguments& a, int half, int dim)
      : parts(reinterpret_cast<float4*>(a.exchange) +
              static_cast<std::int64_t>(half) * gridDim.x * a.rows * (dim / 4)),
        ml(a.exchange_ml + static_cast<std::int64_t>(half) * gridDim.x * a.rows) {}

  /// Empties the place of thread block `blockIdx.x`.
  __device__ void empty(int rows, int dim) const {
    const float x = __uint_as_float(kEmpty);
    const int size = rows * dim / 4;
#pragma unroll 1
    for (int i = threadIdx.x; i < size; i += kThreads) {
      parts[blockIdx.x * size + i] = make_float4(x, x, x, x);
    }
    if (static_cast<int>(threadIdx.x) < rows) {
      ml[blockIdx.x * rows + threadIdx.x] = make_float2(x, x);
    }
  }
};

/// The four warps' softmaxes become the thread block's part of its head, which the others of the
/// head read; or the result, where it is the only one.
template <class T, int kDim, int kTiles>
__device__ inline void hand_over(const Arguments& a, const Share& share, const Exchange& exchange,
                                 unsigned char* rings, float2 (&warp_ml)[kWarps][16],
                                 const Softmax<kDim, kTiles>& state) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Rows are a little longer, so that columns of a product fall on different banks.
  constexpr int kRow = kDim + 4;
  constexpr int kWarpBytes = Room<kDim, kTiles>::kWarpBytes;
  static_assert(16 * kRow * 4 <= Room<kDim, kTiles>::kRingBytes);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int head = n * 8 + lane % 4 * 2 + e;
      const float sum = reduce_rows(state.sum[n][e], [](float x, float y) { return x + y; });
      if (lane < 4) warp_ml[warp][head] = make_float2(state.largest[n][e], sum);
      if (head >= a.rows) continue;
      float* to = reinterpret_cast<float*>(rings + warp * kWarpBytes) + head * kRow + lane / 4;
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        to[i * 16] = state.acc[n][i][e];
        to[i * 16 + 8] = state.acc[n][i][e + 2];
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int index = threadIdx.x; index < a.rows * kDim / 4; index += kThreads) {
    const int row = index / (kDim / 4);
    const int column = index % (kDim / 4) * 4;
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, warp_ml[w][row].x);
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = rescale(warp_ml[w][row].x, largest);
      const float4 part = *reinterpret_cast<const float4*>(
          reinterpret_cast<const float*>(rings + w * kWarpBytes) + row * kRow + column);
      value.x += part.x * weight;
      value.y += part.y * weight;
      value.z += part.z * weight;
      value.w += part.w * weight;
      sum += warp_ml[w][row].y * weight;
    }
    if (share.shares == 1) {
      store_result<T>(a, share.head, row, column, kDim, value, largest, sum);
    } else {
      store_relaxed(exchange.parts + blockIdx.x * (a.rows * kDim / 4) + index, value);
      if (column == 0) {
        store_relaxed(exchange.ml + blockIdx.x * a.rows + row, make_float2(largest, sum));
      }
    }
  }
}

/// Joins this thread block's share of a head's elements over all parts, in an order that only their
/// number decides: kJoining lanes for each element, two at a time.
template <class T, int kDim>
__device__ inline void join_parts(const Arguments& a, const Share& share,
                                  const Exchange& exchange) {
  constexpr int kGroups = kThreads / kJoining;
  const int lane = threadIdx.x % kJoining;
  const int size = a.rows * kDim / 4;
  const int each = (size + share.shares - 1) / share.shares;
  const int end = min(size, (share.index + 1) * each);
  const int first_part = share.head * share.shares;
  const auto missing = [](const float4& x, const float2& ml) {
    return is_empty(x.x) || is_empty(x.y) || is_empty(x.z) || is_empty(x.w) || is_empty(ml.x) ||
           is_empty(ml.y);
  };
#pragma unroll 1
  for (int base = share.index * each; base < end; base += 2 * kGroups) {
    const int first = base + static_cast<int>(threadIdx.x) / kJoining;
    float4 total[2];
    float largest[2];
    float sum[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      total[e] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      largest[e] = -INFINITY;
      sum[e] = 0.0f;
    }
#pragma unroll 1
    for (int part = lane; part < share.shares; part += kJoining) {
      float4 x[2];
      float2 ml[2];
      bool wait;
      do {
        wait = false;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = first + e * kGroups;
          if (i >= end) continue;
          x[e] = load_relaxed(exchange.parts + (first_part + part) * size + i);
          ml[e] = load_relaxed(exchange.ml + (first_part + part) * a.rows + i / (kDim / 4));
          wait |= missing(x[e], ml[e]);
        }
      } while (wait);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (first + e * kGroups >= end) continue;
        const float top = fmaxf(largest[e], ml[e].x);
        const float before = rescale(largest[e], top);
        const float weight = rescale(ml[e].x, top);
        total[e] = make_float4(
            total[e].x * before + x[e].x * weight, total[e].y * before + x[e].y * weight,
            total[e].z * before + x[e].z * weight, total[e].w * before + x[e].w * weight);
        sum[e] = sum[e] * before + ml[e].y * weight;
        largest[e] = top;
      }
    }
#pragma unroll 1
    for (int e = 0; e < 2; ++e) {  // the second moves to the place of the first
      const int i = first + e * kGroups;
      if (__all_sync(0xffffffffu, i >= end)) break;
      float top = largest[0];
#pragma unroll
      for (int mask = 1; mask < kJoining; mask *= 2) {
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
      }
      const float weight = rescale(largest[0], top);
      float y[5] = {total[0].x * weight, total[0].y * weight, total[0].z * weight,
                    total[0].w * weight, sum[0] * weight};
#pragma unroll
      for (int mask = 1; mask < kJoining; mask *= 2) {
#pragma unroll
        for (float& value : y) value += __shfl_xor_sync(0xffffffffu, value, mask);
      }
      if (i < end && lane == 0) {
        store_result<T>(a, share.head, i / (kDim / 4), i % (kDim / 4) * 4, kDim,
                        make_float4(y[0], y[1], y[2], y[3]), top, y[4]);
      }
      total[0] = total[1];
      largest[0] = largest[1];
      sum[0] = sum[1];
    }
  }
}

template <class T, int kDim, int kTiles>
__global__ void __maxnreg__(Ring<kDim>::kRegistersBeside)
    decode_attention_beside_kernel(const __grid_constant__ Arguments a) {
  using Space = Room<kDim, kTiles>;
  extern __shared__ __align__(1024) unsigned char rings[];
  __shared__ float2 warp_ml[kWarps][16];
  __shared__ unsigned expected_blocks[kWords];  // bits: those of all thread blocks
  __shared__ unsigned listed_blocks[kWords];
  __shared__ std::int32_t added[32 + kWarps * kExpected];
  __shared__ int again[kWarps];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const std::uint32_t ring = shared_address(rings) + warp * Space::kWarpBytes;
  const int tokens = a.cache.lengths[0];
  const DecodeList& list = a.blocks.list;
  const int last_count = list.counts[(tokens & 1) ^ 1];
  const DecodePlan plan = decode_plan(a.blocks.budget, tokens, a.cache.block);
  const int forced = forced_blocks(plan);
  const int window_begin = plan.candidates - plan.window;
  const int split = a.cache.block == kTile ? 0 : 1;  // log2 of the tiles of a block
  const int slices = split + 2;                      // and of its slices

  // Short contexts rather leave thread blocks idle than have more parts to join.
  Share share;
  share.shares =
      max(1, min(static_cast<int>(gridDim.x) / a.units, ((forced + plan.scored) << split) / 2));
  share.head = static_cast<int>(blockIdx.x) / share.shares;
  share.index = static_cast<int>(blockIdx.x) - share.head * share.shares;
  if (share.head >= a.units) {
    Exchange(a, 0, kDim).empty(a.rows, kDim);
    Exchange(a, 1, kDim).empty(a.rows, kDim);
    return;
  }
  const int half = static_cast<int>(a.launches[share.head] & 1u);
  for (int w = threadIdx.x; w * 32 < plan.candidates; w += kThreads) {
    expected_blocks[w] = 0;
    listed_blocks[w] = 0;
  }
  __syncthreads();

  // Entry i of the last list falls to the warps of all thread blocks in turn. It counts if it is
  // neither gone nor forced by now. (Where the forced blocks were others then, some entry more or
  // less is expected.)
  const Shelf<kDim, kTiles> shelf(a, rings + warp * Space::kWarpBytes + Space::kRingBytes);
  const std::int32_t* last = list.blocks + ((tokens & 1) ^ 1) * list.capacity + forced;
  const int turns = kWarps * share.shares;
  const int limit = min(last_count - forced, kExpected * turns);
  const auto entry = [&](int i) {
    const std::int32_t j = i < limit ? last[i] : -1;
    return j >= plan.sink && j < window_begin ? j : -1;
  };
  const int turn = share.index + warp * share.shares;
  const int mine = lane < kExpected ? entry(turn + lane * turns) : -1;
  const int blocks = max(0, min(kExpected, (limit - turn + turns - 1) / turns));

  const auto* k = static_cast<const T*>(a.cache.k) + share.head * a.cache.head_stride;
  const auto* v = static_cast<const T*>(a.cache.v) + share.head * a.cache.head_stride;
  const std::uint64_t policy = read_once_policy();
  const int all_tiles = forced << split;
  int first = share.index * all_tiles / share.shares;
  int team = (share.index + 1) * all_tiles / share.shares - first;  // slices of the warp in tiles
  const int forced_tiles = team;
  int end = team + (blocks << slices);
  // Expected blocks share a softmax with some others: they count together or not at all. That of
  // the last ones stays in registers, the forced blocks' and the others' go to the shelf.
  const int together = max(1, (blocks + shelf.places() - 1) / shelf.places());
  std::uint32_t q[kTiles][kDim / 16][2];
  load_query<T, kDim, kTiles>(a, share.head, q);
  Softmax<kDim, kTiles> state;
  state.reset();
  unsigned gone = 0;  // lanes whose expected block is not on the list
  const int groups = (blocks + together - 1) / together;
  const auto counts = [&](int group) {
    return (gone >> group * together & ((1u << together) - 1u)) == 0;
  };
  // First the forced blocks, of which each warp takes its slices, and its expected ones, whole;
  // then, when the list is there, what is still missing, with up to 32 of its entries at a time.
#pragma unroll 1
  for (int pass = 0;; ++pass) {
    // Of this slice, the next and the one after it: visible tokens. Of the last: where it begins.
    int visible = 0;
    int next_visible = 0;
    int coming = 0;
    std::int64_t at = 0;
    // Slices until a softmax is put aside, and where.
    int left = pass > 0 ? INT_MAX : team > 0 ? team : together << slices;
    int place = team > 0 ? 0 : 1;
#pragma unroll 1
    for (int i = end > 0 ? -2 : -1; i < end; ++i) {
      copy_async_wait<3>();
      __syncwarp();
      const int ahead = i + 2;
      const bool more = ahead < end;
      const int slice = ahead - team;
      if (slice >= 0 && (slice & ((1 << slices) - 1)) != 0) {
        at += kSlice * a.cache.token_stride;  // of the same block
      } else if (more) {
        int j;
        int within = 0;
        if (slice < 0) {
          const int tile = first + ahead;
          const int block = tile >> split;
          within = (tile & split) * kTile + warp * kSlice;
          j = pass > 0            ? added[block]
              : block < plan.sink ? block
                                  : window_begin + block - plan.sink;
        } else {
          j = __shfl_sync(0xffffffffu, mine, slice >> slices);
        }
        coming = 0;
        if (j >= 0) {
          coming = slice < 0 ? tokens - j * a.cache.block - within : kSlice;
          at = (a.cache.pages == nullptr
                    ? static_cast<std::int64_t>(j) * a.cache.block * a.cache.token_stride
                    : a.cache.pages[j] * a.cache.page_stride) +
               within * a.cache.token_stride;
        }
      }
      const std::uint32_t stage = ring + (i & 1) * 2 * Space::kSliceBytes;
      attend_slice<T, kDim, kTiles>(
          state, q, stage, stage + Space::kSliceBytes, visible, a.scale_log2, [&] {
            __syncwarp();
            if (more) copy_slice<T, kDim>(stage, k + at, a.cache.token_stride, coming, policy);
            copy_async_commit();
            copy_async_wait<3>();
            __syncwarp();
          });
      __syncwarp();
      if (more) {
        copy_slice<T, kDim>(stage + Space::kSliceBytes, v + at, a.cache.token_stride, coming,
                            policy);
      }
      copy_async_commit();
      visible = next_visible;
      next_visible = more ? coming : 0;
      if (i < 0) {
        if (i == -2) continue;
        // While the first slices come.
        if (pass == 0) {
          Exchange(a, half ^ 1, kDim).empty(a.rows, kDim);
#pragma unroll 1
          for (int e = threadIdx.x; e < limit; e += kThreads) {
            const int j = entry(e);
            if (j >= 0) atomicOr(expected_blocks + j / 32, 1u << (j & 31));
          }
        } else if (pass == 1) {
          if (groups > 0 && !counts(groups - 1)) state.reset();
#pragma unroll 1
          for (int p = forced_tiles > 0 ? 0 : 1; p < groups; ++p) {
            if (p == 0 || counts(p - 1)) shelf.join(p, state);
          }
        }
        continue;
      }
      if (--left == 0 && i + 1 < end) {
        shelf.put(place++, state);
        state.reset();
        left = together << slices;
      }
    }
    if (pass > 0 && share.index + pass * 32 * share.shares >= plan.scored) break;
    if (pass == 0) {
      let_next_grid_start();
      wait_for_grid_before();
    }
    // Entry i of the list falls to the thread blocks in turn, if nobody expected it.
    const std::int32_t* now = list.blocks + (tokens & 1) * list.capacity + forced;
    const int index = share.index + (pass * 32 + lane) * share.shares;
    const std::int32_t candidate = index < plan.scored ? __ldcg(now + index) : -1;
    unsigned repeat = 0;
    if (pass == 0) {
#pragma unroll 1
      for (int i = threadIdx.x; i < plan.scored; i += kThreads) {
        const std::int32_t j = __ldcg(now + i);
        atomicOr(listed_blocks + j / 32, 1u << (j & 31));
      }
      __syncthreads();
      const bool stays = mine >= 0 && (listed_blocks[mine / 32] >> (mine & 31) & 1u) != 0;
      gone = __ballot_sync(0xffffffffu, mine >= 0 && !stays);
      // What stays, but not what it shared a softmax with.
      repeat = __ballot_sync(0xffffffffu, stays && !counts(lane / together));
      if (lane == 0) again[warp] = __popc(repeat);
    }
    __syncthreads();  // nobody reads the last blocks any more
    const bool is_new =
        candidate >= 0 && (expected_blocks[candidate / 32] >> (candidate & 31) & 1u) == 0;
    const unsigned all_new = __ballot_sync(0xffffffffu, is_new);
    const unsigned before = (1u << lane) - 1u;
    if (warp == 0 && is_new) added[__popc(all_new & before)] = candidate;
    int add = __popc(all_new);
    if (pass == 0) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp && (repeat >> lane & 1u) != 0) added[add + __popc(repeat & before)] = mine;
        add += again[w];
      }
    }
    __syncthreads();
    first = 0;
    team = add << split;
    end = team;
  }
  copy_async_wait<0>();
  __syncwarp();
  const Exchange exchange(a, half, kDim);
  hand_over<T, kDim, kTiles>(a, share, exchange, rings, warp_ml, state);
  if (share.shares == 1) return;
  join_parts<T, kDim>(a, share, exchange);
  // All thread blocks of the head have read the number of this launch before they had a part, and
  // the lanes of this warp have seen all parts. The numbers of all heads stay equal.
  if (share.index == 0 && threadIdx.x == 0) a.launches[share.head] += 1;
}

/// Calls f with the kernel for `rows` query heads of a KV head and its bytes of shared memory.
template <class F>
void visit_beside(Element element, int dim, int rows, F&& f) {
  visit_element(element, [&]<class T>() {
    visit_dim(dim, [&]<int kDim>() {
      if constexpr (Ring<kDim>::kFitsBeside) {
        if (rows <= 8) {
          f(decode_attention_beside_kernel<T, kDim, 1>, Room<kDim, 1>::kBytes);
        } else {
          f(decode_attention_beside_kernel<T, kDim, 2>, Room<kDim, 2>::kBytes);
        }
      }
    });
  });
}

}  // namespace

bool prepare_beside(Element element, int dim, int rows) {
  bool ready = false;
  visit_beside(element, dim, rows, [&](auto kernel, int bytes) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "query of a decode kernel");
    ready = waits_for_grid_before(kernel) &&
            bytes + static_cast<int>(attributes.sharedSizeBytes) <=
                device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (ready) allow_shared_memory(kernel, bytes);
  });
  return ready;
}

void launch_beside(const Arguments& a, int grid, cudaStream_t stream) {
  visit_beside(a.cache.element, a.cache.head_dim, a.rows, [&](auto kernel, int bytes) {
    launch_early(kernel, dim3(static_cast<unsigned>(grid)), kThreads, bytes, stream, true, a);
  });
}

}  // namespace sw::cuda::decode
