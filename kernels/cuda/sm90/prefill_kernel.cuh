#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/sm90/prefill_params.hpp"
#include "kernels/cuda/sm90/ptx.cuh"

/// Block-sparse flash attention for Hopper. A persistent CTA has one producer warp, which reads the
/// lists of key blocks and starts the copies, and 1, 2 or 4 consumer warpgroups with 64 query rows
/// each. K and V tiles pass through one ring of shared-memory slots, in the order in which they are
/// used: K0, K1, V0, K2, V1, ... A consumer issues the logits of step i before the product of the
/// probabilities of step i-1 with V, so that the softmax of step i runs under that product.
///
/// The first step of a tile has the diagonal block(s) and is the only one with a causal mask; in
/// masked instances every step is masked, by the positions that the producer leaves in the slot.
namespace sw::cuda::prefill {

constexpr int kFine = 64;          // tokens of a fine block: rows of a warpgroup, rows of a copy
constexpr int kPanelBytes = 8192;  // 64 rows of 64 columns
constexpr int kNowhere = INT_MAX / 2;  // position of keys that no query sees
constexpr int kMaxShared = 232448;     // bytes that a CTA may have
constexpr int kSharedOfTwo = 115712;   // and each of two on a multiprocessor

template <Element kElement>
using Storage = std::conditional_t<kElement == Element::kBf16, __nv_bfloat16, __half>;

template <Element kElement, int kDim, int kWarpgroups, bool kMasked>
struct Config {
  using T = Storage<kElement>;
  static constexpr int dim = kDim;
  static constexpr int warpgroups = kWarpgroups;
  static constexpr bool masked = kMasked;
  static constexpr int keys = (kDim <= 128 && kWarpgroups == 2) ? 128 : 64;  // of a step
  static constexpr int halves = keys / kFine;
  static constexpr int panels = kDim / 64;
  static constexpr int query_bytes = kFine * kDim * 2;  // of a warpgroup
  static constexpr int slot_bytes = keys * kDim * 2;
  static constexpr int ctas = (kWarpgroups == 1 && kDim <= 128) ? 2 : 1;
  static constexpr int control_bytes = 1024;
  static constexpr int slots = std::min(
      16, ((ctas == 2 ? kSharedOfTwo : kMaxShared) - control_bytes - kWarpgroups * query_bytes) /
              slot_bytes);
  static constexpr int shared_bytes =
      kWarpgroups * query_bytes + slots * slot_bytes + control_bytes;
  static constexpr int threads = 128 * (kWarpgroups + 1);
  // What the launch gives to a thread, times the threads, is dealt out anew.
  static constexpr int producer_registers = kWarpgroups == 4       ? (kMasked ? 32 : 24)
                                            : ctas == 2 || kMasked ? 40
                                                                   : 24;
  static constexpr int consumer_registers = kWarpgroups == 4 ? 112
                                            : ctas == 2      ? 216
                                            : kMasked        ? 232
                                                             : 240;
};

/// What a consumer must know of a tile, written by the producer with the queries.
struct Tile {
  int head;           // of this warpgroup
  int fine;           // fine block of the queries of this warpgroup
  int steps;          // 0: no more tiles
  int first_keys[2];  // positions of the fine blocks of the first step
};

template <class C>
struct Control {
  std::uint64_t full[C::slots];
  std::uint64_t empty[C::slots];
  std::uint64_t query_full[C::warpgroups];
  std::uint64_t query_empty[C::warpgroups];
  Tile tile[C::warpgroups];
  int2 keys[C::masked ? C::slots : 1][2];  // position of a fine block, and whether it is kept
};

/// Place in the ring of slots, and the parity of the slot's next full phase.
template <class C>
struct Ring {
  int slot = 0;
  std::uint32_t phase = 0;
  __device__ void advance() {
    if (++slot == C::slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

template <class C>
struct Shared {
  std::uint32_t queries;  // addresses
  std::uint32_t slots;
  Control<C>* control;

  __device__ explicit Shared(unsigned char* base)
      : queries(ptx::shared_address(base)),
        slots(queries + C::warpgroups * C::query_bytes),
        control(reinterpret_cast<Control<C>*>(base + C::warpgroups * C::query_bytes +
                                              C::slots * C::slot_bytes)) {
    static_assert(sizeof(Control<C>) <= C::control_bytes);
  }
  __device__ std::uint32_t slot(int i) const { return slots + i * C::slot_bytes; }
  __device__ std::uint32_t full(int i) const { return ptx::shared_address(&control->full[i]); }
  __device__ std::uint32_t empty(int i) const { return ptx::shared_address(&control->empty[i]); }
  __device__ std::uint32_t query_full(int w) const {
    return ptx::shared_address(&control->query_full[w]);
  }
  __device__ std::uint32_t query_empty(int w) const {
    return ptx::shared_address(&control->query_empty[w]);
  }
};

// ---------------------------------------------------------------- producer

/// Entries of a list in device memory, read in ascending order by a whole warp: each lane holds one
/// of 32 entries, and the next 32 are on their way.
class ListReader {
 public:
  __device__ void open(const std::int32_t* list, int count, int lane) {
    list_ = list;
    count_ = count;
    lane_ = lane;
    base_ = 0;
    now_ = load(0);
    next_ = load(32);
  }
  __device__ int operator[](int i) {
    while (i >= base_ + 32) {
      base_ += 32;
      now_ = next_;
      next_ = load(base_ + 32);
    }
    return __shfl_sync(0xffffffffu, now_, i - base_);
  }

 private:
  __device__ int load(int begin) const {
    const int i = begin + lane_;
    return i < count_ ? list_[i] : INT_MAX;
  }
  const std::int32_t* list_ = nullptr;
  int count_ = 0;
  int lane_ = 0;
  int base_ = 0;
  int now_ = 0;
  int next_ = 0;
};

struct FineBlock {
  int index;
  bool kept;
};

/// Enumerates the fine key blocks of a tile: those of its own rows first, then the rest ascending.
template <bool kMasked>
class KeyBlocks {
 public:
  __device__ KeyBlocks(const PrefillParams& p, int head, int fine, int lane)
      : per_block_(p.fine_per_block), diagonal_(fine), diagonals_(p.rows_per_tile) {
    // Dense: nothing is listed, and all blocks are those of the own block before the diagonal.
    const std::int32_t* blocks = nullptr;
    if (p.row_begin != nullptr) {
      const int own = fine / per_block_;
      const int row = (head / p.heads_per_group) * p.selection_rows + own - p.first_row;
      const int listed = p.row_count[row] - 1;
      blocks = p.blocks + p.row_begin[row];
      list_.open(blocks, listed, lane);
      listed_fine_ = listed * per_block_;
      own_begin_ = own * per_block_;
    }
    if constexpr (!kMasked) {
      count_ = listed_fine_ + fine + diagonals_ - own_begin_;
    } else {
      // Blocks of the sink, of the window and the own block are all touched, kept or not; between
      // sink and window the kept ones.
      const int first_query = max(fine * kFine, p.query_begin);
      const int window =
          p.token_window > 0 ? max(first_query - p.token_window + 1, 0) / kFine : fine;
      window_begin_ = min(window, own_begin_);
      sink_end_ = min((p.token_sink + kFine - 1) / kFine, window_begin_);
      int between = 0;
      for (int i = lane; i < listed_fine_; i += 32) {
        const int f = blocks[i / per_block_] * per_block_ + i % per_block_;
        between += f >= sink_end_ && f < window_begin_;
      }
      count_ =
          __reduce_add_sync(0xffffffffu, between) + sink_end_ + fine + diagonals_ - window_begin_;
    }
  }

  __device__ int count() const { return count_; }

  /// The next fine block; all 32 lanes call.
  __device__ FineBlock next() {
    const int i = taken_++;
    if (i < diagonals_) return {diagonal_ + i, true};
    if constexpr (!kMasked) {
      const int j = i - diagonals_;
      if (j >= listed_fine_) return {own_begin_ + j - listed_fine_, true};
      return {list_[j / per_block_] * per_block_ + j % per_block_, true};
    } else {
      while (true) {
        const int block = cursor_ / per_block_;
        int listed = INT_MAX;
        while (at_ * per_block_ < listed_fine_ && (listed = list_[at_]) < block) ++at_;
        if (at_ * per_block_ >= listed_fine_) listed = INT_MAX;
        const bool kept = listed == block || cursor_ >= own_begin_;
        if (kept || cursor_ < sink_end_ || cursor_ >= window_begin_) return {cursor_++, kept};
        cursor_ = listed == INT_MAX ? window_begin_ : min(window_begin_, listed * per_block_);
      }
    }
  }

 private:
  ListReader list_;
  int per_block_;
  int diagonal_;
  int diagonals_;
  int own_begin_ = 0;
  int listed_fine_ = 0;
  int count_ = 0;
  int taken_ = 0;
  int window_begin_ = 0;
  int sink_end_ = 0;
  int cursor_ = 0;
  int at_ = 0;
};

template <class C>
__device__ void load_slot(const Shared<C>& shared, Ring<C>& ring, const CUtensorMap& map,
                          const FineBlock (&blocks)[C::halves], int kv_head, bool leader) {
  ptx::barrier_wait(shared.empty(ring.slot), ring.phase ^ 1);
  if (leader) {
    const std::uint32_t full = shared.full(ring.slot);
    if constexpr (C::masked) {
#pragma unroll
      for (int h = 0; h < C::halves; ++h) {
        shared.control->keys[ring.slot][h] =
            make_int2(blocks[h].index < 0 ? kNowhere : blocks[h].index * kFine, blocks[h].kept);
      }
    }
    ptx::barrier_arrive_expect(full, C::slot_bytes);
#pragma unroll
    for (int h = 0; h < C::halves; ++h) {
      // An absent half is loaded all the same: its probabilities are 0, but V must be finite.
      const int token = (blocks[h].index < 0 ? blocks[0].index : blocks[h].index) * kFine;
#pragma unroll
      for (int panel = 0; panel < C::panels; ++panel) {
        ptx::copy_box(shared.slot(ring.slot) + (panel * C::halves + h) * kPanelBytes, map, full,
                      panel * 64, token, kv_head);
      }
    }
  }
  __syncwarp();
  ring.advance();
}

template <class C>
__device__ void load_queries(const PrefillParams& p, const Shared<C>& shared, std::uint32_t phase,
                             int kv_head, int set, int fine, int steps,
                             const FineBlock (&first)[C::halves], bool leader) {
#pragma unroll
  for (int w = 0; w < C::warpgroups; ++w) {
    ptx::barrier_wait(shared.query_empty(w), phase ^ 1);
    if (leader) {
      // Warpgroups beyond the last head of the group repeat it and store nothing.
      const int in_group = set * p.heads_per_tile + w % p.heads_per_tile;
      const int head = kv_head * p.group + min(in_group, p.group - 1);
      const int own_fine = fine + w / p.heads_per_tile;
      Tile& tile = shared.control->tile[w];
      tile.head = in_group < p.group ? head : -1;
      tile.fine = own_fine;
      tile.steps = steps;
      tile.first_keys[0] = first[0].index * kFine;
      tile.first_keys[1] =
          first[C::halves - 1].index < 0 ? kNowhere : first[C::halves - 1].index * kFine;
      const std::uint32_t full = shared.query_full(w);
      ptx::barrier_arrive_expect(full, C::query_bytes);
#pragma unroll
      for (int panel = 0; panel < C::panels; ++panel) {
        ptx::copy_box(shared.queries + w * C::query_bytes + panel * kPanelBytes, p.q, full,
                      panel * 64, own_fine * kFine - p.query_begin, head);
      }
    }
    __syncwarp();
  }
}

template <class C>
__device__ void produce(const PrefillParams& p, const Shared<C>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool leader = lane == 0;
  if (leader) {
    ptx::prefetch_map(p.q);
    ptx::prefetch_map(p.k);
    ptx::prefetch_map(p.v);
  }
  Ring<C> ring;
  std::uint32_t query_phase = 0;
  int index = static_cast<int>(blockIdx.x);
  while (index < p.tiles) {
    int following = 0;
    if (leader) following = static_cast<int>(gridDim.x) + atomicAdd(p.tile_counter, 1);

    // KV heads one after the other, so that their K and V stay in L2; long rows first.
    const int tiles_of_kv = p.tile_rows * p.sets;
    const int kv_head = index / tiles_of_kv;
    const int row = p.tile_rows - 1 - index % tiles_of_kv / p.sets;
    const int set = index % p.sets;
    const int fine = p.first_fine + row * p.rows_per_tile;
    KeyBlocks<C::masked> list(p, kv_head * p.group + set * p.heads_per_tile, fine, lane);
    const int steps = (list.count() + C::halves - 1) / C::halves;
    const bool odd = list.count() % C::halves != 0;

    FineBlock now[C::halves];
    FineBlock before[C::halves];
    for (int i = 0; i <= steps; ++i) {
      if (i < steps) {
#pragma unroll
        for (int h = 0; h < C::halves; ++h) {
          now[h] = i == 0 && h == 1 && odd ? FineBlock{-1, false} : list.next();
        }
        load_slot<C>(shared, ring, p.k, now, kv_head, leader);
        if (i == 0) load_queries<C>(p, shared, query_phase, kv_head, set, fine, steps, now, leader);
      }
      if (i > 0) load_slot<C>(shared, ring, p.v, before, kv_head, leader);
#pragma unroll
      for (int h = 0; h < C::halves; ++h) before[h] = now[h];
    }
    query_phase ^= 1;
    index = __shfl_sync(0xffffffffu, following, 0);
  }
#pragma unroll
  for (int w = 0; w < C::warpgroups; ++w) {
    ptx::barrier_wait(shared.query_empty(w), query_phase ^ 1);
    if (leader) {
      shared.control->tile[w].steps = 0;
      ptx::barrier_arrive(shared.query_full(w));
    }
  }
}

// ---------------------------------------------------------------- consumer

__device__ inline float exp2_hardware(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
__device__ std::uint32_t pack(float low, float high);
template <>
__device__ inline std::uint32_t pack<__nv_bfloat16>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
__device__ inline std::uint32_t pack<__half>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

/// State of the two rows of a thread: r = 0 is row lane / 4 of the warp's 16, r = 1 that plus 8.
struct RowState {
  float reference[2];  // largest logit so far, scaled to log2 units
  float sum[2];        // of this thread's columns
};

/// Turns the logits of a step into probabilities relative to the largest logit so far. When that
/// grew in any row of the warp, returns true, and what was accumulated before has to be multiplied
/// by `factor`.
template <class C>
__device__ bool softmax_step(float (&s)[C::keys / 2], float scale_log2, RowState& rows,
                             float (&factor)[2]) {
  constexpr int kCount = C::keys / 2;
  float top[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float a = fmaxf(s[2 * r], s[2 * r + 1]);
    float b = fmaxf(s[4 + 2 * r], s[4 + 2 * r + 1]);
#pragma unroll
    for (int i = 8; i < kCount; i += 8) {
      a = fmaxf(a, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
      b = fmaxf(b, fmaxf(s[i + 4 + 2 * r], s[i + 4 + 2 * r + 1]));
    }
    a = fmaxf(a, b);
    a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 1));
    a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, 2));
    top[r] = a * scale_log2;
  }
  const bool grew =
      __any_sync(0xffffffffu, top[0] > rows.reference[0] || top[1] > rows.reference[1]);
  if (grew) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float reference = fmaxf(rows.reference[r], top[r]);
      factor[r] = exp2_hardware(rows.reference[r] - reference);
      rows.reference[r] = reference;
      rows.sum[r] *= factor[r];
    }
  }
  // Always true, which the assembler does not know: it would move the wait for the product with V,
  // which follows, from behind the exponentials to before them, if they were one basic block.
  if (scale_log2 > 0.0f) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = 0.0f;
      float odd = 0.0f;
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        s[i + 2 * r] = exp2_hardware(fmaf(s[i + 2 * r], scale_log2, -rows.reference[r]));
        s[i + 2 * r + 1] = exp2_hardware(fmaf(s[i + 2 * r + 1], scale_log2, -rows.reference[r]));
        even += s[i + 2 * r];
        odd += s[i + 2 * r + 1];
      }
      rows.sum[r] += even + odd;
    }
  }
  return grew;
}

/// Hides logits: `visible(query, key, half)` by absolute positions.
template <class C, class Visible>
__device__ void mask(float (&s)[C::keys / 2], int first_query, const int (&first_key)[C::halves],
                     Visible&& visible) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < C::keys / 2; ++i) {
    const int half = i / 32;
    const int query = first_query + lane / 4 + (i % 4) / 2 * 8;
    const int key = first_key[half] + i % 32 / 4 * 8 + lane % 4 * 2 + i % 2;
    if (!visible(query, key, half)) s[i] = -INFINITY;
  }
}

template <class C>
__device__ void pack_all(const float (&s)[C::keys / 2], std::uint32_t (&p)[C::keys / 4]) {
#pragma unroll
  for (int i = 0; i < C::keys / 4; ++i) {
    p[i] = pack<typename C::T>(s[2 * i], s[2 * i + 1]);
  }
}

/// s = Q K^T of a slot, issued and committed.
template <class C>
__device__ void issue_logits(float (&s)[C::keys / 2], std::uint64_t queries, std::uint64_t keys) {
#pragma unroll
  for (int k = 0; k < C::dim / 16; ++k) {
    const int panel = k / 4;
    const int in_panel = k % 4 * 32;
    ptx::mma_shared<typename C::T>(s, queries + ((panel * kPanelBytes + in_panel) >> 4),
                                   keys + ((panel * C::halves * kPanelBytes + in_panel) >> 4),
                                   k > 0);
  }
  ptx::mma_commit();
}

/// o += P V of a slot, issued and committed.
template <class C>
__device__ void issue_values(float (&o)[C::dim / 2], const std::uint32_t (&p)[C::keys / 4],
                             std::uint64_t values) {
#pragma unroll
  for (int k = 0; k < C::keys / 16; ++k) {
    ptx::mma_registers<typename C::T>(o, p + 4 * k, values + ((k * 2048) >> 4));
  }
  ptx::mma_commit();
}

/// Transposes a 4 x 4 matrix of which lane t of each four holds column t, so that it holds row t.
__device__ inline void transpose_quad(std::uint32_t (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & step) continue;
      const std::uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + step], step);
      (upper ? x[i] : x[i + step]) = got;
    }
  }
}

/// Divides by the row sums and writes the rows that are queries: 16 bytes a lane.
template <class C>
__device__ void store_output(const PrefillParams& p, const Tile& tile, const RowState& rows,
                             const float (&o)[C::dim / 2], int warp) {
  using T = typename C::T;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int queries = p.tokens - p.query_begin;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.0f / sum;
    const int query = tile.fine * kFine + warp * 16 + lane / 4 + r * 8 - p.query_begin;
    const bool active = tile.head >= 0 && query >= 0 && query < queries;
    T* out = static_cast<T*>(p.out) + tile.head * p.out_head_stride + query * p.out_token_stride;
#pragma unroll
    for (int column = 0; column < C::dim; column += 32) {
      std::uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = column / 2 + 4 * j + 2 * r;
        x[j] = pack<T>(o[i] * inverse, o[i + 1] * inverse);
      }
      transpose_quad(x);
      if (active) {
        __stcs(reinterpret_cast<uint4*>(out + column + lane % 4 * 8),
               make_uint4(x[0], x[1], x[2], x[3]));
      }
    }
    if (active && p.lse != nullptr && lane % 4 == 0) {
      p.lse[static_cast<std::int64_t>(tile.head) * queries + query] =
          (rows.reference[r] + log2f(sum)) * 0.6931471805599453f;
    }
  }
}

template <class C>
__device__ void consume(const PrefillParams& p, const Shared<C>& shared) {
  // The same in all lanes, and known to be so.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128 - 1, 0);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const bool leader = threadIdx.x % 32 == 0;
  const std::uint64_t queries = ptx::matrix_descriptor(shared.queries + group * C::query_bytes);
  const std::uint64_t keys = ptx::matrix_descriptor(shared.slots);
  const std::uint64_t values = ptx::matrix_descriptor(shared.slots, C::halves * kPanelBytes);
  const float scale_log2 = p.scale_log2;
  constexpr int kSlotStep = C::slot_bytes >> 4;

  Ring<C> ring;
  float s[C::keys / 2];
  float o[C::dim / 2];
  std::uint32_t probabilities[C::keys / 4];
  // One lane frees a slot for its warp. In masked instances all lanes have read the slot's
  // positions in ordinary loads: these come before the leader's arrival by way of __syncwarp(), and
  // the producer's next write comes after it. compute-sanitizer's racecheck does not follow that
  // and reports a hazard. It is silent when every lane arrives, which costs 3% at 131,072 tokens.
  const auto release = [&](int slot) {
    if constexpr (C::masked) __syncwarp();
    if (leader) ptx::barrier_arrive(shared.empty(slot));
  };
  // Each lane has read the tile, and says so for itself.
  const auto release_queries = [&] { ptx::barrier_arrive(shared.query_empty(group)); };

  for (std::uint32_t query_phase = 0;; query_phase ^= 1) {
    ptx::barrier_wait(shared.query_full(group), query_phase);
    const Tile tile = shared.control->tile[group];
    const int steps = __shfl_sync(0xffffffffu, tile.steps, 0);  // known to be the same in all lanes
    if (steps == 0) break;
    const int first_query = tile.fine * kFine + warp * 16;
    const auto mask_step = [&](int slot) {
      if constexpr (C::masked) {
        int first_key[C::halves];
        bool kept[C::halves];
#pragma unroll
        for (int h = 0; h < C::halves; ++h) {
          const int2 entry = shared.control->keys[slot][h];
          first_key[h] = entry.x;
          kept[h] = entry.y != 0;
        }
        mask<C>(s, first_query, first_key, [&](int query, int key, int half) {
          return key <= query && (kept[half] || key > query - p.token_window || key < p.token_sink);
        });
      }
    };

    RowState rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    float factor[2] = {1.0f, 1.0f};
#pragma unroll
    for (int i = 0; i < C::dim / 2; ++i) o[i] = 0.0f;

    ptx::barrier_wait(shared.full(ring.slot), ring.phase);
    ptx::pin(s);
    ptx::mma_fence();
    issue_logits<C>(s, queries, keys + ring.slot * kSlotStep);
    ptx::mma_wait<0>();
    ptx::pin(s);
    if constexpr (C::masked) {
      mask_step(ring.slot);
    } else {
      int first_key[C::halves];
#pragma unroll
      for (int h = 0; h < C::halves; ++h) first_key[h] = tile.first_keys[h];
      mask<C>(s, first_query, first_key, [](int query, int key, int) { return key <= query; });
    }
    release(ring.slot);
    ring.advance();
    if (steps == 1) release_queries();
    softmax_step<C>(s, scale_log2, rows, factor);
    pack_all<C>(s, probabilities);

    for (int i = 1; i < steps; ++i) {
      ptx::barrier_wait(shared.full(ring.slot), ring.phase);
      ptx::pin(s);
      ptx::pin(o);
      ptx::pin(probabilities);
      ptx::mma_fence();
      issue_logits<C>(s, queries, keys + ring.slot * kSlotStep);
      const int key_slot = ring.slot;
      ring.advance();
      ptx::barrier_wait(shared.full(ring.slot), ring.phase);
      ptx::mma_fence();
      issue_values<C>(o, probabilities, values + ring.slot * kSlotStep);
      const int value_slot = ring.slot;
      ring.advance();
      ptx::mma_wait<1>();
      ptx::pin(s);
      mask_step(key_slot);
      release(key_slot);
      if (i + 1 == steps) release_queries();
      const bool grew = softmax_step<C>(s, scale_log2, rows, factor);
      ptx::mma_wait<0>();
      ptx::pin(o);
      if (grew) {
#pragma unroll
        for (int j = 0; j < C::dim / 2; ++j) o[j] *= factor[j % 4 / 2];
      }
      ptx::pin(probabilities);
      release(value_slot);
      pack_all<C>(s, probabilities);
    }

    ptx::barrier_wait(shared.full(ring.slot), ring.phase);
    ptx::pin(o);
    ptx::pin(probabilities);
    ptx::mma_fence();
    issue_values<C>(o, probabilities, values + ring.slot * kSlotStep);
    ptx::mma_wait<0>();
    ptx::pin(o);
    release(ring.slot);
    ring.advance();
    store_output<C>(p, tile, rows, o, warp);
  }
}

template <class C>
__global__ void __launch_bounds__(C::threads, C::ctas)
    prefill_kernel(const __grid_constant__ PrefillParams p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Shared<C> shared(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < C::slots; ++i) {
      ptx::barrier_init(shared.full(i), 1);
      ptx::barrier_init(shared.empty(i), 4 * C::warpgroups);
    }
    for (int w = 0; w < C::warpgroups; ++w) {
      ptx::barrier_init(shared.query_full(w), 1);
      ptx::barrier_init(shared.query_empty(w), 128);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    ptx::shrink_registers<C::producer_registers>();
    if (threadIdx.x < 32) produce<C>(p, shared);
  } else {
    ptx::grow_registers<C::consumer_registers>();
    consume<C>(p, shared);
  }
}

template <class C>
PrefillInstance instance() {
  return {C::threads, C::shared_bytes, C::ctas, prefill_kernel<C>};
}

}  // namespace sw::cuda::prefill

namespace sw::cuda {

template <Element kElement, int kDim>
PrefillInstance prefill_instance(int warpgroups, bool masked) {
  using prefill::Config;
  using prefill::instance;
  if constexpr (kDim == 64) {
    if (warpgroups == 4) {
      return masked ? instance<Config<kElement, kDim, 4, true>>()
                    : instance<Config<kElement, kDim, 4, false>>();
    }
  }
  if (warpgroups == 2) {
    return masked ? instance<Config<kElement, kDim, 2, true>>()
                  : instance<Config<kElement, kDim, 2, false>>();
  }
  return masked ? instance<Config<kElement, kDim, 1, true>>()
                : instance<Config<kElement, kDim, 1, false>>();
}

}  // namespace sw::cuda
