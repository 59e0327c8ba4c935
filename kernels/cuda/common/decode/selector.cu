#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "kernels/cuda/common/decode/plan.cuh"
#include "kernels/cuda/common/decode/ptx.cuh"
#include "kernels/cuda/common/decode/selector.hpp"
#include "kernels/cuda/common/decode/shared_memory.hpp"
#include "kernels/cuda/common/decode/visit.cuh"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kQueryRows = 128;  ///< window queries that a task scores
constexpr int kQueryTiles = kQueryRows / 8;
constexpr int kColumns = 16;                      ///< columns of A that a pass multiplies
constexpr float kRowScale = 16384.0f;             ///< stored sum of a new row of A
constexpr double kRowLimit = 32768.0;             ///< a row with a larger sum is divided by 4
constexpr double kFixedPoint = 17592186044416.0;  ///< 2^44

struct Arguments {
  KvCache cache;
  const void* q;
  DecodeBudget budget;
  int num_heads;
  int group;
  int window;
  int capacity;   ///< blocks, a multiple of 8: the length of a column of A
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
  const float* signs;
  const std::int32_t* permutation;
  __half* transition;
  double* row_sum;
  float* column;
  float* row;
  __half* queries;
  __half* keys;
  float* key_sum;
  float2* stats;
  unsigned long long* sums;
  float* states;
  float* scores;
  std::int32_t* blocks;
  std::int32_t* counts;
  std::int32_t* faults;
  unsigned* barriers;
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
  int queries;  ///< filled slots of the window
  // Scores: a task is up to 128 window queries of one KV head against `task_keys` blocks.
  int row_groups;  ///< of a KV head
  int task_keys;
  int chunks;  ///< tasks along the keys
  int tasks;
  // Walk: columns [column_begin, column_end) of A belong to this thread block.
  int column_begin;
  int column_end;
};

__host__ __device__ inline int tasks_of(int kv_heads, int row_groups, int blocks, int members,
                                        int max_keys, int& task_keys, int& chunks) {
  const int share = max(1, members / (kv_heads * row_groups));
  task_keys = min(max_keys, 16 * ((blocks + 16 * share - 1) / (16 * share)));
  chunks = (blocks + task_keys - 1) / task_keys;
  return kv_heads * row_groups * chunks;
}

__device__ inline Step make_step(const Arguments& a) {
  Step s;
  s.members = a.blocks_per_sequence;
  s.sequence = blockIdx.y;
  s.member = blockIdx.x;
  s.tokens = a.cache.lengths[s.sequence];
  s.blocks = (s.tokens + a.cache.block - 1) >> (a.cache.block == 64 ? 6 : 7);
  s.current = s.blocks - 1;
  const int step = (s.tokens - 1) & (a.cache.block - 1);
  s.grown = step == 0;
  s.alpha = 1.0f / static_cast<float>(step + 1);
  s.parity = s.tokens & 1;
  s.queries = min(a.window, s.tokens);
  s.row_groups = (a.group * a.window + kQueryRows - 1) / kQueryRows;
  s.tasks = tasks_of(a.cache.kv_heads, s.row_groups, s.blocks, s.members, a.max_keys, s.task_keys,
                     s.chunks);
  const int columns = (s.blocks + s.members - 1) / s.members;
  s.column_begin = min(s.member * columns, s.blocks);
  s.column_end = min(s.column_begin + columns, s.blocks);
  return s;
}

/// Barrier of the thread blocks of one sequence. Together they add 2^31, so the top bit flips once
/// all have arrived, and the word is as before after two uses: it is never reset.
class SequenceBarrier {
 public:
  __device__ SequenceBarrier(unsigned* word, int member, int members)
      : word_(word), add_(member == 0 ? 0x80000000u - static_cast<unsigned>(members - 1) : 1u) {}

  __device__ void wait() {
    __syncthreads();
    if (threadIdx.x == 0) {
      fence_gpu();
      const unsigned before = atomicAdd(word_, add_);
      unsigned now = 0;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(word_) : "memory");
      } while (((now ^ before) & 0x80000000u) == 0);
    }
    __syncthreads();
  }

 private:
  unsigned* word_;
  unsigned add_;
};

/// One warp transforms a vector: lane holds elements lane + 32 e of x; the result, of
/// `rank` elements (zeros past r), is left in `buffer` [256]. Orthonormal, so that no entry exceeds
/// the norm of x.
template <int kDim>
__device__ inline void transform(const Arguments& a, float (&x)[kDim / 32], float* buffer) {
  constexpr int kEach = kDim / 32;
  const int lane = threadIdx.x % 32;
  int from[kEach];  // -1: past the sketch dimension
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int j = e * 32 + lane;
    from[e] = j >= a.dim_used ? -1 : a.exact ? j : a.permutation[j];
  }
  if (!a.exact) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      x[e] *= a.signs[e * 32 + lane] * rsqrtf(static_cast<float>(kDim));
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const float other = __shfl_xor_sync(0xffffffffu, x[e], mask);
        x[e] = (lane & mask) != 0 ? other - x[e] : x[e] + other;
      }
    }
#pragma unroll
    for (int half = 1; half < kEach; half *= 2) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if ((e & half) == 0) {
          const float low = x[e];
          const float high = x[e + half];
          x[e] = low + high;
          x[e + half] = low - high;
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) buffer[e * 32 + lane] = x[e];
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    x[e] = from[e] >= 0 ? buffer[from[e]] : 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int e = 0; e < kEach; ++e) buffer[e * 32 + lane] = x[e];
  __syncwarp();
}

/// Element offset of 16-byte chunk `chunk` of row `row`, rows of `rank` f16.
__device__ inline int swizzled(int row, int chunk, int rank) {
  return row * rank + ((rank >= 64 ? chunk ^ ((row & 1) << 2) : chunk) << 3);
}

/// Element j of a row, by the same layout.
__device__ inline int swizzled_element(int row, int j, int rank) {
  return swizzled(row, j >> 3, rank) + (j & 7);
}

/// The task's window queries in shared memory, and its keys: [2, max_keys, rank], hi and lo.
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

__device__ inline Task make_task(const Step& s, int index) {
  Task t;
  const int chunk = index % s.chunks;
  const int rest = index / s.chunks;
  t.row_begin = rest % s.row_groups * kQueryRows;
  t.head = rest / s.row_groups;
  t.key_begin = chunk * s.task_keys;
  t.keys = min(s.task_keys, s.blocks - t.key_begin);
  return t;
}

/// Starts the copies of a task's queries and keys, and makes what is new in them: the queries of
/// this token, and the mean of the current block with this token's key.
template <class T, int kDim>
__device__ void load_task(const Arguments& a, const Step& s, const Task& t, const Tiles& tiles) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // rank / 8 chunks of 16 bytes a row, a power of two that divides the number of threads.
  const int shift = __ffs(a.rank) - 4;
  const int chunk = threadIdx.x & ((1 << shift) - 1);
  const int first_row = threadIdx.x >> shift;
  const int row_step = kThreads >> shift;
  const int rows = min(kQueryRows, a.group * a.window - t.row_begin);
  const std::int64_t first_query =
      (static_cast<std::int64_t>(s.sequence) * a.num_heads + t.head * a.group) * a.window;
  const int slot = (s.tokens - 1) % a.window;
  const __half* from = a.queries + (first_query + t.row_begin) * a.rank + chunk * 8;
  int w = (t.row_begin + first_row) % a.window;
  const int w_step = row_step % a.window;
#pragma unroll 1
  for (int row = first_row; row < kQueryRows; row += row_step) {
    const bool valid = row < rows && w < s.queries;
    if (row >= rows || w != slot) {  // the slot is this token's
      copy_async_16(tiles.queries + swizzled(row, chunk, a.rank), from + (valid ? row * a.rank : 0),
                    valid);
    }
    w += w_step;
    if (w >= a.window) w -= a.window;
  }
  const std::int64_t plane =
      static_cast<std::int64_t>(a.cache.batch) * a.cache.kv_heads * a.capacity * a.rank;
  const std::int64_t first_key =
      (static_cast<std::int64_t>(s.sequence) * a.cache.kv_heads + t.head) * a.capacity +
      t.key_begin;
#pragma unroll 1
  for (int part = 0; part < 2; ++part) {
    const __half* keys = a.keys + part * plane + first_key * a.rank + chunk * 8;
    __half* to = tiles.keys + part * a.max_keys * a.rank;
#pragma unroll 1
    for (int row = first_row; row < s.task_keys; row += row_step) {
      if (t.key_begin + row == s.current) continue;
      const bool valid = row < t.keys;
      copy_async_16(to + swizzled(row, chunk, a.rank), keys + (valid ? row * a.rank : 0), valid);
    }
  }
  copy_async_commit();

  // Vectors that are new, one a warp: the key (number 0), and the query heads of this task.
  constexpr int kEach = kDim / 32;
  float* buffer = tiles.scratch + warp * kDim;
  const int head_begin = t.row_begin / a.window;
  const int head_end = min((t.row_begin + kQueryRows + a.window - 1) / a.window, a.group);
#pragma unroll 1
  for (int vector = warp; vector <= head_end - head_begin; vector += kWarps) {
    const bool is_key = vector == 0;
    const int h = head_begin + vector - 1;
    const int row = is_key ? s.current - t.key_begin : h * a.window + slot - t.row_begin;
    if (is_key ? row >= t.keys : row < 0 || row >= kQueryRows) continue;  // another task's
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
    float x[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) x[e] = widen(source[e * 32 + lane]);
    if (is_key) {
      const std::int64_t sum_plane =
          static_cast<std::int64_t>(a.cache.batch) * a.cache.kv_heads * kDim;
      float* sums = a.key_sum +
                    (static_cast<std::int64_t>(s.sequence) * a.cache.kv_heads + t.head) * kDim +
                    lane;
      const int present = s.tokens - s.current * a.cache.block;
      const float divisor = a.partial_mean ? present : a.cache.block;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        if (!s.grown) x[e] += __ldcg(sums + (s.parity ^ 1) * sum_plane + e * 32);
        sums[s.parity * sum_plane + e * 32] = x[e];
        x[e] /= divisor;
      }
    }
    transform<kDim>(a, x, buffer);
    __half* shared = (is_key ? tiles.keys : tiles.queries);
    __half* global = is_key ? a.keys + (first_key + row) * a.rank
                            : a.queries + (first_query + h * a.window + slot) * a.rank;
    const bool keeps = is_key || t.key_begin == 0;
#pragma unroll 1
    for (int i = lane; i < a.rank; i += 32) {
      const float y = i < kDim ? buffer[i] : 0.0f;
      const __half hi = __float2half_rn(y);
      const int at = swizzled_element(row, i, a.rank);
      shared[at] = hi;
      if (keeps) global[i] = hi;
      if (is_key) {
        const __half lo = __float2half_rn(y - __half2float(hi));
        shared[a.max_keys * a.rank + at] = lo;
        global[plane + i] = lo;
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();
}

/// Logits of 16 keys (this warp's rows) by 128 queries, in units of log2.
__device__ inline void score_task(const Arguments& a, const Task& t, const Tiles& tiles,
                                  float (&s)[kQueryTiles][4]) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[tile][e] = 0.0f;
  }
  if (warp * 16 < t.keys) {
    const int row = warp * 16 + lane / 4;
#pragma unroll 1
    for (int pair = 0; pair < a.rank / 32; ++pair) {
      // 32 elements in two steps; which element is which k of the product does not matter as long
      // as both sides agree, so each lane takes 8 in a row.
      const int chunk = pair * 4 + lane % 4;
      const auto load = [&](const __half* base, int r) {
        return *reinterpret_cast<const uint4*>(base + swizzled(r, chunk, a.rank));
      };
      std::uint32_t first[2][4];
      std::uint32_t second[2][4];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const uint4 top = load(tiles.keys + part * a.max_keys * a.rank, row);
        const uint4 bottom = load(tiles.keys + part * a.max_keys * a.rank, row + 8);
        first[part][0] = top.x;
        first[part][1] = bottom.x;
        first[part][2] = top.y;
        first[part][3] = bottom.y;
        second[part][0] = top.z;
        second[part][1] = bottom.z;
        second[part][2] = top.w;
        second[part][3] = bottom.w;
      }
      constexpr int kBatch = 4;  // products in flight at a time, each on sums of its own
#pragma unroll
      for (int tile = 0; tile < kQueryTiles; tile += kBatch) {
        uint4 b[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) b[k] = load(tiles.queries, (tile + k) * 8 + lane / 4);
#pragma unroll
        for (int part = 1; part >= 0; --part) {
#pragma unroll
          for (int k = 0; k < kBatch; ++k)
            mma_16x8x16<__half>(s[tile + k], first[part], b[k].x, b[k].y);
#pragma unroll
          for (int k = 0; k < kBatch; ++k)
            mma_16x8x16<__half>(s[tile + k], second[part], b[k].z, b[k].w);
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool valid = warp * 16 + lane / 4 + (e >> 1) * 8 < t.keys;
      s[tile][e] = valid ? s[tile][e] * a.logit_scale_log2 : -INFINITY;
    }
  }
}

/// Reduces 32 values (queries 2 of each tile) over the 8 lanes that share lane % 4; each lane ends
/// with 4 of them, `values[0..3]`, for value index first + i.
template <class F>
__device__ inline int reduce_scatter(float (&values)[32], F&& combine) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const int mask = 16 >> step;
    const int half = 16 >> step;
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if (i < half) {
        const float send = upper ? values[i] : values[i + half];
        const float keep = upper ? values[i + half] : values[i];
        values[i] = combine(keep, __shfl_xor_sync(0xffffffffu, send, mask));
      }
    }
  }
  return ((lane >> 4) & 1) * 16 + ((lane >> 3) & 1) * 8 + ((lane >> 2) & 1) * 4;
}

/// Combines a value of each of the 128 queries over the thread block's keys: `pick` gives that of
/// one accumulator. The result stands in scratch[0..127].
template <class Pick, class Combine>
__device__ inline void reduce_keys(float (&s)[kQueryTiles][4], float* scratch, Pick&& pick,
                                   Combine&& combine) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  float values[32];
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      values[tile * 2 + e] = combine(pick(s[tile][e]), pick(s[tile][e + 2]));
    }
  }
  const int first = reduce_scatter(values, combine);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int query = (first + i) / 2 * 8 + lane % 4 * 2 + (first + i) % 2;
    scratch[(warp + 1) * kQueryRows + query] = values[i];
  }
  __syncthreads();
  if (threadIdx.x < kQueryRows) {
    float total = scratch[kQueryRows + threadIdx.x];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      total = combine(total, scratch[(w + 1) * kQueryRows + threadIdx.x]);
    }
    scratch[threadIdx.x] = total;
  }
  __syncthreads();
}

/// Turns logits into exp2(logit - m), m the task's largest of each query (scratch[query]).
__device__ inline void exponentiate(float (&s)[kQueryTiles][4], const float* largest) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
    const float2 m = *reinterpret_cast<const float2*>(largest + tile * 8 + lane % 4 * 2);
    s[tile][0] = exp2_fast(s[tile][0] - m.x);
    s[tile][1] = exp2_fast(s[tile][1] - m.y);
    s[tile][2] = exp2_fast(s[tile][2] - m.x);
    s[tile][3] = exp2_fast(s[tile][3] - m.y);
  }
}

/// Maximum and sum of each query over the task's keys, published for the other tasks of the head.
__device__ inline void publish_statistics(const Arguments& a, const Step& s, int task,
                                          float (&p)[kQueryTiles][4], float* scratch) {
  const auto same = [](float x) { return x; };
  reduce_keys(p, scratch, same, [](float x, float y) { return fmaxf(x, y); });
  exponentiate(p, scratch);
  float largest = 0.0f;
  if (threadIdx.x < kQueryRows) largest = scratch[threadIdx.x];
  reduce_keys(p, scratch, same, [](float x, float y) { return x + y; });
  if (threadIdx.x < kQueryRows) {
    a.stats[(static_cast<std::int64_t>(s.sequence) * a.max_tasks + task) * kQueryRows +
            threadIdx.x] = make_float2(largest, scratch[threadIdx.x]);
  }
}

/// Adds the task's probabilities, summed over its queries, to the fixed-point sums of its blocks.
__device__ inline void add_probabilities(const Arguments& a, const Step& s, const Task& t, int task,
                                         float (&p)[kQueryTiles][4], float* scratch) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const float2* stats = a.stats + static_cast<std::int64_t>(s.sequence) * a.max_tasks * kQueryRows;
  const int first = task / s.chunks * s.chunks;
  __syncthreads();
  if (threadIdx.x < kQueryRows) {
    const int row = t.row_begin + threadIdx.x;
    float weight = 0.0f;
    if (row < a.group * a.window && row % a.window < s.queries) {
      float largest = -INFINITY;
      float total = 0.0f;
      constexpr int kBatch = 8;
      for (int chunk = 0; chunk < s.chunks; chunk += kBatch) {
        float2 part[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          part[k] = chunk + k < s.chunks
                        ? __ldcg(stats + (first + chunk + k) * kQueryRows + threadIdx.x)
                        : make_float2(-INFINITY, 0.0f);
        }
        float fresh = largest;
#pragma unroll
        for (int k = 0; k < kBatch; ++k) fresh = fmaxf(fresh, part[k].x);
        total *= exp2_fast(largest - fresh);
        largest = fresh;
#pragma unroll
        for (int k = 0; k < kBatch; ++k) total += part[k].y * exp2_fast(part[k].x - largest);
      }
      const float own = __ldcg(stats + task * kQueryRows + threadIdx.x).x;
      weight = __fdividef(exp2_fast(own - largest), total);
      if (!(total >= 1.0f && total < INFINITY)) {
        a.faults[s.sequence] = 1;
        weight = 0.0f;
      }
    }
    scratch[threadIdx.x] = weight;
  }
  __syncthreads();
  float sum[2] = {};
#pragma unroll
  for (int tile = 0; tile < kQueryTiles; ++tile) {
    const float2 w = *reinterpret_cast<const float2*>(scratch + tile * 8 + lane % 4 * 2);
    // A query that counts for nothing may hold NaN, which no weight would remove.
    if (w.x > 0.0f) {
      sum[0] += p[tile][0] * w.x;
      sum[1] += p[tile][2] * w.x;
    }
    if (w.y > 0.0f) {
      sum[0] += p[tile][1] * w.y;
      sum[1] += p[tile][3] * w.y;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = reduce_quad(sum[half], [](float x, float y) { return x + y; });
    const int key = warp * 16 + lane / 4 + half * 8;
    if (lane % 4 == 0 && key < t.keys) {
      atomicAdd(a.sums + static_cast<std::int64_t>(s.sequence) * a.capacity + t.key_begin + key,
                static_cast<unsigned long long>(static_cast<double>(total) * kFixedPoint + 0.5));
    }
  }
}

/// The columns of A that this thread block owns; the first `resident` of them in shared memory.
struct Columns {
  __half* shared;
  __half* global;  ///< column 0 of the sequence
  int begin;
  int resident;
  int stride;

  __device__ __half* column(int j) const {
    return j - begin < resident ? shared + (j - begin) * stride
                                : global + static_cast<std::int64_t>(j) * stride;
  }
  __device__ void store(int j, int i, __half value) const {
    global[static_cast<std::int64_t>(j) * stride + i] = value;
    if (j - begin < resident) shared[(j - begin) * stride + i] = value;
  }
};

/// What the walk needs of each block, in shared memory.
struct Vectors {
  float* row;    ///< a, the new row of A (sum 1)
  float* scale;  ///< 1 / stored sum of row i
  float* x;      ///< walk state times scale, then the scores
};

/// The new row of A from the fixed-point sums; row and column c and the row sums with it, and the
/// scale of each row (section 5, step 3). Everybody derives the scale of every row; each stores
/// what it owns.
__device__ void update_transition(const Arguments& a, const Step& s, const Columns& columns,
                                  double unit, const Vectors& to) {
  const std::int64_t plane = static_cast<std::int64_t>(a.cache.batch) * a.capacity;
  const std::int64_t base = static_cast<std::int64_t>(s.sequence) * a.capacity;
  const std::int64_t in = (s.parity ^ 1) * plane + base;
  const std::int64_t out = s.parity * plane + base;
  const int c = s.current;
  const auto score = [&](unsigned long long sum) {
    return static_cast<float>(static_cast<double>(sum) * unit);
  };
  const auto blend = [&](float old, float fresh) {
    return s.grown ? fresh : (1.0f - s.alpha) * old + s.alpha * fresh;
  };
  const auto owned = [&](int i) { return i >= s.column_begin && i < s.column_end; };
  // Row c: its entry in column c is blended a second time, and the row normalised once more.
  const float corner_score = score(__ldcg(a.sums + base + c));
  const float corner = blend(__ldcg(a.row + in + c), corner_score);
  const float corner_twice = blend(corner, corner_score);
  const float total = 1.0f - corner + corner_twice;
  constexpr int kBatch = 8;  // loads under way at a time
#pragma unroll 1
  for (int first = threadIdx.x; first < s.blocks; first += kBatch * kThreads) {
    unsigned long long fixed[kBatch];
    double sums[kBatch];
    float olds[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = min(first + k * kThreads, c);
      fixed[k] = __ldcg(a.sums + base + i);
      sums[k] = __ldcg(a.row_sum + in + i);
      olds[k] = s.grown ? 0.0f : __ldcg(a.column + in + i);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int i = first + k * kThreads;
      if (i >= s.blocks) break;
      const float value = score(fixed[k]);
      float entry = 0.0f;  // A[i, c] as stored
      double sum = 0.0;
      if (i == c) {
        sum = static_cast<double>(kRowScale * total);
        entry = kRowScale * corner_twice;
      } else {
        entry = blend(olds[k], value * static_cast<float>(sums[k]));
        sum = sums[k] + static_cast<double>(entry - olds[k]);
      }
      if (sum > kRowLimit) {
        sum *= 0.25;
        entry *= 0.25f;
#pragma unroll 1
        for (int j = s.column_begin; j < s.column_end; ++j) {
          if (j != c) {
            columns.store(j, i, __float2half_rn(__half2float(columns.column(j)[i]) * 0.25f));
          }
        }
      }
      if (owned(c)) columns.store(c, i, __float2half_rn(entry));
      if (owned(i)) {
        a.row_sum[out + i] = sum;
        a.column[out + i] = entry;
      }
      const float scale = __frcp_rn(static_cast<float>(sum));
      to.row[i] = value;
      to.scale[i] = scale;
      to.x[i] = value * scale;
    }
  }
  // Row c, which falls to the owners of the columns.
#pragma unroll 1
  for (int j = s.column_begin + threadIdx.x; j < s.column_end; j += kThreads) {
    float fresh = corner_twice;
    if (j != c) {
      fresh = blend(__ldcg(a.row + in + j), score(__ldcg(a.sums + base + j)));
      columns.store(j, c, __float2half_rn(kRowScale * fresh));
    }
    a.row[out + j] = fresh / total;
  }
  for (int i = s.blocks + threadIdx.x; i < (s.blocks + 7) / 8 * 8; i += kThreads) to.x[i] = 0.0f;
  __syncthreads();
}

/// y[j] = sum over i of x[i] A[i, j] for `count` <= 16 neighbouring columns at `from`, in shared or
/// global memory; the result stands in scratch[0..15]. x already holds the rows' scales, zeros
/// past b.
__device__ inline void multiply_columns(const __half* from, int count, int stride, int blocks,
                                        const float* x, float* scratch) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  float sum[kColumns] = {};
  for (int i = warp * 256 + lane * 8; i < blocks; i += kWarps * 256) {
    const float4 low = *reinterpret_cast<const float4*>(x + i);
    const float4 high = *reinterpret_cast<const float4*>(x + i + 4);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const uint4 raw = *reinterpret_cast<const uint4*>(from + (k < count ? k * stride : 0) + i);
      const auto* pair = reinterpret_cast<const __half2*>(&raw);
      const float2 e0 = __half22float2(pair[0]);
      const float2 e1 = __half22float2(pair[1]);
      const float2 e2 = __half22float2(pair[2]);
      const float2 e3 = __half22float2(pair[3]);
      sum[k] += e0.x * low.x + e0.y * low.y + e1.x * low.z + e1.y * low.w;
      sum[k] += e2.x * high.x + e2.y * high.y + e3.x * high.z + e3.y * high.w;
    }
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int mask = 16 >> step;
    const int half = 8 >> step;
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (k < half) {
        const float send = upper ? sum[k] : sum[k + half];
        const float keep = upper ? sum[k + half] : sum[k];
        sum[k] = keep + __shfl_xor_sync(0xffffffffu, send, mask);
      }
    }
  }
  sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], 1);
  __syncthreads();
  if (lane % 2 == 0) scratch[kColumns * (warp + 1) + lane / 2] = sum[0];
  __syncthreads();
  if (threadIdx.x < kColumns) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += scratch[kColumns * (w + 1) + threadIdx.x];
    scratch[threadIdx.x] = total;
  }
  __syncthreads();
}

/// Writes this thread block's share of the list: its forced blocks, and those of its blocks that
/// the scores choose, each at the place that its rank gives. `free_scores` has -infinity where a
/// block is forced or partly visible anyway, and past the blocks up to a multiple of 4.
__device__ void select_blocks(const Arguments& a, const Step& s, const DecodePlan& plan,
                              const float* scores, const float* free_scores) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  std::int32_t* list = a.blocks + static_cast<std::int64_t>(s.sequence) * a.capacity;
  const int forced = forced_blocks(plan);
  const int free_end = s.blocks - plan.window;
  int kept = 0;
  for (int j = s.column_begin + warp; j < s.column_end; j += kWarps) {
    if (j < plan.sink || j >= free_end) {
      if (lane == 0) list[j < plan.sink ? j : plan.sink + j - free_end] = j;
      continue;
    }
    const float mine = scores[j];
    int better = 0;
#pragma unroll 4
    for (int i = lane * 4; i < s.blocks; i += 128) {
      const float4 other = *reinterpret_cast<const float4*>(free_scores + i);
      better += other.x > mine || (other.x == mine && i > j) ? 1 : 0;
      better += other.y > mine || (other.y == mine && i + 1 > j) ? 1 : 0;
      better += other.z > mine || (other.z == mine && i + 2 > j) ? 1 : 0;
      better += other.w > mine || (other.w == mine && i + 3 > j) ? 1 : 0;
    }
    better = __reduce_add_sync(0xffffffffu, better);
    bool keep = better < plan.scored;
    if (plan.scored < 0) {
      int less = 0;
      for (int i = plan.between_begin + lane; i < plan.between_end; i += 32) {
        less += scores[i] < mine ? 1 : 0;
      }
      keep = __reduce_add_sync(0xffffffffu, less) > plan.quantile_low;
    }
    if (j == plan.boundary) {
      if (lane == 0) list[forced] = keep ? j : ~j;
    } else if (keep) {
      if (lane == 0) list[forced + (plan.boundary >= 0 ? 1 : 0) + better] = j;
      ++kept;
    }
  }
  if (lane == 0 && kept > 0) atomicAdd(a.counts + s.sequence, kept);
}

template <class T, int kDim>
// Registers: beside two of these warps, each quarter of a multiprocessor has room for one warp of
// the attention kernel, which runs at the same time.
__global__ void __maxnreg__(168) decode_selection_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  __shared__ float scratch_bytes[2816];  // 11 rows of 256, or of 128 with a result row before them
  const Step s = make_step(a);
  SequenceBarrier barrier(a.barriers + s.sequence, s.member, s.members);
  const std::int64_t base = static_cast<std::int64_t>(s.sequence) * a.capacity;
  Tiles tiles;
  tiles.keys = reinterpret_cast<__half*>(shared_bytes);
  tiles.queries = reinterpret_cast<__half*>(shared_bytes + a.stage_bytes);
  tiles.scratch = scratch_bytes;
  float* scratch = scratch_bytes;
  Columns columns;
  columns.shared = reinterpret_cast<__half*>(shared_bytes);
  columns.global = a.transition + base * a.capacity;
  columns.begin = s.column_begin;
  columns.resident = a.resident;
  columns.stride = a.capacity;
  const int resident = min(s.column_end - s.column_begin, a.resident);
  const DecodePlan plan = decode_plan(a.budget, s.tokens, a.cache.block);
  if (s.member == 0 && threadIdx.x == 0) {
    a.counts[s.sequence] = forced_blocks(plan) + (plan.boundary >= 0 ? 1 : 0);
  }

  // Scores of the window against the blocks: first the statistics that the softmax over all blocks
  // needs, then the probabilities. Where every thread block has one task at most, the exponentials
  // stay in registers between the two; otherwise they are made again. With all blocks in one task
  // there is nothing to wait for.
  const auto start_columns = [&] {
#pragma unroll 1
    for (int k = threadIdx.x / 32; a.walks && k < resident; k += kWarps) {
      const __half* from =
          columns.global + static_cast<std::int64_t>(s.column_begin + k) * a.capacity;
#pragma unroll 1
      for (int i = threadIdx.x % 32 * 8; i < s.blocks; i += 256) {
        copy_async_16(columns.shared + k * a.capacity + i, from + i, true);
      }
    }
    copy_async_commit();
  };
  // What the walk will read, on its way to L2 while the scores are worked out.
  const auto prefetch_walk = [&] {
#pragma unroll 1
    for (int k = threadIdx.x / 32; k < s.column_end - s.column_begin; k += kWarps) {
      const __half* column =
          columns.global + static_cast<std::int64_t>(s.column_begin + k) * a.capacity;
#pragma unroll 1
      for (int i = threadIdx.x % 32 * 64; i < s.blocks; i += 2048) {
        prefetch_l2(column + i);
      }
    }
    const std::int64_t plane = static_cast<std::int64_t>(a.cache.batch) * a.capacity;
    const std::int64_t in = (s.parity ^ 1) * plane + base;
    for (int i = threadIdx.x * 16; i < s.blocks; i += kThreads * 16) {
      prefetch_l2(a.row_sum + in + i);
      prefetch_l2(a.column + in + i);
      prefetch_l2(a.row + in + i);
    }
  };
  float p[kQueryTiles][4];
  const bool once = s.tasks <= s.members;
#pragma unroll 1
  for (int pass = 0; pass < (s.chunks > 1 ? 2 : 1); ++pass) {
#pragma unroll 1
    for (int task = s.member; task < s.tasks; task += s.members) {
      const Task t = make_task(s, task);
      if (pass == 0 || !once) {
        load_task<T, kDim>(a, s, t, tiles);
        if (a.walks && pass == 0 && task == s.member) prefetch_walk();
        score_task(a, t, tiles, p);
        publish_statistics(a, s, task, p, scratch);
      }
      if (pass == 1 || s.chunks == 1) add_probabilities(a, s, t, task, p, scratch);
    }
    if (pass == 1 || once || s.chunks == 1) {
      __syncthreads();
      if (pass == 0 || !once) start_columns();  // the keys' room is free
    }
    barrier.wait();
  }

  Vectors vectors;
  vectors.row = reinterpret_cast<float*>(shared_bytes + a.stage_bytes);
  vectors.scale = vectors.row + a.capacity;
  vectors.x = vectors.scale + a.capacity;
  const double unit = 1.0 / (kFixedPoint * a.num_heads * s.queries);
  copy_async_wait<0>();
  __syncthreads();
  const int free_end = s.blocks - plan.window;
  // The scores in place of the scales, and where they compete in place of the state.
  const auto keep_scores = [&](int i, float score) {
    vectors.scale[i] = score;
    vectors.x[i] = i >= plan.sink && i < free_end && i != plan.boundary ? score : -INFINITY;
  };
  if (a.walks) {
    update_transition(a, s, columns, unit, vectors);
    const std::int64_t plane = static_cast<std::int64_t>(a.cache.batch) * a.capacity;
    for (int step = 0; step < a.degree; ++step) {
      const bool last = step + 1 == a.degree;
      float* state = last ? a.scores + base : a.states + (step & 1) * plane + base;
      for (int first = s.column_begin; first < s.column_end; first += kColumns) {
        const int count = min(kColumns, s.column_end - first);
        multiply_columns(columns.column(first), count, a.capacity, s.blocks, vectors.x, scratch);
        const int j = first + threadIdx.x;
        if (threadIdx.x < kColumns && j < s.column_end) {
          state[j] = (1.0f - a.damping) * vectors.row[j] + a.damping * scratch[threadIdx.x];
        }
      }
      barrier.wait();
      constexpr int kBatch = 8;  // loads under way at a time
#pragma unroll 1
      for (int begin = threadIdx.x; begin < s.blocks; begin += kBatch * kThreads) {
        float y[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          y[k] = __ldcg(state + min(begin + k * kThreads, s.current));
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const int i = begin + k * kThreads;
          if (i >= s.blocks) break;
          if (last) {
            keep_scores(i, y[k]);
          } else {
            vectors.x[i] = y[k] * vectors.scale[i];
          }
        }
      }
      __syncthreads();
    }
  } else {
    for (int i = threadIdx.x; i < s.blocks; i += kThreads) {
      keep_scores(i, static_cast<float>(static_cast<double>(__ldcg(a.sums + base + i)) * unit));
    }
    __syncthreads();
    for (int j = s.column_begin + threadIdx.x; j < s.column_end; j += kThreads) {
      a.scores[base + j] = vectors.scale[j];
    }
    barrier.wait();  // the sums are cleared below
  }
  for (int i = s.blocks + threadIdx.x; i < (s.blocks + 3) / 4 * 4; i += kThreads) {
    vectors.x[i] = -INFINITY;
  }
  for (int j = s.column_begin + threadIdx.x; j < s.column_end; j += kThreads) a.sums[base + j] = 0;
  __syncthreads();
  select_blocks(a, s, plan, vectors.scale, vectors.x);
}

/// One warp for each of `count` vectors: block sums of the keys, transformed and split.
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
    x[e] = sum / divisor;
    if (j == b - 1) {
      const int plane = a.cache.batch * a.cache.kv_heads * dim;
      a.key_sum[(tokens & 1) * plane + head * dim + e * 32 + lane] = sum;
    }
  }
  transform<kDim>(a, x, buffers[warp]);
  const std::int64_t plane =
      static_cast<std::int64_t>(a.cache.batch) * a.cache.kv_heads * a.capacity * a.rank;
  for (int i = lane; i < a.rank; i += 32) {
    const float y = i < kDim ? buffers[warp][i] : 0.0f;
    const __half hi = __float2half_rn(y);
    const std::int64_t to = (static_cast<std::int64_t>(head) * a.capacity + j) * a.rank + i;
    a.keys[to] = hi;
    a.keys[plane + to] = __float2half_rn(y - __half2float(hi));
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
  transform<kDim>(a, x, buffers[warp]);
  for (int k = lane; k < a.rank; k += 32) {
    a.queries[(static_cast<std::int64_t>(head) * a.window + slot) * a.rank + k] =
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
  if (threadIdx.x == 0) a.row_sum[out + i] = static_cast<double>(kRowScale) * partial[0];
}

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorKind::kUnsupported, "decode selection on the GPU does not support " + what,
              "use --backend cpu");
}

int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "query of the current GPU");
  check(cudaDeviceGetAttribute(&value, attribute, device), "query of the GPU");
  return value;
}

template <class T>
DeviceBuffer<T> zeros(std::size_t count) {
  DeviceBuffer<T> buffer(count);
  check(cudaMemset(buffer.data(), 0, buffer.bytes()), "clearing of the decode state");
  return buffer;
}

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
    a.dim_used = s.dim_used_;
    a.exact = s.exact_;
    a.partial_mean = s.partial_mean_;
    a.walks = s.walks_;
    a.damping = static_cast<float>(s.shape_.damping);
    a.degree = s.shape_.degree;
    a.logit_scale_log2 = s.logit_scale_log2_;
    a.blocks_per_sequence = s.blocks_per_sequence_;
    a.resident = s.resident_;
    a.stage_bytes = s.stage_bytes_;
    a.signs = s.signs_.data();
    a.permutation = s.permutation_.data();
    a.transition = reinterpret_cast<__half*>(s.transition_.data());
    a.row_sum = s.row_sum_.data();
    a.column = s.column_.data();
    a.row = s.row_.data();
    a.queries = reinterpret_cast<__half*>(s.queries_.data());
    a.keys = reinterpret_cast<__half*>(s.keys_.data());
    a.key_sum = s.key_sum_.data();
    a.stats = reinterpret_cast<float2*>(s.stats_.data());
    a.sums = s.sums_.data();
    a.states = s.states_.data();
    a.scores = s.scores_.data();
    a.blocks = s.blocks_.data();
    a.counts = s.counts_.data();
    a.faults = s.faults_.data();
    a.barriers = s.barriers_.data();
    return a;
  }
};

DecodeSelector::DecodeSelector(const KvCache& cache, const DecodeSelectorShape& shape,
                               const SketchParams& params, std::int64_t layer)
    : shape_(shape), batch_(cache.batch) {
  using Aggregation = SketchParams::Aggregation;
  const int d = cache.head_dim;
  if (params.aggregation != Aggregation::kPerHead || params.sharpness != 1.0) {
    refuse("the scores of the preset preprint (aggregation=head_mean, sharpness)");
  }
  if (params.tokens_per_query() != params.block || params.tokens_per_key() != params.block) {
    refuse("query_pool and key_pool below the block size");
  }
  if (d != 64 && d != 128 && d != 256) refuse("head_dim " + std::to_string(d));
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) < 8) {
    refuse("a GPU below compute capability 8.0");
  }
  const Sketch sketch(params, layer, d);
  exact_ = params.exact;
  partial_mean_ = params.partial_mean;
  walks_ = shape.damping != 0.0 && shape.degree > 0;
  dim_used_ = static_cast<int>(sketch.dim());
  rank_ = 32;
  while (rank_ < dim_used_) rank_ *= 2;
  // The kernel's vectors are orthonormal; the square of the sketch's own scale goes to the logit.
  const double r = static_cast<double>(dim_used_);
  const double vectors = params.exact ? 1.0 : params.unbiased ? d / r : r;
  logit_scale_log2_ =
      static_cast<float>(1.4426950408889634 * vectors * sketch.logit_scale() / params.temperature);

  const int group = shape.num_heads / cache.kv_heads;
  const int row_groups = (group * shape.query_window + kQueryRows - 1) / kQueryRows;
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  shape_.capacity = round_up(shape.capacity, 8);
  blocks_per_sequence_ = std::max(1, multiprocessors / batch_);
  const int columns = (shape_.capacity + blocks_per_sequence_ - 1) / blocks_per_sequence_;
  const int vector_bytes = std::max(2 * kQueryRows * rank_, 12 * shape_.capacity);
  constexpr int kStaticBytes = 12 * 1024;
  const int limit = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStaticBytes;
  max_keys_ = std::min(16 * kWarps, (limit - vector_bytes) / (4 * rank_) / 16 * 16);
  max_keys_ = std::min(max_keys_, std::max(16, 96 * 1024 / (4 * rank_) / 16 * 16));
  if (max_keys_ < 16) {
    refuse(
        "contexts of " + std::to_string(shape.capacity) + " blocks: the row and its scales are " +
        "held in shared memory, of which a thread block has " + std::to_string(limit) + " bytes");
  }
  // The keys' room is that of this thread block's columns of A later, where those fit.
  stage_bytes_ = 4 * max_keys_ * rank_;
  const int column_bytes = 2 * columns * shape_.capacity;
  if (column_bytes <= std::min(96 * 1024, limit - vector_bytes)) {
    stage_bytes_ = std::max(stage_bytes_, column_bytes);
  }
  resident_ = stage_bytes_ / (2 * shape_.capacity);
  if (resident_ < columns) resident_ = resident_ / kColumns * kColumns;  // whole passes of the walk
  shared_bytes_ = stage_bytes_ + vector_bytes;
  max_tasks_ = 0;
  for (int blocks = 1; blocks <= shape_.capacity; ++blocks) {
    int keys = 0;
    int chunks = 0;
    max_tasks_ = std::max(max_tasks_, tasks_of(cache.kv_heads, row_groups, blocks,
                                               blocks_per_sequence_, max_keys_, keys, chunks));
  }

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
  column_ = zeros<float>(2 * batch * capacity);
  row_ = zeros<float>(2 * batch * capacity);
  queries_ = zeros<std::uint16_t>(heads * static_cast<std::size_t>(shape.query_window) * rank);
  keys_ = zeros<std::uint16_t>(2 * kv_heads * capacity * rank);
  key_sum_ = zeros<float>(2 * kv_heads * static_cast<std::size_t>(d));
  stats_ = zeros<float>(batch * static_cast<std::size_t>(max_tasks_) * kQueryRows * 2);
  sums_ = zeros<unsigned long long>(batch * capacity);
  states_ = zeros<float>(2 * batch * capacity);
  scores_ = zeros<float>(batch * capacity);
  blocks_ = zeros<std::int32_t>(batch * capacity);
  counts_ = zeros<std::int32_t>(batch);
  faults_ = zeros<std::int32_t>(batch);
  barriers_ = zeros<unsigned>(batch);
  visit_element(cache.element, [&]<class T>() {
    visit_dim(d, [&]<int kDim>() {
      allow_shared_memory(decode_selection_kernel<T, kDim>, shared_bytes_);
    });
  });
}

void DecodeSelector::load(const KvCache& cache, const DecodeInitialState& state,
                          cudaStream_t stream) {
  const Arguments a = Launch::arguments(*this, cache, nullptr);
  const auto quarter = [](int x) { return static_cast<unsigned>((x + 3) / 4); };
  const dim3 keys(quarter(state.blocks), static_cast<unsigned>(batch_ * cache.kv_heads));
  const dim3 window(quarter(shape_.query_window), static_cast<unsigned>(batch_ * shape_.num_heads));
  visit_dim(cache.head_dim, [&]<int kDim>() {
    load_keys_kernel<kDim><<<keys, 128, 0, stream>>>(a, state.key_sums, state.blocks);
    check_launch("load_keys_kernel");
    load_window_kernel<kDim><<<window, 128, 0, stream>>>(a, state.query_window);
    check_launch("load_window_kernel");
  });
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
      decode_selection_kernel<T, kDim><<<grid, kThreads, shared_bytes_, stream>>>(a);
    });
  });
  check_launch("decode_selection_kernel");
}

DecodeList DecodeSelector::list() const {
  return {blocks_.data(), counts_.data(), 1, shape_.capacity};
}

std::size_t DecodeSelector::bytes() const {
  return transition_.bytes() + row_sum_.bytes() + column_.bytes() + row_.bytes() +
         queries_.bytes() + keys_.bytes() + key_sum_.bytes() + stats_.bytes() + sums_.bytes() +
         states_.bytes() + scores_.bytes() + blocks_.bytes();
}

}  // namespace sw::cuda
