#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/common/selection/select.hpp"

/// The selection of one row by a CTA or a warp of it, for any source of scores.
namespace sw::cuda {

/// Order of floats as an order of unsigned numbers; -0 equals 0. Of numbers none is 0.
__device__ inline unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/// kThreads threads work on a row, a warp or a whole CTA; thread t holds the blocks t, t + kThreads
/// and so on.
template <int kThreads, int kItems>
class Row {
 public:
  static constexpr int kWarps = kThreads / 32;

  struct Shared {
    int counts[kItems * kWarps];
    int partial[2][kWarps];
    int total;
  };

  __device__ explicit Row(Shared& shared) : shared_(shared) {}

  __device__ static int block(int item) { return item * kThreads + static_cast<int>(threadIdx.x); }

  /// Sum over the threads.
  __device__ int sum(int x) {
    return combine(__reduce_add_sync(0xffffffffu, x), [](int a, int b) { return a + b; });
  }
  __device__ unsigned largest(unsigned x) {
    return combine(__reduce_max_sync(0xffffffffu, x),
                   [](unsigned a, unsigned b) { return max(a, b); });
  }
  __device__ unsigned any_bit(unsigned x) {
    return combine(__reduce_or_sync(0xffffffffu, x), [](unsigned a, unsigned b) { return a | b; });
  }

  /// Calls emit(item, blocks before it for which `flag` holds) for the items for which it does;
  /// returns the number of all.
  template <class Flag, class Emit>
  __device__ int rank(Flag flag, Emit emit) {
    const unsigned below = (1u << (threadIdx.x % 32)) - 1;
    if constexpr (kWarps == 1) {
      int count = 0;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool set = flag(i);
        const unsigned vote = __ballot_sync(0xffffffffu, set);
        if (set) emit(i, count + __popc(vote & below));
        count += __popc(vote);
      }
      return count;
    } else {
      const int warp = static_cast<int>(threadIdx.x / 32);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const unsigned vote = __ballot_sync(0xffffffffu, flag(i));
        if (threadIdx.x % 32 == 0) shared_.counts[i * kWarps + warp] = __popc(vote);
      }
      __syncthreads();
      if (warp == 0) sum_up_counts();
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const bool set = flag(i);
        const unsigned vote = __ballot_sync(0xffffffffu, set);
        if (set) emit(i, shared_.counts[i * kWarps + warp] + __popc(vote & below));
      }
      return shared_.total;
    }
  }

  /// The largest key that at least `wanted` (>= 1) of the `count` keys that are not 0 reach: the
  /// wanted-th largest. `reaching` is how many do. Unless kExact, any key that exactly `wanted`
  /// keys reach will do.
  template <bool kExact>
  __device__ unsigned find_largest(const unsigned (&keys)[kItems], int count, int wanted,
                                   int& reaching) {
    reaching = count;
    if (!kExact && count == wanted) return 1;
    unsigned top = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) top = max(top, keys[i]);
    top = largest(top);
    unsigned differing = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) differing |= keys[i] != 0 ? keys[i] ^ top : 0u;
    differing = any_bit(differing);
    if (differing == 0) return top;
    // Bits above the first that differs are known.
    const unsigned first = 0x80000000u >> __clz(static_cast<int>(differing));
    unsigned threshold = top & ~(2 * first - 1);
    if constexpr (kThreads * kItems < 1024) {  // three counts fit in a word: two bits a round
      for (unsigned bit = first; bit != 0; bit >>= 2) {
        const unsigned candidates[3] = {threshold | bit >> 1, threshold | bit,
                                        threshold | bit | bit >> 1};
        int counts = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
#pragma unroll
          for (int c = 0; c < 3; ++c) counts += (keys[i] >= candidates[c]) << 10 * c;
        }
        counts = sum(counts);
        bool found = false;
#pragma unroll
        for (int c = 2; c >= 0; --c) {
          const int reached = counts >> 10 * c & 1023;
          if (found || reached < wanted) continue;
          found = true;
          threshold = candidates[c];
          reaching = reached;
        }
        if (!kExact && reaching == wanted) break;
      }
    } else {
      for (unsigned bit = first; bit != 0; bit >>= 1) {
        const unsigned candidate = threshold | bit;
        int reached = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) reached += keys[i] >= candidate;
        reached = sum(reached);
        if (reached >= wanted) {
          threshold = candidate;
          reaching = reached;
          if (!kExact && reached == wanted) break;
        }
      }
    }
    return threshold;
  }

 private:
  /// Of the values of the warps.
  template <class T, class Combine>
  __device__ T combine(T x, Combine with) {
    if constexpr (kWarps > 1) {
      turn_ ^= 1;
      if (threadIdx.x % 32 == 0) shared_.partial[turn_][threadIdx.x / 32] = static_cast<int>(x);
      __syncthreads();
      x = static_cast<T>(shared_.partial[turn_][0]);
#pragma unroll
      for (int w = 1; w < kWarps; ++w) x = with(x, static_cast<T>(shared_.partial[turn_][w]));
    }
    return x;
  }

  /// Counts become the sums of those before them; by one warp.
  __device__ void sum_up_counts() {
    int carry = 0;
    for (int from = 0; from < kItems * kWarps; from += 32) {
      const int at = from + static_cast<int>(threadIdx.x);
      const int count = at < kItems * kWarps ? shared_.counts[at] : 0;
      int inclusive = count;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, inclusive, offset);
        if (static_cast<int>(threadIdx.x) >= offset) inclusive += other;
      }
      if (at < kItems * kWarps) shared_.counts[at] = carry + inclusive - count;
      carry += __shfl_sync(0xffffffffu, inclusive, 31);
    }
    if (threadIdx.x == 0) shared_.total = carry;
  }

  Shared& shared_;
  int turn_ = 0;
};

/// How many blocks a row keeps whatever its scores, and how many in all.
struct RowPlan {
  int window = 1;
  int sink = 0;
  int total = 0;
  bool by_score = true;

  __device__ RowPlan(const SelectArgs& p, int candidates) : total(candidates) {
    const auto round_half_up = [](double x) { return static_cast<int>(floor(__dadd_rn(x, 0.5))); };
    if (p.kind == Budget::Kind::kMatched) {
      // No fused multiply-add: the host's floor must fall on the same side.
      const double area = __dadd_rn(static_cast<double>(candidates), -0.5);
      const auto share = static_cast<int>(floor(__dadd_rn(__dmul_rn(p.density, area), 1.0)));
      total = min(candidates, max(p.min_blocks, max(1, min(candidates, share))));
      if (p.forced == Budget::Forced::kDiagonal) return;
      if (total >= 3) {
        sink = max(1, round_half_up(static_cast<double>(total) / 8.0));
        window = max(1, round_half_up(static_cast<double>(total) / 4.0));
      } else if (total == 2) {
        sink = 1;
      }
      if (p.forced == Budget::Forced::kSinkAndRecent) {
        window = total - sink;
        by_score = false;
      }
    } else if (p.kind == Budget::Kind::kFixed) {
      total = min(p.tau, candidates);
      if (p.tau >= 2 && p.prefill) sink = 1;
    } else if (p.kind == Budget::Kind::kRelease && !p.prefill) {
      window = p.window_blocks;
      sink = p.sink_blocks;
    }
    window = min(window, candidates);
    sink = min(sink, candidates - window);
  }
};

/// Selects the blocks of row r of a row set by score(j) for j <= first_row + r. `plan` is that of
/// the row: a caller who waits for scores makes it before.
template <class RowType, int kItems, class Score>
__device__ void select_row(RowType& row, const SelectArgs& p, const RowPlan& plan, int set, int r,
                           Score score) {
  const std::int64_t index = static_cast<std::int64_t>(set) * p.rows + r;
  const int candidates = p.first_row + r + 1;

  unsigned keys[kItems];  // 0 outside of [low, high)
  const auto load = [&](int low, int high) {
    bool is_nan = false;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int j = RowType::block(i);
      const float x = j < candidates ? score(j) : 0.0f;
      is_nan |= isnan(x);
      keys[i] = j >= low && j < high ? ordered(x) : 0;
    }
    if (is_nan) *p.nan = 1;
  };
  // Free blocks by score: those with larger keys, and those with this key after a block.
  unsigned key = UINT_MAX;
  int after = INT_MAX;
  bool all = p.kind == Budget::Kind::kAll;
  if (p.kind == Budget::Kind::kRelease) {
    const int last = candidates - 1 - p.window_blocks;
    const int between = last - p.sink_blocks + 1;
    if (between > 0) {
      load(p.sink_blocks, last + 1);
      // numpy's linear quantile, in the same steps as on the host.
      const double position = __dmul_rn(p.quantile, static_cast<double>(between - 1));
      const auto low = static_cast<int>(position);
      const double t = __dadd_rn(position, -static_cast<double>(low));
      const int wanted = between - low;
      int reaching = 0;
      const unsigned lower = row.template find_largest<true>(keys, between, wanted, reaching);
      const double a = from_ordered(lower);
      double threshold = a;
      if (t != 0.0) {
        int above = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) above += keys[i] > lower;
        above = row.sum(above);
        // The next larger in sorted order: the same value again, or the smallest above.
        unsigned next = lower;
        if (above == wanted - 1 && above > 0) {
          next = row.template find_largest<true>(keys, between, above, reaching);
        }
        const double b = from_ordered(next);
        const double difference = __dadd_rn(b, -a);
        threshold = t < 0.5 ? __dadd_rn(a, __dmul_rn(difference, t))
                            : __dadd_rn(b, -__dmul_rn(difference, __dadd_rn(1.0, -t)));
      }
      key = ordered(__double2float_rd(threshold));  // no float lies between the two
    }
    load(0, candidates);
    all = p.prefill && candidates > p.key_blocks - kReleaseDenseRows;
  } else if (!all) {
    const int free = candidates - plan.window - plan.sink;
    const int wanted = plan.total - plan.window - plan.sink;
    load(plan.sink, candidates - plan.window);
    if (plan.by_score && wanted > 0) {
      int reaching = 0;
      key = row.template find_largest<false>(keys, free, wanted, reaching);
      after = -1;
      if (reaching > wanted) {  // of those that equal the last one, the more recent
        unsigned before = 0;
        row.rank([&](int i) { return keys[i] == key; },
                 [&](int i, int equal) {
                   if (equal == reaching - wanted - 1) before = RowType::block(i) + 1;
                 });
        after = static_cast<int>(row.largest(before)) - 1;
      }
    }
  }

  constexpr int kFree = kNumParts;
  const auto part = [&](int i) {
    const int j = RowType::block(i);
    if (j >= candidates) return kFree;
    if (p.kind != Budget::Kind::kAll) {
      if (j >= candidates - plan.window) return static_cast<int>(Part::kWindow);
      if (j < plan.sink) return static_cast<int>(Part::kSink);
      if (keys[i] > key || (keys[i] == key && j > after)) return static_cast<int>(Part::kScored);
    }
    return all ? static_cast<int>(Part::kForced) : kFree;
  };
  // Rows lie where full rows would: no row waits for the lengths of others.
  const std::int64_t rows = p.rows;
  const std::int64_t set_size = rows * p.first_row + rows * (rows + 1) / 2;
  const std::int64_t begin = set * set_size + static_cast<std::int64_t>(r) * p.first_row +
                             static_cast<std::int64_t>(r) * (r + 1) / 2;
  const int count = row.rank([&](int i) { return part(i) != kFree; },
                             [&](int i, int rank) {
                               p.blocks[begin + rank] = RowType::block(i);
                               p.parts[begin + rank] = static_cast<std::uint8_t>(part(i));
                             });
  if (threadIdx.x == 0) {
    p.row_begin[index] = begin;
    p.row_count[index] = count;
  }
}

}  // namespace sw::cuda
