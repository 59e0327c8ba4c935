#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/common/decode/launch.hpp"
#include "kernels/cuda/common/decode/plan.cuh"
#include "kernels/cuda/common/decode/ptx.cuh"
#include "kernels/cuda/common/decode/rank.cuh"
#include "kernels/cuda/common/decode/selector.hpp"
#include "kernels/cuda/common/decode/selector_host.hpp"
#include "kernels/cuda/common/decode/sketch.cuh"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

// Most of the kernel's instructions run once in each thread, and come from memory when they do:
// what is unrolled has to be worth its bytes.
constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueryRows = 128;  ///< window queries that a task scores
constexpr int kTaskKeys = 128;   ///< blocks that a task scores at most
constexpr int kQueryWarps = 4;   ///< a warp scores 32 of the queries
constexpr int kKeyParts = 4;     ///< and one of these parts of the keys
constexpr int kQueryTiles = kQueryRows / kQueryWarps / 16;
constexpr int kKeyTiles = kTaskKeys / kKeyParts / 8;
constexpr int kColumns = 16;            ///< columns of A that a pass multiplies
constexpr int kColumnPad = 32;          ///< elements between columns in shared memory
constexpr float kRowScale = 16384.0f;   ///< stored sum of a new row of A
constexpr float kRowLimit = 32768.0f;   ///< a row with a larger sum is divided by 4
constexpr float kStateScale = 0x1p28f;  ///< walk states are multiplied by this over a row's sum

struct Arguments {
  KvCache cache;
  const void* q;
  DecodeBudget budget;
  int num_heads;
  int group;
  int window;
  int capacity;   ///< blocks, a multiple of 64: the length of a column of A
  int max_keys;   ///< room for the keys of a task
  int max_tasks;  ///< room for statistics, tasks of a sequence
  int rank;       ///< stored length of a transformed vector
  int dim_used;   ///< r
  bool exact;
  bool partial_mean;
  bool walks;
  float damping;
  int degree;
  float logit_scale_log2;
  int blocks_per_sequence;
  int resident;
  int stage_bytes;
  int key_buffers;    ///< tasks whose keys have room
  int early_columns;  ///< columns of A that come to L2 at the start, of those of a thread block
  int row_groups;     ///< of the window queries of a KV head, 128 each
  int addends;        ///< of a block's sum: tasks that score it, one for each KV head and row group
  int task_share;     ///< thread blocks for each
  int count_shift;    ///< a sum counts its addends from this bit on
  double fixed_point;
  DeviceSketch sketch;
  __half* transition;
  double* row_sum;
  float* row_sum_rounded;
  float* column;
  float* row;
  __half* queries;
  __half* keys;
  const float* key_origin;
  float* key_sum;
  float* stats;
  unsigned long long* sums;
  float* states;
  unsigned long long* kept;
  unsigned* launches;
  float* scores;
  std::int32_t* blocks;
  std::int32_t* counts;
  std::int32_t* faults;
};

/// Part of the kernel's work on one sequence that does not change within a step.
struct Step {
  int sequence;
  int member;  ///< thread block of the sequence
  int members;
  int tokens;   ///< n
  int blocks;   ///< b
  int current;  ///< c
  float alpha;
  bool grown;   ///< the step is the first of its block
  int parity;   ///< where this step writes what is kept twice; it reads the other
  int half;     ///< of the exchange memory that this launch uses; it clears the other
  int queries;  ///< filled slots of the window
  int slot;     ///< of this token's queries
  // Scores: a task is up to 128 window queries of one KV head against `task_keys` blocks.
  int task_keys;
  int chunks;  ///< tasks along the keys
  int tasks;
  // Walk: columns [column_begin, column_end) of A belong to this thread block.
  int column_begin;
  int column_end;
};

/// x / y for 0 <= x < 2^20: the quotient is off by less than 2^-21 of itself, and half of 1 / y
/// away from a whole number. A division of integers is many more instructions.
__device__ inline int quotient(int x, int y) {
  return static_cast<int>(__fdividef(static_cast<float>(x) + 0.5f, static_cast<float>(y)));
}

__device__ inline Step make_step(const Arguments& a) {
  Step s;
  s.members = a.blocks_per_sequence;
  s.sequence = blockIdx.y;
  s.member = blockIdx.x;
  // Both loads ahead of what needs one.
  s.tokens = __ldcg(a.cache.lengths + s.sequence);
  unsigned launches = __ldcg(a.launches + s.sequence);
  asm volatile("" : "+r"(s.tokens), "+r"(launches));
  s.blocks = (s.tokens + a.cache.block - 1) >> (a.cache.block == 64 ? 6 : 7);
  s.current = s.blocks - 1;
  const int step = (s.tokens - 1) & (a.cache.block - 1);
  s.grown = step == 0;
  s.alpha = s.grown ? 1.0f : __fdividef(1.0f, static_cast<float>(step + 1));
  s.parity = s.tokens & 1;
  s.half = static_cast<int>(launches & 1u);
  s.queries = min(a.window, s.tokens);
  s.slot = (s.tokens - 1) % a.window;
  // As many keys a task that every thread block has one, if that is possible.
  s.task_keys = min(a.max_keys, 16 * quotient(s.blocks + 16 * a.task_share - 1, 16 * a.task_share));
  s.chunks = quotient(s.blocks + s.task_keys - 1, s.task_keys);
  s.tasks = a.addends * s.chunks;
  const int columns = quotient(s.blocks + s.members - 1, s.members);
  s.column_begin = min(s.member * columns, s.blocks);
  s.column_end = min(s.column_begin + columns, s.blocks);
  return s;
}

// How the thread blocks of one sequence tell each other results: each is written once, to its own
// place, which holds kEmpty until then, and whoever needs it reads the place until it holds
// something else. So a result needs no flag, no fence and no barrier, and comes a write and a read
// later. A launch uses one half of this memory and empties the other, which the next one uses.

__device__ inline std::int64_t exchange_base(const Arguments& a, const Step& s, int half,
                                             int per_sequence) {
  return (static_cast<std::int64_t>(half) * a.cache.batch + s.sequence) * per_sequence;
}
__device__ inline float* exchange_stats(const Arguments& a, const Step& s) {
  return a.stats + exchange_base(a, s, s.half, a.max_tasks * kQueryRows * 2);
}
__device__ inline unsigned long long* exchange_sums(const Arguments& a, const Step& s) {
  return a.sums + exchange_base(a, s, s.half, a.capacity);
}
__device__ inline float* exchange_state(const Arguments& a, const Step& s, int step) {
  return a.states + exchange_base(a, s, s.half, a.degree * a.capacity) + step * a.capacity;
}

/// Empties the half that the next launch uses: `threads` of each thread block share it.
__device__ void empty_exchange(const Arguments& a, const Step& s, int thread, int threads) {
  const int other = s.half ^ 1;
  const int step = s.members * threads;
  const auto fill = [&](std::uint32_t* words, int count, std::uint32_t value) {
#pragma unroll 1
    for (int i = s.member * threads + thread; i < count / 4; i += step) {
      reinterpret_cast<uint4*>(words)[i] = make_uint4(value, value, value, value);
    }
  };
  const int stats = a.max_tasks * kQueryRows * 2;
  fill(reinterpret_cast<std::uint32_t*>(a.stats + exchange_base(a, s, other, stats)), stats,
       kEmpty);
  fill(reinterpret_cast<std::uint32_t*>(a.sums + exchange_base(a, s, other, a.capacity)),
       2 * a.capacity, 0u);
  const int states = a.walks ? a.degree * a.capacity : 0;
  fill(reinterpret_cast<std::uint32_t*>(a.states + exchange_base(a, s, other, states)), states,
       kEmpty);
  if (s.member == 0 && thread == 0) a.kept[other * a.cache.batch + s.sequence] = 0;
}

/// use(i, values i..i+3) for the `count` results at `from`, four at a time; those past the end are
/// anything.
template <class Use>
__device__ inline void gather(const float* from, int count, Use&& use) {
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < count; i += 4 * kThreads) {
    float4 v;
    do {
      v = load_relaxed(reinterpret_cast<const float4*>(from + i));
    } while (is_empty(v.x) || (i + 1 < count && is_empty(v.y)) ||
             (i + 2 < count && is_empty(v.z)) || (i + 3 < count && is_empty(v.w)));
    use(i, v);
  }
}

/// Element offset of 16-byte chunk `chunk` of row `row`, rows of `rank` f16. Queries and keys are
/// kept in this order in global memory, too, where rows count from the KV head's first: tiles begin
/// at even rows, so that a copy keeps the order.
__device__ inline int swizzled(int row, int chunk, int rank) {
  return row * rank + ((rank >= 64 ? chunk ^ ((row & 1) << 2) : chunk) << 3);
}

/// Element j of a row, by the same layout.
__device__ inline int swizzled_element(int row, int j, int rank) {
  return swizzled(row, j >> 3, rank) + (j & 7);
}

/// The task's window queries and keys in shared memory.
struct Tiles {
  __half* queries;
  __half* keys;
  float* scratch;
};

struct Task {
  int head;       ///< KV head
  int row_begin;  ///< first of its group * window query rows
  int key_begin;
  int keys;
};

__device__ inline Task make_task(const Arguments& a, const Step& s, int index) {
  Task t;
  const int rest = quotient(index, s.chunks);
  const int chunk = index - rest * s.chunks;
  t.head = quotient(rest, a.row_groups);
  t.row_begin = (rest - t.head * a.row_groups) * kQueryRows;
  t.key_begin = chunk * s.task_keys;
  t.keys = min(s.task_keys, s.blocks - t.key_begin);
  return t;
}

/// Starts copies of rows [begin, end) of a tile but `skipped` by `threads` threads.
__device__ inline void start_rows(const Arguments& a, const __half* from, __half* to, int begin,
                                  int end, int skipped, int thread, int threads) {
  const int shift = __ffs(a.rank) - 4;  // rank / 8 chunks of 16 bytes a row, a power of two
#pragma unroll 2
  for (int i = (begin << shift) + thread; i < end << shift; i += threads) {
    if (i >> shift != skipped) copy_async_16(to + i * 8, from + i * 8, true);
  }
}

/// The task's first key, as stored.
__device__ inline __half* first_key(const Arguments& a, const Step& s, const Task& t) {
  const std::int64_t head = static_cast<std::int64_t>(s.sequence) * a.cache.kv_heads + t.head;
  return a.keys + (head * a.capacity + t.key_begin) * a.rank;
}

constexpr int kTransforming = 8;  ///< warps that make what is new in a task

/// Half of the warps make what is new in a task, the queries of this token and the mean of the
/// current block with this token's key, whose loads come first of all: the row of the cache is the
/// coldest memory of a step. The others start the copies of the task's queries and keys and call
/// afterwards(thread, threads). Does not wait for the copies. The thread block goes on with the
/// keys up to `key_end` of the same head, and finds the current block's in memory then.
template <class T, int kDim, class Afterwards>
__device__ void load_task(const Arguments& a, const Step& s, const Task& t, int key_end,
                          const SketchLane<kDim>& sketch, const Tiles& tiles,
                          Afterwards&& afterwards) {
  constexpr int kCopying = kThreads - 32 * kTransforming;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  __half* const keys = first_key(a, s, t);
  __half* const queries =
      a.queries +
      ((static_cast<std::int64_t>(s.sequence) * a.num_heads + t.head * a.group) * a.window +
       t.row_begin) *
          a.rank;
  const int slot = s.slot;
  const int head_begin = quotient(t.row_begin, a.window);
  const int head_end = min(quotient(t.row_begin + kQueryRows + a.window - 1, a.window), a.group);
  if (warp >= kTransforming) {
    const int thread = static_cast<int>(threadIdx.x) - 32 * kTransforming;
    start_rows(a, keys, tiles.keys, 0, t.keys, s.current - t.key_begin, thread, kCopying);
#pragma unroll 1
    for (int h = head_begin; h < head_end; ++h) {
      const int row = h * a.window - t.row_begin;
      start_rows(a, queries, tiles.queries, max(row, 0), min(row + a.window, kQueryRows),
                 row + slot, thread, kCopying);
    }
    copy_async_commit();
    afterwards(thread, kCopying);
    return;
  }

  // Vectors that are new, one a warp: the key (number 0), and the query heads of this task.
  constexpr int kEach = kDim / 32;
  float* buffer = tiles.scratch + warp * kDim;
#pragma unroll 1
  for (int vector = warp; vector <= head_end - head_begin; vector += kTransforming) {
    const bool is_key = vector == 0;
    const int h = head_begin + vector - 1;
    const int row = is_key ? s.current - t.key_begin : h * a.window + slot - t.row_begin;
    if (is_key ? row < 0 || s.current >= key_end : row < 0 || row >= kQueryRows) {
      continue;  // another task's
    }
    const T* source = nullptr;
    if (is_key) {
      const int token = s.tokens - 1;
      const int within = token - s.current * a.cache.block;
      source = static_cast<const T*>(a.cache.k) + t.head * a.cache.head_stride;
      source +=
          a.cache.pages != nullptr
              ? a.cache.pages[s.sequence * a.cache.pages_stride + s.current] * a.cache.page_stride +
                    within * a.cache.token_stride
              : s.sequence * a.cache.sequence_stride + token * a.cache.token_stride;
    } else {
      source = static_cast<const T*>(a.q) +
               (static_cast<std::int64_t>(s.sequence) * a.num_heads + t.head * a.group + h) * kDim;
    }
    const std::int64_t head =
        (static_cast<std::int64_t>(s.sequence) * a.cache.kv_heads + t.head) * kDim + lane;
    const std::int64_t sum_plane =
        static_cast<std::int64_t>(a.cache.batch) * a.cache.kv_heads * kDim;
    // All loads go ahead of what needs one.
    T raw[kEach];
    float x[kEach];
    float sum[kEach];
    float origin[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) raw[e] = source[e * 32 + lane];
    if (is_key) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        sum[e] = __ldcg(a.key_sum + (s.parity ^ 1) * sum_plane + head + e * 32);
        origin[e] = a.key_origin[head + e * 32];
      }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) x[e] = widen(raw[e]);
    if (is_key) {
      const int present = s.tokens - s.current * a.cache.block;
      const auto divisor = static_cast<float>(a.partial_mean ? present : a.cache.block);
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if (!s.grown) x[e] += sum[e];
        a.key_sum[s.parity * sum_plane + head + e * 32] = x[e];
        x[e] = __fdividef(x[e], divisor) - origin[e];
      }
    }
    transform<kDim>(a.sketch.exact, sketch, x, buffer);
    __half* shared = (is_key ? tiles.keys : tiles.queries);
    __half* global = is_key ? keys : queries;
    const bool keeps = is_key || t.key_begin == 0;
    const bool shares = !is_key || row < t.keys;
#pragma unroll 1
    for (int i = lane; i < a.rank; i += 32) {
      const __half y = __float2half_rn(i < kDim ? buffer[i] : 0.0f);
      const int at = swizzled_element(row, i, a.rank);
      if (shares) shared[at] = y;
      if (keeps) global[at] = y;
    }
  }
}

/// Of this warp's queries and its part of the keys: [i][tile] of queries 16 i + lane / 4 and that
/// + 8, keys 8 tile + lane % 4 * 2 and the next.
using Products = float[kQueryTiles][kKeyTiles][4];

__device__ inline void score_task(const Arguments& a, const Task& t, const Tiles& tiles,
                                  Products& s) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int row = warp % kQueryWarps * (16 * kQueryTiles) + lane / 4;
  const int first_key = warp / kQueryWarps * (8 * kKeyTiles);
#pragma unroll
  for (int i = 0; i < kQueryTiles; ++i) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[i][tile][e] = 0.0f;
    }
  }
  if (first_key < t.keys) {
    const int step = 8 * a.rank;
#pragma unroll 1
    for (int pair = 0; pair < a.rank / 32; ++pair) {
      // 32 elements in two steps; which element is which k of the product does not matter as long
      // as both sides agree, so each lane takes 8 in a row. Rows 8 apart are swizzled alike.
      const int chunk = pair * 4 + lane % 4;
      const __half* query = tiles.queries + swizzled(row, chunk, a.rank);
      const __half* key = tiles.keys + swizzled(first_key + lane / 4, chunk, a.rank);
      uint4 q[2 * kQueryTiles];
#pragma unroll
      for (int i = 0; i < 2 * kQueryTiles; ++i) {
        q[i] = *reinterpret_cast<const uint4*>(query + i * step);
      }
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        if (tile == kKeyTiles / 2 && first_key + tile * 8 >= t.keys) break;
        const uint4 b = *reinterpret_cast<const uint4*>(key + tile * step);
#pragma unroll
        for (int i = 0; i < kQueryTiles; ++i) {
          const uint4 top = q[2 * i];
          const uint4 bottom = q[2 * i + 1];
          const std::uint32_t low[4] = {top.x, bottom.x, top.y, bottom.y};
          const std::uint32_t high[4] = {top.z, bottom.z, top.w, bottom.w};
          mma_16x8x16<__half>(s[i][tile], low, b.x, b.y);
          mma_16x8x16<__half>(s[i][tile], high, b.z, b.w);
        }
      }
    }
  }
  const int limit = t.keys - first_key;
  if (limit < 8 * kKeyTiles) {  // what the rows past the task's keys give does not count
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (tile * 8 + lane % 4 * 2 + (e & 1) >= limit) {
#pragma unroll
          for (int i = 0; i < kQueryTiles; ++i) s[i][tile][e] = -INFINITY;
        }
      }
    }
  }
}

/// Of each of the 128 queries, over keys of the task.
struct Statistics {
  float largest[kKeyParts][kQueryRows];
  float sum[kKeyParts][kQueryRows];
  float2 total[kQueryRows];  ///< over all tasks: largest, what exponentials are multiplied by
  float key[kQueryWarps][kTaskKeys];  ///< probability of a key, over a warp's queries
};

/// Query of a Products row: `half` of tile i.
__device__ inline int query_of(int i, int half) {
  return static_cast<int>(threadIdx.x) / 32 % kQueryWarps * (16 * kQueryTiles) + i * 16 + half * 8 +
         static_cast<int>(threadIdx.x) % 32 / 4;
}

/// Turns a warp's products into exp2(logit - m), a logit being `scale` times a product and m the
/// largest of each query; m and the sums go to the statistics.
__device__ inline void exponentiate(float scale, Products& s, Statistics& statistics) {
  const int lane = threadIdx.x % 32;
  const int part = static_cast<int>(threadIdx.x) / 32 / kQueryWarps;
#pragma unroll
  for (int row = 0; row < 2 * kQueryTiles; ++row) {
    auto& tiles = s[row / 2];
    const int half = row % 2;
    float m = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      m = fmaxf(m, fmaxf(tiles[tile][2 * half], tiles[tile][2 * half + 1]));
    }
    m = scale * reduce_quad(m, [](float x, float y) { return fmaxf(x, y); });
    const float from = m == -INFINITY ? 0.0f : m;  // a warp without keys
    float sum = 0.0f;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        const float p = exp2_fast(fmaf(tiles[tile][e], scale, -from));
        sum += p;
        tiles[tile][e] = fminf(p, 1.0f);  // of NaN 1, which a weight of 0 removes
      }
    }
    sum = reduce_quad(sum, [](float x, float y) { return x + y; });
    if (lane % 4 == 0) {
      statistics.largest[part][query_of(row / 2, half)] = m;
      statistics.sum[part][query_of(row / 2, half)] = sum;
    }
  }
}

/// Tells the other tasks of the head the maximum and sum of each query over the task's keys.
__device__ inline void publish_statistics(const Arguments& a, const Step& s, int task,
                                          const Statistics& statistics) {
  const int query = threadIdx.x;
  if (query >= kQueryRows) return;
  float largest = -INFINITY;
#pragma unroll
  for (int part = 0; part < kKeyParts; ++part) {
    largest = fmaxf(largest, statistics.largest[part][query]);
  }
  float sum = 0.0f;
#pragma unroll
  for (int part = 0; part < kKeyParts; ++part) {
    sum += statistics.sum[part][query] * exp2_fast(statistics.largest[part][query] - largest);
  }
  store_relaxed(reinterpret_cast<float2*>(exchange_stats(a, s)) + task * kQueryRows + query,
                make_float2(largest, sum));
}

/// Finds the totals of the task's queries over all tasks of the head, whose statistics it waits
/// for. A query that the window does not have, or whose logits are not finite, which is a fault, is
/// multiplied by 0. A barrier has to follow.
__device__ inline void find_totals(const Arguments& a, const Step& s, const Task& t, int task,
                                   Statistics& statistics) {
  constexpr int kLanes = kThreads / kQueryRows;  // for each query
  constexpr int kBatch = 4;
  const int query = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int row = t.row_begin + query;
  const bool counts =
      row < a.group * a.window && row - quotient(row, a.window) * a.window < s.queries;
  const auto* parts = reinterpret_cast<const float2*>(exchange_stats(a, s)) +
                      quotient(task, s.chunks) * s.chunks * kQueryRows + query;
  float2 all = make_float2(-INFINITY, 0.0f);
#pragma unroll 1
  for (int chunk = lane; counts && chunk < s.chunks; chunk += kLanes * kBatch) {
    float2 part[kBatch];
    bool missing;
    do {
      missing = false;
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int from = chunk + k * kLanes;
        part[k] = make_float2(-INFINITY, 0.0f);
        if (from < s.chunks) part[k] = load_relaxed(parts + from * kQueryRows);
        missing |= is_empty(part[k].x) || is_empty(part[k].y);
      }
    } while (missing);
    float largest = all.x;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) largest = fmaxf(largest, part[k].x);
    all.y *= exp2_fast(all.x - largest);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) all.y += part[k].y * exp2_fast(part[k].x - largest);
    all.x = largest;
  }
  __syncwarp();
  static_assert(kLanes == 4);
  const float largest = reduce_quad(all.x, [](float x, float y) { return fmaxf(x, y); });
  const float sum =
      reduce_quad(all.y * exp2_fast(all.x - largest), [](float x, float y) { return x + y; });
  if (lane != 0) return;
  const bool good = sum >= 0.5f && sum < INFINITY;  // 1 or more, but for the rounding
  if (counts && !good) a.faults[s.sequence] = 1;
  statistics.total[query] =
      good ? make_float2(largest, __fdividef(1.0f, sum)) : make_float2(0.0f, 0.0f);
}

/// Adds a warp's probabilities v, each summed over the lane's queries, to the fixed-point sums of
/// the task's blocks: v[2 i], v[2 i + 1] of keys 8 i + lane % 4 * 2 and the next of its part.
__device__ inline void add_probabilities(const Arguments& a, const Step& s, const Task& t,
                                         float (&v)[2 * kKeyTiles], Statistics& statistics) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Over the queries of the 8 lanes with the same keys; each ends with one key.
  static_assert(2 * kKeyTiles == 8);
  int mine = 0;
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const int mask = 16 >> step;
    const int half = kKeyTiles >> step;
    const bool upper = (lane & mask) != 0;
    mine += upper ? half : 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float send = upper ? v[i] : v[i + half];
      const float keep = upper ? v[i + half] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, send, mask);
    }
  }
  statistics.key[warp % kQueryWarps]
                [(warp / kQueryWarps * kKeyTiles + mine / 2) * 8 + lane % 4 * 2 + mine % 2] = v[0];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < t.keys) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kQueryWarps; ++w) total += statistics.key[w][threadIdx.x];
    const auto fixed =
        static_cast<unsigned long long>(static_cast<double>(total) * a.fixed_point + 0.5);
    atomicAdd(exchange_sums(a, s) + t.key_begin + threadIdx.x, fixed + (1ull << a.count_shift));
  }
}

/// The columns of A that this thread block owns; the first `resident` of them in shared memory.
struct Columns {
  __half* shared;
  __half* global;  ///< column 0 of the sequence
  int begin;
  int resident;
  int capacity;

  __device__ bool is_shared(int j) const { return j - begin < resident; }
  __device__ __half* column(int j) const {
    return is_shared(j) ? shared + (j - begin) * (capacity + kColumnPad)
                        : global + static_cast<std::int64_t>(j) * capacity;
  }
  __device__ void store(int j, int i, __half value) const {
    global[static_cast<std::int64_t>(j) * capacity + i] = value;
    if (is_shared(j)) shared[(j - begin) * (capacity + kColumnPad) + i] = value;
  }
  /// Rows i to i + 3, i a multiple of 4.
  __device__ void store(int j, int i, uint2 four) const {
    *reinterpret_cast<uint2*>(global + static_cast<std::int64_t>(j) * capacity + i) = four;
    if (is_shared(j)) {
      *reinterpret_cast<uint2*>(shared + (j - begin) * (capacity + kColumnPad) + i) = four;
    }
  }
};

/// What the walk needs of each block, in shared memory.
struct Vectors {
  float* row;    ///< a, the new row of A (sum 1)
  float* scale;  ///< kStateScale / stored sum of row i; at last the scores
  float* x;  ///< [2, capacity] f16, scale times walk state: rounded, and what that left; at last
             ///< the scores of the blocks that compete

  __device__ __half* high() const { return reinterpret_cast<__half*>(x); }
  __device__ void store_state(int i, int capacity, float value) const {
    const __half rounded = __float2half_rn(value);
    high()[i] = rounded;
    high()[capacity + i] = __float2half_rn(value - __half2float(rounded));
  }
  /// The same of rows i to i + 3, i a multiple of 4; 0 from row `end` on.
  __device__ void store_states(int i, int end, int capacity, const float (&value)[4]) const {
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = i + e < end ? value[e] : 0.0f;
    const __half2 low = __floats2half2_rn(v[0], v[1]);
    const __half2 top = __floats2half2_rn(v[2], v[3]);
    __half2* to = reinterpret_cast<__half2*>(high() + i);
    to[0] = low;
    to[1] = top;
    const float2 x = __half22float2(low);
    const float2 y = __half22float2(top);
    to += capacity / 2;
    to[0] = __floats2half2_rn(v[0] - x.x, v[1] - x.y);
    to[1] = __floats2half2_rn(v[2] - y.x, v[3] - y.y);
  }
};

/// Waits for the sum of block i and its three neighbours (those past the last block are anything):
/// their scores.
__device__ inline float4 gather_scores(const Arguments& a, const Step& s,
                                       const unsigned long long* sums, int i, float unit) {
  ulonglong2 low;
  ulonglong2 high;
  const auto partial = [&](int k, unsigned long long sum) {
    return i + k < s.blocks && static_cast<int>(sum >> a.count_shift) != a.addends;
  };
  do {
    low = load_relaxed(reinterpret_cast<const ulonglong2*>(sums + i));
    high = load_relaxed(reinterpret_cast<const ulonglong2*>(sums + i + 2));
  } while (partial(0, low.x) || partial(1, low.y) || partial(2, high.x) || partial(3, high.y));
  const unsigned long long mask = (1ull << a.count_shift) - 1;
  const auto score = [&](unsigned long long sum) { return static_cast<float>(sum & mask) * unit; };
  return make_float4(score(low.x), score(low.y), score(high.x), score(high.y));
}

/// A[i, c] and the sum of row i, as stored, in this step (section 5, step 3).
struct RowChange {
  float entry;
  float sum;
  float added;  ///< to the sum; row c: the sum
  bool shrunk;  ///< the whole row, to a quarter
};

/// Old and new value of an entry of row or column c.
__device__ inline float blend(const Step& s, float old, float fresh) {
  return (1.0f - s.alpha) * old + s.alpha * fresh;  // `fresh` when the block is new: alpha is 1
}

/// A row other than c, before it may shrink: `old` and `sum` as stored by the step before, `score`
/// of its block.
__device__ inline RowChange change_other_row(const Step& s, float old, float sum, float score) {
  if (s.grown) old = 0.0f;
  RowChange change;
  change.entry = blend(s, old, score * sum);
  change.added = change.entry - old;
  change.sum = sum + change.added;
  return change;
}

/// Any row; of row c `old` is its entry c.
__device__ inline RowChange change_row(const Step& s, int i, float old, float sum, float score) {
  RowChange change;
  if (i == s.current) {
    // Its entry in column c is blended a second time, and the row normalised once more.
    const float once = blend(s, old, score);
    const float twice = blend(s, once, score);
    change.entry = kRowScale * twice;
    change.added = change.sum = kRowScale * (1.0f - once + twice);
  } else {
    change = change_other_row(s, old, sum, score);
  }
  change.shrunk = change.sum > kRowLimit;
  if (change.shrunk) {
    change.entry *= 0.25f;
    change.sum *= 0.25f;
  }
  return change;
}

/// Where the state that a step reads and the one that it writes begin.
struct Kept {
  std::int64_t in;
  std::int64_t out;

  __device__ Kept(const Arguments& a, const Step& s) {
    const std::int64_t plane = static_cast<std::int64_t>(a.cache.batch) * a.capacity;
    const std::int64_t base = static_cast<std::int64_t>(s.sequence) * a.capacity;
    in = (s.parity ^ 1) * plane + base;
    out = s.parity * plane + base;
  }
};

/// The state that a step reads of a thread's own block, ahead of its use.
struct Own {
  float before;  ///< A[c, c]
  float row;     ///< A[c, i]
  float column;
  float rounded;
  double sum;
};

__device__ inline Own load_own(const Arguments& a, const Step& s, int i) {
  const Kept kept(a, s);
  return {__ldcg(a.row + kept.in + s.current), __ldcg(a.row + kept.in + i),
          __ldcg(a.column + kept.in + i), __ldcg(a.row_sum_rounded + kept.in + i),
          __ldcg(a.row_sum + kept.in + i)};
}

/// The new row of A from the fixed-point sums, row and column c where this thread block holds them,
/// and the scale of each row. Everybody derives the scale of every row.
__device__ void update_transition(const Arguments& a, const Step& s, const Columns& columns,
                                  float unit, const Own& own, const Vectors& to) {
  const Kept kept(a, s);
  const unsigned long long* all = exchange_sums(a, s);
  const bool has_current = s.current >= s.column_begin && s.current < s.column_end;
  const int mine = s.column_begin + static_cast<int>(threadIdx.x);
  bool shrinks = false;
#pragma unroll 1
  for (int first = static_cast<int>(threadIdx.x) * 4; first < s.blocks; first += 4 * kThreads) {
    float old[4];
    float sum[4];
    float score[4];
    *reinterpret_cast<float4*>(sum) =
        __ldcg(reinterpret_cast<const float4*>(a.row_sum_rounded + kept.in + first));
    *reinterpret_cast<float4*>(old) =
        __ldcg(reinterpret_cast<const float4*>(a.column + kept.in + first));
    *reinterpret_cast<float4*>(score) = gather_scores(a, s, all, first, unit);
    float entry[4];
    float scale[4];
    float state[4];
    unsigned others = 0;  // row c, and rows that get too large
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const RowChange change = change_other_row(s, old[e], sum[e], score[e]);
      if (first + e == s.current || change.sum > kRowLimit) others |= 1u << e;
      entry[e] = change.entry;
      scale[e] = __fdividef(kStateScale, change.sum);
      state[e] = score[e] * scale[e];
    }
    *reinterpret_cast<float4*>(to.row + first) = *reinterpret_cast<const float4*>(score);
    *reinterpret_cast<float4*>(to.scale + first) = *reinterpret_cast<const float4*>(scale);
    to.store_states(first, s.blocks, a.capacity, state);
    if (has_current) {
      columns.store(
          s.current, first,
          make_uint2(pack_pair<__half>(entry[0], entry[1]), pack_pair<__half>(entry[2], entry[3])));
    }
#pragma unroll 1
    for (; others != 0; others &= others - 1) {
      const int i = first + __ffs(static_cast<int>(others)) - 1;
      if (i >= s.blocks) break;
      const bool current = i == s.current;
      const RowChange change =
          change_row(s, i, current ? own.before : __ldcg(a.column + kept.in + i),
                     current ? 0.0f : __ldcg(a.row_sum_rounded + kept.in + i), to.row[i]);
      to.scale[i] = __fdividef(kStateScale, change.sum);
      to.store_state(i, a.capacity, to.row[i] * to.scale[i]);
      if (has_current) columns.store(s.current, i, __float2half_rn(change.entry));
      shrinks |= change.shrunk;
    }
  }
  // The walk multiplies 32 rows at a time.
  for (int i = (s.blocks + 3) / 4 * 4 + threadIdx.x; i < (s.blocks + 31) / 32 * 32; i += kThreads) {
    to.store_state(i, a.capacity, 0.0f);
    if (has_current) columns.store(s.current, i, __half{});
  }
  copy_async_wait<0>();
  const bool any_shrinks = __syncthreads_or(shrinks) != 0;
  // What is new in the other columns: row c, and rows that shrink, which is rare.
#pragma unroll 1
  for (int i = mine; i < s.column_end; i += kThreads) {
    const float old = i == mine ? own.row : __ldcg(a.row + kept.in + i);
    if (i != s.current) {
      columns.store(i, s.current, __float2half_rn(kRowScale * blend(s, old, to.row[i])));
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x; any_shrinks && i < s.blocks; i += kThreads) {
    if (i == s.current || !change_row(s, i, __ldcg(a.column + kept.in + i),
                                      __ldcg(a.row_sum_rounded + kept.in + i), to.row[i])
                               .shrunk) {
      continue;
    }
#pragma unroll 1
    for (int j = s.column_begin; j < s.column_end; ++j) {
      if (j != s.current) {
        columns.store(j, i, __float2half_rn(__half2float(columns.column(j)[i]) * 0.25f));
      }
    }
  }
  __syncthreads();
}

/// Stores what this thread block owns of the state of the next step, from the scores.
__device__ void keep_transition(const Arguments& a, const Step& s, Own own, const float* scores) {
  const Kept kept(a, s);
  const float once = blend(s, own.before, scores[s.current]);
  const float twice = blend(s, once, scores[s.current]);
#pragma unroll 1
  for (int i = s.column_begin + threadIdx.x; i < s.column_end;) {
    const bool current = i == s.current;
    const RowChange change =
        change_row(s, i, current ? own.before : own.column, own.rounded, scores[i]);
    double sum = change.added;
    if (!current) sum += own.sum;
    if (change.shrunk) sum *= 0.25;
    a.row_sum[kept.out + i] = sum;
    a.row_sum_rounded[kept.out + i] = static_cast<float>(sum);
    a.column[kept.out + i] = change.entry;
    const float fresh = current ? twice : blend(s, own.row, scores[i]);
    a.row[kept.out + i] = __fdividef(fresh, 1.0f - once + twice);
    i += kThreads;
    if (i < s.column_end) own = load_own(a, s, i);
  }
}

/// A warp multiplies the rows whose entries of x its own lanes have stored, four a lane.
constexpr int kWarpRows = 128;

/// sum over i of x[i] A[i, j] for `count` columns, the first at `from`, 16 in a pass: use(column,
/// sum) is called by one thread for each. The loads of a pass go ahead of the sums of the one
/// before. `pass` counts passes, for the scratch. Backward, what was read last is read first, and
/// is still in L2. The two parts of x are rows 0 and 1 of a matrix product.
template <bool kShared, class Use>
__device__ inline void multiply_columns(const __half* from, int stride, int count, int blocks,
                                        const __half* x, int capacity, bool backward, int& pass,
                                        float (&scratch)[2][kWarps][kColumns], Use&& use) {
  constexpr int kSteps = kWarpRows / 32;
  constexpr int kSpan = kWarps * kWarpRows;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int step = backward ? -kColumns : kColumns;
  int left = (count + kColumns - 1) / kColumns;  // passes that have not begun to load
  int next = backward ? (left - 1) * kColumns : 0;
  int next_span = 0;
  int first = 0;
  int span = -1;  // nothing is loaded
  uint4 b[kSteps][2];
  float sum[2][2][4] = {};
#pragma unroll 1
  while (true) {
    // Which row is which k of the product does not matter as long as both sides agree.
    const int mine = warp * kWarpRows + lane % 4 * 8;
    if (span >= 0) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        if (span + warp * kWarpRows + k * 32 >= blocks) break;
        uint4 rows = make_uint4(0, 0, 0, 0);
        if (lane < 8) {
          rows = *reinterpret_cast<const uint4*>(x + lane / 4 * capacity + span + mine + k * 32);
        }
        const std::uint32_t low[4] = {rows.x, 0, rows.y, 0};
        const std::uint32_t high[4] = {rows.z, 0, rows.w, 0};
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          mma_16x8x16<__half>(sum[tile][0], low, b[k][tile].x, b[k][tile].y);
          mma_16x8x16<__half>(sum[tile][1], high, b[k][tile].z, b[k][tile].w);
        }
      }
    }
    if (left > 0) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        // A column past the last is read as the last; what it gives is dropped.
        const int column = min(next + tile * 8 + lane / 4, count - 1);
        const __half* at = from + static_cast<std::int64_t>(column) * stride + next_span + mine;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          if (next_span + warp * kWarpRows + k * 32 >= blocks) break;
          const auto* rows = reinterpret_cast<const uint4*>(at + k * 32);
          b[k][tile] = kShared ? *rows : __ldcg(rows);
        }
      }
    }
    if (span >= 0 && span + kSpan >= blocks) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        float2 total =
            make_float2(sum[tile][0][0] + sum[tile][1][0], sum[tile][0][1] + sum[tile][1][1]);
        total.x += __shfl_xor_sync(0xffffffffu, total.x, 4);
        total.y += __shfl_xor_sync(0xffffffffu, total.y, 4);
        if (lane < 4) {
          *reinterpret_cast<float2*>(&scratch[pass & 1][warp][tile * 8 + lane * 2]) = total;
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) sum[tile][e / 4][e % 4] = 0.0f;
      }
      __syncthreads();
      if (static_cast<int>(threadIdx.x) < min(kColumns, count - first)) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += scratch[pass & 1][w][threadIdx.x];
        use(first + static_cast<int>(threadIdx.x), total);
      }
      ++pass;
    }
    if (left == 0) break;
    first = next;
    span = next_span;
    next_span += kSpan;
    if (next_span >= blocks) {
      next_span = 0;
      next += step;
      --left;
    }
  }
}

/// Writes this thread block's share of the list.
__device__ void select_blocks(const Arguments& a, const Step& s, const DecodePlan& plan,
                              const float* scores, const float* free_scores) {
  const int lane = threadIdx.x % 32;
  const int index = s.parity * a.cache.batch + s.sequence;  // of the list
  std::int32_t* list = a.blocks + static_cast<std::int64_t>(index) * a.capacity;
  int kept = rank_blocks(plan, s.blocks, s.column_begin, s.column_end, kWarps, scores, free_scores,
                         [&](int place, int entry) { list[place] = entry; });
  if (plan.scored >= 0) return;  // as many as planned
  kept = __reduce_add_sync(0xffffffffu, lane == 0 ? kept : 0);
  if (lane == 0) {
    // The last warp to come stores the sum of all.
    constexpr unsigned long long kArrival = 1ull << 32;
    const unsigned long long before =
        atomicAdd(a.kept + s.half * a.cache.batch + s.sequence, kArrival + kept);
    if (static_cast<int>(before / kArrival) + 1 == s.members * kWarps) {
      a.counts[index] = listed_always(plan) + static_cast<int>(before % kArrival) + kept;
    }
  }
}

/// kOnce: no thread block has more than one task. The exponentials then stay in registers between
/// statistics and probabilities; otherwise they are made again.
template <class T, int kDim, bool kOnce>
// Registers: beside these warps, each quarter of a multiprocessor has room for one warp of the
// attention kernel, which runs at the same time.
__global__ void __maxnreg__(96) decode_selection_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  // First the transform's buffers, then the statistics, then the walk's sums.
  __shared__ union {
    float transform[8 * 256];
    Statistics statistics;
    float walk[2][kWarps][kColumns];
  } scratch;
  wait_for_grid_before();
  let_next_grid_start();  // it takes longer to come to its loads than these do
  const auto read_sketch = [&] {
    return threadIdx.x / 32 < kTransforming ? load_sketch<kDim>(a.sketch) : SketchLane<kDim>{};
  };
  SketchLane<kDim> sketch{};
  if constexpr (kOnce) sketch = read_sketch();  // ahead of all that is waited for
  const Step s = make_step(a);
  const std::int64_t base = static_cast<std::int64_t>(s.sequence) * a.capacity;
  Tiles tiles;
  __half* const stage = reinterpret_cast<__half*>(shared_bytes);
  tiles.keys = stage;
  tiles.queries = reinterpret_cast<__half*>(shared_bytes + a.stage_bytes);
  tiles.scratch = scratch.transform;
  Columns columns;
  columns.shared = reinterpret_cast<__half*>(shared_bytes);
  columns.global = a.transition + base * a.capacity;
  columns.begin = s.column_begin;
  columns.resident = a.resident;
  columns.capacity = a.capacity;

  const int owned = s.column_end - s.column_begin;
  // Columns of A to the room of the keys, when that is free: a warp takes one at a time.
  const auto start_columns = [&] {
    const int warp = threadIdx.x / 32;
#pragma unroll 1
    for (int k = warp; a.walks && k < min(owned, a.resident); k += kWarps) {
      if (s.column_begin + k == s.current) continue;  // is all new
      const __half* from =
          columns.global + static_cast<std::int64_t>(s.column_begin + k) * a.capacity;
      __half* to = columns.shared + k * (a.capacity + kColumnPad);
#pragma unroll 4
      for (int i = threadIdx.x % 32 * 8; i < (s.blocks + 31) / 32 * 32; i += 256) {
        copy_async_16(to + i, from + i, i < s.blocks);
      }
    }
    copy_async_commit();
  };
  // What comes from memory later is brought to L2 before the attention keeps that busy.
  const auto fetch_early = [&](int thread, int threads) {
    constexpr int kLine = 64;  // f16
    const int lines = (s.blocks + kLine - 1) / kLine;
#pragma unroll 1
    for (int i = thread; a.walks && i < min(owned, a.early_columns) * lines; i += threads) {
      const int k = quotient(i, lines);
      prefetch_l2(columns.global + static_cast<std::int64_t>(s.column_begin + k) * a.capacity +
                  (i - k * lines) * kLine);
    }
    const Kept kept(a, s);
#pragma unroll 1
    for (int i = thread * 32; i < s.blocks; i += threads * 32) {
      prefetch_l2(a.row_sum_rounded + kept.in + i);
      prefetch_l2(a.column + kept.in + i);
      prefetch_l2(a.row + kept.in + i);
    }
    if (thread * 16 < owned) prefetch_l2(a.row_sum + kept.in + s.column_begin + thread * 16);
  };
  // Scores of the window against the blocks: first the statistics that the softmax over all blocks
  // needs, then the probabilities.
  Products p;
  float v[2 * kKeyTiles] = {};
  if constexpr (kOnce) {
    const bool scores = s.member < s.tasks;
    const Task t = make_task(a, s, s.member);
    if (scores) {
      load_task<T, kDim>(a, s, t, t.key_begin + t.keys, sketch, tiles, fetch_early);
      copy_async_wait<0>();
      __syncthreads();
      score_task(a, t, tiles, p);
      exponentiate(a.logit_scale_log2, p, scratch.statistics);
      __syncthreads();
      publish_statistics(a, s, s.member, scratch.statistics);
    }
    empty_exchange(a, s, threadIdx.x, kThreads);  // while the statistics come
    if (scores) {
      find_totals(a, s, t, s.member, scratch.statistics);
      __syncthreads();
#pragma unroll
      for (int row = 0; row < 2 * kQueryTiles; ++row) {
        const int query = query_of(row / 2, row % 2);
        const int part = static_cast<int>(threadIdx.x) / 32 / kQueryWarps;
        const float2 total = scratch.statistics.total[query];
        const float from = scratch.statistics.largest[part][query];
        const float weight = total.y == 0.0f ? 0.0f : total.y * exp2_fast(from - total.x);
#pragma unroll
        for (int i = 0; i < 2 * kKeyTiles; ++i) {
          v[i] += p[row / 2][i / 2][row % 2 * 2 + i % 2] * weight;
        }
      }
      add_probabilities(a, s, t, v, scratch.statistics);
    }
  } else {
    // Tasks that follow each other, most of them of one head, whose queries stay. The keys of the
    // next come meanwhile.
    const int each = quotient(s.tasks + s.members - 1, s.members);
    const int begin = min(s.member * each, s.tasks);
    const int count = min(each, s.tasks - begin);
    bool fresh = true;
    bool fetched = false;
    int loaded = -1;     // first task of the head whose queries are in shared memory
    int totals_of = -1;  // of the head that the totals are of
#pragma unroll 1
    for (int it = 0; it < 2 * count; ++it) {
      const int task = begin + (it < count ? it : it - count);
      const Task t = make_task(a, s, task);
      const int head = task - quotient(t.key_begin, s.task_keys);
      if (!fetched) {
        if (head != loaded) {
          load_task<T, kDim>(a, s, t, t.key_begin + (begin + count - task) * s.task_keys,
                             read_sketch(), tiles, [&](int thread, int threads) {
                               if (fresh) fetch_early(thread, threads);
                             });
          loaded = head;
          fresh = false;
        } else {
          start_rows(a, first_key(a, s, t), tiles.keys, 0, t.keys, -1, threadIdx.x, kThreads);
          copy_async_commit();
        }
      }
      copy_async_wait<0>();
      __syncthreads();
      const int next = task + 1 < begin + count ? task + 1 : begin;
      const Task u = make_task(a, s, next);
      fetched = a.key_buffers > 1 && it + 1 < 2 * count &&
                next - quotient(u.key_begin, s.task_keys) == loaded;
      __half* other = tiles.keys == stage ? stage + s.task_keys * a.rank : stage;
      if (fetched) {
        start_rows(a, first_key(a, s, u), other, 0, u.keys, -1, threadIdx.x, kThreads);
        copy_async_commit();
      }
      score_task(a, t, tiles, p);
      if (it < count) {
        exponentiate(a.logit_scale_log2, p, scratch.statistics);
        __syncthreads();
        publish_statistics(a, s, task, scratch.statistics);
      } else {
        if (head != totals_of) {
          find_totals(a, s, t, task, scratch.statistics);
          __syncthreads();
          totals_of = head;
        }
#pragma unroll
        for (int i = 0; i < 2 * kKeyTiles; ++i) v[i] = 0.0f;
#pragma unroll
        for (int row = 0; row < 2 * kQueryTiles; ++row) {
          const float2 total = scratch.statistics.total[query_of(row / 2, row % 2)];
#pragma unroll
          for (int i = 0; i < 2 * kKeyTiles; ++i) {
            const float logit =
                fmaf(p[row / 2][i / 2][row % 2 * 2 + i % 2], a.logit_scale_log2, -total.x);
            v[i] += fminf(exp2_fast(logit), 1.0f) * total.y;  // of NaN 1, times 0
          }
        }
        add_probabilities(a, s, t, v, scratch.statistics);
      }
      if (it == 0) empty_exchange(a, s, threadIdx.x, kThreads);
      if (fetched) {
        tiles.keys = other;
      } else {
        __syncthreads();  // the next task's copies need its room, and its transforms the scratch
      }
    }
    if (count == 0) empty_exchange(a, s, threadIdx.x, kThreads);
    __syncthreads();  // before columns take the room of keys
  }
  // Copies that are under way before would be ahead of what others wait for.
  start_columns();

  Vectors vectors;
  vectors.row = reinterpret_cast<float*>(shared_bytes + a.stage_bytes);
  vectors.scale = vectors.row + a.capacity;
  vectors.x = vectors.scale + a.capacity;
  const float unit = static_cast<float>(1.0 / (a.fixed_point * a.num_heads * s.queries));
  const DecodePlan plan = decode_plan(a.budget, s.tokens, a.cache.block);
  const int free_end = s.blocks - plan.window;
  // The scores in place of the scales, and where they compete in place of the state.
  const auto keep_scores = [&](int first, float4 four) {
    float y[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = first + e;
      if (i < plan.sink || i >= free_end || i == plan.boundary) y[e] = -INFINITY;
    }
    *reinterpret_cast<float4*>(vectors.scale + first) = four;
    *reinterpret_cast<float4*>(vectors.x + first) = make_float4(y[0], y[1], y[2], y[3]);
  };
  if (a.walks) {
    const int block = s.column_begin + static_cast<int>(threadIdx.x);
    const Own own = load_own(a, s, min(block, s.current));
    update_transition(a, s, columns, unit, own, vectors);
    int pass = 0;
#pragma unroll 1
    for (int step = 0; step < a.degree; ++step) {
      const bool last = step + 1 == a.degree;
      float* state = exchange_state(a, s, step);
      const auto keep = [&](int j, float y) {
        const float score = (1.0f - a.damping) * vectors.row[j] + a.damping / kStateScale * y;
        store_relaxed(state + j, score);
        if (last) a.scores[base + j] = score;
      };
      const int resident = min(owned, a.resident);
      if (resident > 0) {
        multiply_columns<true>(columns.shared, a.capacity + kColumnPad, resident, s.blocks,
                               vectors.high(), a.capacity, false, pass, scratch.walk,
                               [&](int k, float y) { keep(s.column_begin + k, y); });
      }
      if (resident < owned) {
        const int begin = s.column_begin + resident;
        multiply_columns<false>(columns.column(begin), a.capacity, owned - resident, s.blocks,
                                vectors.high(), a.capacity, step % 2 != 0, pass, scratch.walk,
                                [&](int k, float y) { keep(begin + k, y); });
      }
      if (step == 0) keep_transition(a, s, own, vectors.row);  // while the others' results come
      // What the product has read of x is free behind its barrier.
      gather(state, s.blocks, [&](int first, float4 four) {
        if (last) {
          keep_scores(first, four);
        } else {
          const float4 scale = *reinterpret_cast<const float4*>(vectors.scale + first);
          const float y[4] = {four.x * scale.x, four.y * scale.y, four.z * scale.z,
                              four.w * scale.w};
          vectors.store_states(first, s.blocks, a.capacity, y);
        }
      });
      __syncwarp();
    }
    __syncthreads();
  } else {
    const unsigned long long* sums = exchange_sums(a, s);
#pragma unroll 1
    for (int i = threadIdx.x * 4; i < s.blocks; i += 4 * kThreads) {
      const float4 four = gather_scores(a, s, sums, i, unit);
      keep_scores(i, four);
    }
    __syncthreads();
    for (int j = s.column_begin + threadIdx.x; j < s.column_end; j += kThreads) {
      a.scores[base + j] = vectors.scale[j];
    }
  }
  select_blocks(a, s, plan, vectors.scale, vectors.x);
  if (s.member == 0 && threadIdx.x == 0) {
    if (plan.scored >= 0) {
      a.counts[s.parity * a.cache.batch + s.sequence] = forced_blocks(plan) + plan.scored;
    }
    // All thread blocks have read the number of this launch before any scores came from them.
    a.launches[s.sequence] += 1;
  }
}

/// Mean of the block means of a KV head, which the stored keys are counted from.
template <int kDim>
__global__ void load_origin_kernel(const __grid_constant__ Arguments a, const float* sums,
                                   int blocks, float* origin) {
  const int head = static_cast<int>(blockIdx.x);  // of sequence and KV head
  const int tokens = a.cache.lengths[head / a.cache.kv_heads];
  const int b = (tokens + a.cache.block - 1) / a.cache.block;
  float total = 0.0f;
  for (int j = 0; j < b; ++j) {
    total += sums[(static_cast<std::int64_t>(head) * blocks + j) * kDim + threadIdx.x];
  }
  origin[head * kDim + threadIdx.x] = total / static_cast<float>(b * a.cache.block);
}

/// One warp for each block of a KV head: its mean from the origin, transformed.
template <int kDim>
__global__ void load_keys_kernel(const __grid_constant__ Arguments a, const float* sums,
                                 int blocks) {
  __shared__ float buffers[4][256];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  constexpr int dim = kDim;
  const int j = blockIdx.x * 4 + warp;
  const int head = blockIdx.y;  // of sequence and KV head
  const int tokens = a.cache.lengths[head / a.cache.kv_heads];
  const int b = (tokens + a.cache.block - 1) / a.cache.block;
  if (j >= b) return;
  const int present = min(a.cache.block, tokens - j * a.cache.block);
  const float divisor = a.partial_mean ? present : a.cache.block;
  float x[kDim / 32];
#pragma unroll
  for (int e = 0; e < kDim / 32; ++e) {
    const float sum = sums[(static_cast<std::int64_t>(head) * blocks + j) * dim + e * 32 + lane];
    x[e] = sum / divisor - a.key_origin[head * dim + e * 32 + lane];
    if (j == b - 1) {
      const int plane = a.cache.batch * a.cache.kv_heads * dim;
      a.key_sum[(tokens & 1) * plane + head * dim + e * 32 + lane] = sum;
    }
  }
  transform<kDim>(a.sketch, x, buffers[warp]);
  for (int i = lane; i < a.rank; i += 32) {
    a.keys[static_cast<std::int64_t>(head) * a.capacity * a.rank + swizzled_element(j, i, a.rank)] =
        __float2half_rn(i < kDim ? buffers[warp][i] : 0.0f);
  }
}

/// One warp for each vector of the window.
template <int kDim>
__global__ void load_window_kernel(const __grid_constant__ Arguments a, const float* window) {
  __shared__ float buffers[4][256];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  constexpr int dim = kDim;
  const int i = blockIdx.x * 4 + warp;
  const int head = blockIdx.y;  // of sequence and query head
  const int tokens = a.cache.lengths[head / a.num_heads];
  const int count = min(a.window, tokens);
  if (i >= count) return;
  const int slot = (tokens - count + i) % a.window;
  float x[kDim / 32];
#pragma unroll
  for (int e = 0; e < kDim / 32; ++e) {
    x[e] = window[(static_cast<std::int64_t>(head) * a.window + i) * dim + e * 32 + lane];
  }
  transform<kDim>(a.sketch, x, buffers[warp]);
  for (int k = lane; k < a.rank; k += 32) {
    const int within = head % a.group;  // of the heads of its KV head
    a.queries[static_cast<std::int64_t>(head - within) * a.window * a.rank +
              swizzled_element(within * a.window + slot, k, a.rank)] =
        __float2half_rn(k < kDim ? buffers[warp][k] : 0.0f);
  }
}

/// One thread block for each row of A: its entries to the columns, its sum, and row and column c.
__global__ void load_transition_kernel(const __grid_constant__ Arguments a, const float* transition,
                                       int blocks) {
  __shared__ double partial[256];
  const int i = blockIdx.x;
  const int sequence = blockIdx.y;
  const int tokens = a.cache.lengths[sequence];
  const int b = (tokens + a.cache.block - 1) / a.cache.block;
  if (i >= b) return;
  const std::int64_t base = static_cast<std::int64_t>(sequence) * a.capacity;
  const std::int64_t out =
      (tokens & 1) * static_cast<std::int64_t>(a.cache.batch) * a.capacity + base;
  const float* from = transition + (static_cast<std::int64_t>(sequence) * blocks + i) * blocks;
  double sum = 0.0;
  for (int j = threadIdx.x; j < b; j += 256) {
    const float value = from[j];
    sum += value;
    a.transition[(base + j) * a.capacity + i] = __float2half_rn(kRowScale * value);
    if (j == b - 1) a.column[out + i] = kRowScale * value;
    if (i == b - 1) a.row[out + j] = value;
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    a.row_sum[out + i] = static_cast<double>(kRowScale) * partial[0];
    a.row_sum_rounded[out + i] = static_cast<float>(a.row_sum[out + i]);
  }
}

template <class F>
void visit_bool(bool value, F&& f) {
  value ? f.template operator()<true>() : f.template operator()<false>();
}

int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

}  // namespace

struct DecodeSelector::Launch {
  static Arguments arguments(const DecodeSelector& s, const KvCache& cache, const void* q) {
    Arguments a{};
    a.cache = cache;
    a.q = q;
    a.budget = s.shape_.budget;
    a.num_heads = s.shape_.num_heads;
    a.group = s.shape_.num_heads / cache.kv_heads;
    a.window = s.shape_.query_window;
    a.capacity = s.shape_.capacity;
    a.max_keys = s.max_keys_;
    a.max_tasks = s.max_tasks_;
    a.rank = s.rank_;
    a.partial_mean = s.partial_mean_;
    a.walks = s.walks_;
    a.damping = static_cast<float>(s.shape_.damping);
    a.degree = s.shape_.degree;
    a.logit_scale_log2 = s.logit_scale_log2_;
    a.blocks_per_sequence = s.blocks_per_sequence_;
    a.resident = s.resident_;
    a.stage_bytes = s.stage_bytes_;
    a.key_buffers = s.key_buffers_;
    a.early_columns = s.early_columns_;
    a.row_groups = s.row_groups_;
    a.addends = s.addends_;
    a.task_share = s.task_share_;
    a.count_shift = s.count_shift_;
    a.fixed_point = s.fixed_point_;
    a.sketch = {s.signs_.data(), s.permutation_.data(), s.dim_used_, s.exact_};
    a.transition = reinterpret_cast<__half*>(s.transition_.data());
    a.row_sum = s.row_sum_.data();
    a.row_sum_rounded = s.row_sum_rounded_.data();
    a.column = s.column_.data();
    a.row = s.row_.data();
    a.queries = reinterpret_cast<__half*>(s.queries_.data());
    a.keys = reinterpret_cast<__half*>(s.keys_.data());
    a.key_origin = s.key_origin_.data();
    a.key_sum = s.key_sum_.data();
    a.stats = s.stats_.data();
    a.sums = s.sums_.data();
    a.states = s.states_.data();
    a.kept = s.kept_.data();
    a.launches = s.launches_.data();
    a.scores = s.scores_.data();
    a.blocks = s.blocks_.data();
    a.counts = s.counts_.data();
    a.faults = s.faults_.data();
    return a;
  }
};

DecodeSelector::DecodeSelector(const KvCache& cache, const DecodeSelectorShape& shape,
                               const SketchParams& params, std::int64_t layer)
    : shape_(shape), batch_(cache.batch) {
  using Aggregation = SketchParams::Aggregation;
  const int d = cache.head_dim;
  if (params.aggregation != Aggregation::kPerHead || params.sharpness != 1.0) {
    refuse_selection("aggregation=head_mean and sharpness without walk=product");
  }
  if (params.tokens_per_query() != params.block || params.tokens_per_key() != params.block) {
    refuse_selection("query_pool and key_pool below the block size");
  }
  if (d != 64 && d != 128 && d != 256) refuse_selection("head_dim " + std::to_string(d));
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  starts_early_ = major >= 9;
  if (major < 8) {
    refuse_selection("a GPU below compute capability 8.0");
  }
  const Sketch sketch(params, layer, d);
  exact_ = params.exact;
  partial_mean_ = params.partial_mean;
  walks_ = shape.damping != 0.0 && shape.degree > 0;
  dim_used_ = static_cast<int>(sketch.dim());
  rank_ = 32;
  while (rank_ < dim_used_) rank_ *= 2;
  logit_scale_log2_ = sketch_scale_log2(sketch, params, d);

  const int group = shape.num_heads / cache.kv_heads;
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  shape_.capacity = round_up(shape.capacity, 64);
  blocks_per_sequence_ = std::max(1, multiprocessors / batch_);
  const int columns = (shape_.capacity + blocks_per_sequence_ - 1) / blocks_per_sequence_;
  const int vector_bytes = std::max(2 * kQueryRows * rank_, 12 * shape_.capacity);
  constexpr int kStaticBytes = 12 * 1024;
  const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticBytes;
  max_keys_ = std::min(kTaskKeys, (limit - vector_bytes) / (2 * rank_) / 16 * 16);
  if (max_keys_ < 16) {
    refuse_selection(
        "contexts of " + std::to_string(shape.capacity) + " blocks: the row and its scales are " +
        "held in shared memory, of which a thread block has " + std::to_string(limit) + " bytes");
  }
  row_groups_ = (group * shape.query_window + kQueryRows - 1) / kQueryRows;
  addends_ = cache.kv_heads * row_groups_;
  task_share_ = std::max(1, blocks_per_sequence_ / addends_);
  // Tasks have 16 keys or more, and the most where they come to fewer.
  const int most = std::max(task_share_, (shape_.capacity + max_keys_ - 1) / max_keys_);
  max_tasks_ = addends_ * most;
  once_ = max_tasks_ <= blocks_per_sequence_;
  // The keys' room is that of this thread block's columns of A later, where those fit.
  const int key_bytes = 2 * max_keys_ * rank_;
  key_buffers_ = !once_ && 2 * key_bytes <= limit - vector_bytes ? 2 : 1;
  stage_bytes_ = key_buffers_ * key_bytes;
  const int one_column = 2 * (shape_.capacity + kColumnPad);
  // All of them, or whole passes of the walk, in what leaves room for the attention beside it.
  const int room = std::max(stage_bytes_, std::min(96 * 1024, limit - vector_bytes));
  resident_ = std::min(columns, room / one_column);
  if (resident_ < columns) resident_ = resident_ / kColumns * kColumns;
  stage_bytes_ = std::max(stage_bytes_, resident_ * one_column);
  shared_bytes_ = stage_bytes_ + vector_bytes;
  const std::int64_t one_each = std::int64_t{2} * shape_.capacity * blocks_per_sequence_ * batch_;
  early_columns_ = static_cast<int>(
      std::min<std::int64_t>(columns, device_attribute(cudaDevAttrL2CacheSize) / 2 / one_each));
  // A sum is of probabilities, at most one a query, and counts its addends in the bits above.
  const auto bits = [](int x) {
    return static_cast<int>(std::bit_width(static_cast<unsigned>(x)));
  };
  count_shift_ = 64 - bits(addends_);
  const int queries = shape.num_heads * shape.query_window;
  const int fraction = std::min(44, count_shift_ - bits(queries));
  if (fraction < 32) refuse_selection("a query window of " + std::to_string(queries) + " rows");
  fixed_point_ = std::ldexp(1.0, fraction);

  std::vector<float> signs(sketch.signs().begin(), sketch.signs().end());
  std::vector<std::int32_t> permutation(sketch.permutation().begin(), sketch.permutation().end());
  signs_ = DeviceBuffer<float>(std::span<const float>(signs));
  permutation_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(permutation));
  const auto batch = static_cast<std::size_t>(batch_);
  const auto capacity = static_cast<std::size_t>(shape_.capacity);
  const auto rank = static_cast<std::size_t>(rank_);
  const std::size_t heads = batch * static_cast<std::size_t>(shape.num_heads);
  const std::size_t kv_heads = batch * static_cast<std::size_t>(cache.kv_heads);
  if (walks_) transition_ = zeros<std::uint16_t>(batch * capacity * capacity);
  row_sum_ = zeros<double>(2 * batch * capacity);
  row_sum_rounded_ = zeros<float>(2 * batch * capacity);
  column_ = zeros<float>(2 * batch * capacity);
  row_ = zeros<float>(2 * batch * capacity);
  queries_ = zeros<std::uint16_t>(heads * static_cast<std::size_t>(shape.query_window) * rank);
  keys_ = zeros<std::uint16_t>(kv_heads * capacity * rank);
  key_origin_ = zeros<float>(kv_heads * static_cast<std::size_t>(d));
  key_sum_ = zeros<float>(2 * kv_heads * static_cast<std::size_t>(d));
  const auto empty = [](std::size_t count) {
    DeviceBuffer<float> buffer(count);
    check(cudaMemset(buffer.data(), 0xff, buffer.bytes()), "clearing of the decode state");
    return buffer;
  };
  stats_ = empty(2 * batch * static_cast<std::size_t>(max_tasks_) * kQueryRows * 2);
  sums_ = zeros<unsigned long long>(2 * batch * capacity);
  states_ = empty(walks_ ? 2 * batch * capacity * static_cast<std::size_t>(shape.degree) : 4);
  kept_ = zeros<unsigned long long>(2 * batch);
  launches_ = zeros<unsigned>(batch);
  scores_ = zeros<float>(batch * capacity);
  blocks_ = zeros<std::int32_t>(2 * batch * capacity);
  counts_ = zeros<std::int32_t>(2 * batch);
  faults_ = zeros<std::int32_t>(batch);
  visit_element(cache.element, [&]<class T>() {
    visit_dim(d, [&]<int kDim>() {
      visit_bool(once_, [&]<bool kOnce>() {
        allow_shared_memory(decode_selection_kernel<T, kDim, kOnce>, shared_bytes_);
      });
    });
  });
}

void DecodeSelector::load(const KvCache& cache, const DecodeInitialState& state,
                          cudaStream_t stream) {
  const Arguments a = Launch::arguments(*this, cache, nullptr);
  const auto quarter = [](int x) { return static_cast<unsigned>((x + 3) / 4); };
  const dim3 keys(quarter(state.blocks), static_cast<unsigned>(batch_ * cache.kv_heads));
  const dim3 window(quarter(shape_.query_window), static_cast<unsigned>(batch_ * shape_.num_heads));
  const auto heads = static_cast<unsigned>(batch_ * cache.kv_heads);
  visit_dim(cache.head_dim, [&]<int kDim>() {
    load_origin_kernel<kDim>
        <<<heads, kDim, 0, stream>>>(a, state.key_sums, state.blocks, key_origin_.data());
    check_launch("load_origin_kernel");
    load_keys_kernel<kDim><<<keys, 128, 0, stream>>>(a, state.key_sums, state.blocks);
    check_launch("load_keys_kernel");
    load_window_kernel<kDim><<<window, 128, 0, stream>>>(a, state.query_window);
    check_launch("load_window_kernel");
  });
  check(cudaMemsetAsync(counts_.data(), 0, counts_.bytes(), stream), "clearing of the lists");
  if (!walks_) return;
  const dim3 rows(static_cast<unsigned>(state.blocks), static_cast<unsigned>(batch_));
  load_transition_kernel<<<rows, 256, 0, stream>>>(a, state.transition, state.blocks);
  check_launch("load_transition_kernel");
}

void DecodeSelector::run(const KvCache& cache, const void* q, cudaStream_t stream) {
  const Arguments a = Launch::arguments(*this, cache, q);
  // Thread blocks of a sequence wait for each other. All of them fit on the GPU at once, one on
  // each multiprocessor, and whatever else runs meanwhile ends by itself. A cooperative launch
  // would say the same to the driver, which then lets nothing run beside it.
  const dim3 grid(static_cast<unsigned>(blocks_per_sequence_), static_cast<unsigned>(batch_));
  visit_element(cache.element, [&]<class T>() {
    visit_dim(cache.head_dim, [&]<int kDim>() {
      visit_bool(once_, [&]<bool kOnce>() {
        launch_early(decode_selection_kernel<T, kDim, kOnce>, grid, kThreads, shared_bytes_, stream,
                     starts_early_, a);
      });
    });
  });
}

DecodeList DecodeSelector::list() const {
  return {blocks_.data(), counts_.data(), 1, shape_.capacity, true};
}

std::size_t DecodeSelector::bytes() const {
  return transition_.bytes() + row_sum_.bytes() + row_sum_rounded_.bytes() + column_.bytes() +
         row_.bytes() + queries_.bytes() + keys_.bytes() + key_origin_.bytes() + key_sum_.bytes() +
         stats_.bytes() + sums_.bytes() + states_.bytes() + scores_.bytes() + blocks_.bytes();
}

}  // namespace sw::cuda
