#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/common/decode/plan.cuh"

/// The choice of a decode row's blocks from their scores, without a sort: each block finds its own
/// rank and with it its place in the list.
namespace sw::cuda {

/// Entries of the list before those that the scores choose.
__device__ inline int listed_always(const DecodePlan& plan) {
  return forced_blocks(plan) + (plan.boundary >= 0 ? 1 : 0);
}

/// Whether the scores decide about block j.
__device__ inline bool competes(const DecodePlan& plan, int blocks, int j) {
  return j >= plan.sink && j < blocks - plan.window && j != plan.boundary;
}

template <class Score>
struct alignas(16) FourScores {
  Score of[4];
};

/// What a score must exceed, or reach where equal scores do, to be better than another.
template <class Score>
struct Bound {
  Score value;
  bool reached;
  __device__ Bound(Score v, bool equal) : value(v), reached(equal) {}
  __device__ int exceeded_by(Score x) const { return x > value || (reached && x == value) ? 1 : 0; }
};
/// Scores are not negative, and their bits ordered as they are; those of -infinity are below all.
template <>
struct Bound<float> {
  int bits;
  __device__ Bound(float v, bool equal) : bits(std::bit_cast<std::int32_t>(v) - (equal ? 1 : 0)) {}
  __device__ int exceeded_by(float x) const {
    return static_cast<int>(static_cast<unsigned>(bits - std::bit_cast<std::int32_t>(x)) >> 31);
  }
};

/// Calls list(place, entry) for the forced blocks in [begin, end) and those that the scores choose,
/// by one lane each; place and entry are those of DecodeList. The `warps` warps of the thread block
/// share the work. `free_scores` has the scores of the blocks that compete, -infinity elsewhere and
/// past the blocks up to a multiple of 4. Returns how many blocks this warp has chosen by score.
template <class Score, class List>
__device__ inline int rank_blocks(const DecodePlan& plan, int blocks, int begin, int end, int warps,
                                  const Score* scores, const Score* free_scores, List&& list) {
  const int lane = threadIdx.x % 32;
  const int forced = forced_blocks(plan);
  const int free_end = blocks - plan.window;
  int kept = 0;
#pragma unroll 1
  for (int j = begin + static_cast<int>(threadIdx.x / 32); j < end; j += warps) {
    if (j < plan.sink || j >= free_end) {
      if (lane == 0) list(j < plan.sink ? j : plan.sink + j - free_end, j);
      continue;
    }
    const Score mine = scores[j];
    // The four scores around j apart, the others are all before or all behind it.
    const int own = j & ~3;
    int better = lane < 4 && own + lane > j && free_scores[own + lane] == mine ? 1 : 0;
#pragma unroll 2
    for (int i = lane * 4; i < blocks; i += 128) {
      const auto other = *reinterpret_cast<const FourScores<Score>*>(free_scores + i);
      const auto bound = Bound<Score>(mine, i > j);
#pragma unroll
      for (int e = 0; e < 4; ++e) better += bound.exceeded_by(other.of[e]);
    }
    better = __reduce_add_sync(0xffffffffu, better);
    bool keep = better < plan.scored;
    if (plan.scored < 0) {
      int less = 0;
#pragma unroll 1
      for (int i = plan.between_begin + lane; i < plan.between_end; i += 32) {
        less += scores[i] < mine ? 1 : 0;
      }
      keep = __reduce_add_sync(0xffffffffu, less) > plan.quantile_low;
    }
    if (j == plan.boundary) {
      if (lane == 0) list(forced, keep ? j : ~j);
    } else if (keep) {
      if (lane == 0) list(listed_always(plan) + better, j);
      ++kept;
    }
  }
  return kept;
}

}  // namespace sw::cuda
