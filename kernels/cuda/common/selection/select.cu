#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/select.hpp"

namespace sw::cuda {
namespace {

constexpr int kMaxBlocks = 16384;
constexpr int kReleaseDenseRows = 4;

struct SelectArgs {
  const float* scores;  ///< may be null
  std::int64_t stride;
  int rows;
  int first_row;
  int key_blocks;
  Budget::Kind kind;
  Budget::Forced forced;
  bool prefill;
  double density;
  double quantile;  ///< kRelease: 1 - kfrac
  std::int64_t min_blocks;
  std::int64_t tau;
  std::int64_t window_blocks;  ///< kRelease
  std::int64_t sink_blocks;
  std::int64_t* row_begin;
  std::int32_t* row_count;
  std::int32_t* blocks;
  std::uint8_t* parts;
  std::int32_t* nan;
};

/// Order of floats as an order of unsigned numbers; -0 equals 0.
__device__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/// One CTA works on a row; thread t holds the blocks t, t + kThreads, ...
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

  /// Sum over the CTA.
  __device__ int sum(int x) {
    x = __reduce_add_sync(0xffffffffu, x);
    if constexpr (kWarps == 1) return x;
    turn_ ^= 1;
    if (threadIdx.x % 32 == 0) shared_.partial[turn_][threadIdx.x / 32] = x;
    __syncthreads();
    int total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared_.partial[turn_][w];
    return total;
  }

  /// Any associative and commutative combination over the CTA.
  template <class Combine>
  __device__ unsigned reduce(unsigned x, Combine combine) {
    for (int offset = 16; offset > 0; offset /= 2) {
      x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
    }
    if constexpr (kWarps == 1) return x;
    turn_ ^= 1;
    if (threadIdx.x % 32 == 0) shared_.partial[turn_][threadIdx.x / 32] = static_cast<int>(x);
    __syncthreads();
    x = static_cast<unsigned>(shared_.partial[turn_][0]);
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      x = combine(x, static_cast<unsigned>(shared_.partial[turn_][w]));
    }
    return x;
  }

  /// Number of blocks before each of this thread's blocks for which `flags` is set; returns the
  /// number of all.
  __device__ int rank(const bool (&flags)[kItems], int (&ranks)[kItems]) {
    const unsigned below = (1u << (threadIdx.x % 32)) - 1;
    const int warp = static_cast<int>(threadIdx.x / 32);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const unsigned vote = __ballot_sync(0xffffffffu, flags[i]);
      ranks[i] = __popc(vote & below);
      if (threadIdx.x % 32 == 0) shared_.counts[i * kWarps + warp] = __popc(vote);
    }
    __syncthreads();
    if (warp == 0) {
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
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kItems; ++i) ranks[i] += shared_.counts[i * kWarps + warp];
    return shared_.total;
  }

  /// The largest key that at least `wanted` (>= 1) of the flagged keys reach: the wanted-th
  /// largest. `reaching` is how many do. Unless kExact, any key that exactly `wanted` keys reach
  /// will do.
  template <bool kExact>
  __device__ unsigned find_largest(const unsigned (&keys)[kItems], const bool (&flags)[kItems],
                                   int wanted, int& reaching) {
    unsigned largest = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) largest = max(largest, flags[i] ? keys[i] : 0u);
    largest = reduce(largest, [](unsigned a, unsigned b) { return max(a, b); });
    unsigned differing = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) differing |= flags[i] ? keys[i] ^ largest : 0u;
    differing = reduce(differing, [](unsigned a, unsigned b) { return a | b; });
    int count_all = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) count_all += flags[i];
    reaching = sum(count_all);
    if (differing == 0) return largest;
    // Bits above the first that differs are known.
    const unsigned first = 0x80000000u >> __clz(static_cast<int>(differing));
    unsigned threshold = largest & ~(2 * first - 1);
    if constexpr (kThreads * kItems < 1024) {  // three counts fit in a word: two bits a round
      for (unsigned bit = first; bit != 0; bit >>= 2) {
        const unsigned candidates[3] = {threshold | bit >> 1, threshold | bit,
                                        threshold | bit | bit >> 1};
        int counts = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
#pragma unroll
          for (int c = 0; c < 3; ++c) counts += (flags[i] && keys[i] >= candidates[c]) << 10 * c;
        }
        counts = sum(counts);
        bool found = false;
#pragma unroll
        for (int c = 2; c >= 0; --c) {
          const int count = counts >> 10 * c & 1023;
          if (found || count < wanted) continue;
          found = true;
          threshold = candidates[c];
          reaching = count;
        }
        if (!kExact && reaching == wanted) break;
      }
    } else {
      for (unsigned bit = first; bit != 0; bit >>= 1) {
        const unsigned candidate = threshold | bit;
        int count = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) count += flags[i] && keys[i] >= candidate;
        count = sum(count);
        if (count >= wanted) {
          threshold = candidate;
          reaching = count;
          if (!kExact && count == wanted) break;
        }
      }
    }
    return threshold;
  }

 private:
  Shared& shared_;
  int turn_ = 0;
};

__device__ std::int64_t round_half_up(double x) {
  return static_cast<std::int64_t>(floor(__dadd_rn(x, 0.5)));
}

template <int kThreads, int kItems>
__global__ void __launch_bounds__(kThreads) select_rows(SelectArgs p) {
  using RowType = Row<kThreads, kItems>;
  __shared__ typename RowType::Shared shared;
  RowType row(shared);
  const int r = static_cast<int>(blockIdx.x);
  const int set = static_cast<int>(blockIdx.y);
  const std::int64_t index = static_cast<std::int64_t>(set) * p.rows + r;
  const int candidates = p.first_row + r + 1;

  // What the row keeps whatever its scores, and how many blocks in all.
  std::int64_t window = 1;
  std::int64_t sink = 0;
  std::int64_t total = candidates;
  bool by_score = true;
  if (p.kind == Budget::Kind::kMatched) {
    // No fused multiply-add: the host's floor must fall on the same side.
    const double area = __dadd_rn(static_cast<double>(candidates), -0.5);
    const auto share = static_cast<std::int64_t>(floor(__dadd_rn(__dmul_rn(p.density, area), 1.0)));
    const std::int64_t m = min(
        static_cast<std::int64_t>(candidates),
        max(p.min_blocks, max(std::int64_t{1}, min(static_cast<std::int64_t>(candidates), share))));
    total = m;
    if (p.forced != Budget::Forced::kDiagonal) {
      if (m >= 3) {
        sink = max(std::int64_t{1}, round_half_up(static_cast<double>(m) / 8.0));
        window = max(std::int64_t{1}, round_half_up(static_cast<double>(m) / 4.0));
      } else if (m == 2) {
        sink = 1;
      }
      if (p.forced == Budget::Forced::kSinkAndRecent) {
        window = m - sink;
        by_score = false;
      }
    }
  } else if (p.kind == Budget::Kind::kFixed) {
    total = p.tau;
    if (p.tau >= 2 && p.prefill) sink = 1;
  } else if (p.kind == Budget::Kind::kRelease && !p.prefill) {
    window = p.window_blocks;
    sink = p.sink_blocks;
  }

  wait_for_previous();
  unsigned keys[kItems];
  bool is_nan = false;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int j = RowType::block(i);
    float x = 0.0f;
    if (p.scores != nullptr && j < candidates) x = p.scores[index * p.stride + j];
    is_nan |= isnan(x);
    keys[i] = ordered(x);
  }
  if (is_nan) *p.nan = 1;

  constexpr auto kFree = static_cast<std::uint8_t>(kNumParts);
  std::uint8_t part[kItems];
  bool flags[kItems];
  int forced_count = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int j = RowType::block(i);
    part[i] = kFree;
    if (p.kind == Budget::Kind::kAll) {
      if (j < candidates) part[i] = static_cast<std::uint8_t>(Part::kForced);
    } else if (j < candidates && j >= candidates - window) {
      part[i] = static_cast<std::uint8_t>(Part::kWindow);
    } else if (j < candidates && j < sink) {
      part[i] = static_cast<std::uint8_t>(Part::kSink);
    }
    forced_count += part[i] != kFree;
  }

  if (p.kind == Budget::Kind::kRelease) {
    const std::int64_t last = candidates - 1 - p.window_blocks;
    const std::int64_t between = last - p.sink_blocks + 1;
    if (between > 0) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int j = RowType::block(i);
        flags[i] = j >= p.sink_blocks && j <= last;
      }
      // numpy's linear quantile, in the same steps as on the host.
      const double position = __dmul_rn(p.quantile, static_cast<double>(between - 1));
      const auto low = static_cast<int>(position);
      const double t = __dadd_rn(position, -static_cast<double>(low));
      const int wanted = static_cast<int>(between) - low;
      int reaching = 0;
      const unsigned key = row.template find_largest<true>(keys, flags, wanted, reaching);
      const double a = from_ordered(key);
      double threshold = a;
      if (t != 0.0) {
        int above = 0;
#pragma unroll
        for (int i = 0; i < kItems; ++i) above += flags[i] && keys[i] > key;
        above = row.sum(above);
        // The next larger in sorted order: the same value again, or the smallest above.
        unsigned next = key;
        if (above == wanted - 1 && above > 0)
          next = row.template find_largest<true>(keys, flags, above, reaching);
        const double b = from_ordered(next);
        const double difference = __dadd_rn(b, -a);
        threshold = t < 0.5 ? __dadd_rn(a, __dmul_rn(difference, t))
                            : __dadd_rn(b, -__dmul_rn(difference, __dadd_rn(1.0, -t)));
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int j = RowType::block(i);
        if (j < candidates && part[i] == kFree &&
            static_cast<double>(from_ordered(keys[i])) > threshold) {
          part[i] = static_cast<std::uint8_t>(Part::kScored);
        }
      }
    }
    if (p.prefill && candidates > p.key_blocks - kReleaseDenseRows) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (RowType::block(i) < candidates && part[i] == kFree) {
          part[i] = static_cast<std::uint8_t>(Part::kForced);
        }
      }
    }
  } else if (by_score && p.kind != Budget::Kind::kAll) {
    const auto wanted =
        static_cast<int>(min(total, static_cast<std::int64_t>(candidates)) - row.sum(forced_count));
    if (wanted > 0) {
#pragma unroll
      for (int i = 0; i < kItems; ++i)
        flags[i] = RowType::block(i) < candidates && part[i] == kFree;
      int reaching = 0;
      const unsigned key = row.template find_largest<false>(keys, flags, wanted, reaching);
      // Of those that equal the last one, the more recent.
      int equal_ranks[kItems] = {};
      int skipped = 0;
      if (reaching > wanted) {
        bool equal[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) equal[i] = flags[i] && keys[i] == key;
        row.rank(equal, equal_ranks);
        skipped = reaching - wanted;
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        if (flags[i] && (keys[i] > key || (keys[i] == key && equal_ranks[i] >= skipped))) {
          part[i] = static_cast<std::uint8_t>(Part::kScored);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kItems; ++i) flags[i] = part[i] != kFree;
  int ranks[kItems];
  const int count = row.rank(flags, ranks);
  // Rows lie where full rows would: no row waits for the lengths of others.
  const std::int64_t rows = p.rows;
  const std::int64_t set_size = rows * p.first_row + rows * (rows + 1) / 2;
  const std::int64_t begin = set * set_size + static_cast<std::int64_t>(r) * p.first_row +
                             static_cast<std::int64_t>(r) * (r + 1) / 2;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (!flags[i]) continue;
    p.blocks[begin + ranks[i]] = RowType::block(i);
    p.parts[begin + ranks[i]] = part[i];
  }
  if (threadIdx.x == 0) {
    p.row_begin[index] = begin;
    p.row_count[index] = count;
  }
}

}  // namespace

std::optional<std::string> BudgetSelector::unsupported(const Budget& budget) {
  if (budget.kind == Budget::Kind::kTopP || budget.kind == Budget::Kind::kCalibrated ||
      budget.kind == Budget::Kind::kMarked) {
    return "the GPU knows the budgets matched, fixed and release";
  }
  if (budget.forced == Budget::Forced::kSinkBlock || budget.forced == Budget::Forced::kRecentHalf ||
      budget.dense_last_rows > 0 || budget.dense_phase) {
    return "the GPU forces the sink and window, the diagonal, or recent blocks only";
  }
  if (budget.rounding == Budget::Rounding::kSteps) return "the GPU knows rounding=row only";
  return {};
}

std::optional<std::string> BudgetSelector::unsupported(std::int64_t max_blocks) {
  if (max_blocks <= kMaxBlocks) return {};
  return std::to_string(max_blocks) + " key blocks are more than " + std::to_string(kMaxBlocks);
}

BudgetSelector::BudgetSelector(int max_groups, int max_rows, int max_blocks)
    : max_groups_(max_groups), max_rows_(max_rows), max_blocks_(max_blocks) {
  if (const auto reason = unsupported(max_blocks)) {
    throw Error(ErrorKind::kUnsupported, "the GPU cannot select blocks here: " + *reason,
                "use a larger block size, or --backend cpu");
  }
  const auto rows = static_cast<std::size_t>(max_groups) * static_cast<std::size_t>(max_rows);
  // The last max_rows rows are the longest.
  const auto elements =
      rows * static_cast<std::size_t>(2 * (max_blocks - max_rows) + max_rows + 1) / 2;
  row_begin_ = DeviceBuffer<std::int64_t>(rows);
  row_count_ = DeviceBuffer<std::int32_t>(rows);
  blocks_ = DeviceBuffer<std::int32_t>(elements);
  parts_ = DeviceBuffer<std::uint8_t>(elements);
  const std::int32_t none = 0;
  nan_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(&none, 1));
}

SelectionView BudgetSelector::select(const ScoresView& scores, const BlockGeometry& geometry,
                                     const Budget& budget, double density, Phase phase,
                                     cudaStream_t stream) {
  if (const auto reason = unsupported(budget)) {
    throw Error(ErrorKind::kUnsupported, *reason, "use --backend cpu");
  }
  const std::int64_t b = geometry.key_blocks();
  const auto n = static_cast<double>(geometry.tokens);
  if (scores.groups > max_groups_ || geometry.rows() > max_rows_ || b > max_blocks_) {
    throw std::logic_error("selection: more rows or blocks than the workspace was made for");
  }
  SelectArgs args{};
  args.scores = scores.data;
  args.stride = scores.stride;
  args.rows = static_cast<int>(geometry.rows());
  args.first_row = static_cast<int>(geometry.first_row());
  args.key_blocks = static_cast<int>(b);
  args.kind = budget.kind;
  args.forced = budget.forced;
  args.prefill = phase == Phase::kPrefill;
  args.density = density;
  args.quantile = 1.0 - budget.kfrac;
  args.min_blocks = budget.min_blocks;
  args.tau =
      budget.tau > 0
          ? budget.tau
          : std::max<std::int64_t>(
                1, static_cast<std::int64_t>(std::floor(density * static_cast<double>(b) + 0.5)));
  const auto share = [&](double fraction) {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(fraction * n));
  };
  const auto blocks = [&](std::int64_t t) { return (t + geometry.block - 1) / geometry.block; };
  const std::int64_t window = share(budget.window_frac);
  const std::int64_t sink = share(budget.sink_frac);
  args.window_blocks = blocks(window);
  args.sink_blocks = blocks(sink);
  args.row_begin = row_begin_.data();
  args.row_count = row_count_.data();
  args.blocks = blocks_.data();
  args.parts = parts_.data();
  args.nan = nan_.data();

  const auto launch = [&](auto kernel, int threads) {
    const dim3 grid(static_cast<unsigned>(args.rows), static_cast<unsigned>(scores.groups));
    launch_chained("launch of select_rows", kernel, grid, threads, 0, stream, args);
  };
  if (b <= 128) {
    launch(select_rows<32, 4>, 32);
  } else if (b <= 512) {
    launch(select_rows<128, 4>, 128);
  } else if (b <= 2048) {
    launch(select_rows<128, 16>, 128);
  } else {
    launch(select_rows<512, 32>, 512);
  }

  view_ = {};
  view_.row_begin = row_begin_.data();
  view_.row_count = row_count_.data();
  view_.blocks = blocks_.data();
  view_.groups = scores.groups;
  view_.rows = args.rows;
  view_.first_row = args.first_row;
  view_.block = static_cast<int>(geometry.block);
  if (budget.kind == Budget::Kind::kRelease) {
    view_.token_window = phase == Phase::kPrefill ? window : 0;
    view_.token_sink = budget.release_sink_bug ? window : sink;
  }
  return view_;
}

bool BudgetSelector::saw_nan(cudaStream_t stream) {
  synchronize(stream, "block selection");
  if (nan_.download()[0] == 0) return false;
  const std::int32_t none = 0;
  nan_.upload(std::span<const std::int32_t>(&none, 1));
  return true;
}

BlockSelection BudgetSelector::download(const BlockGeometry& geometry, cudaStream_t stream) {
  if (saw_nan(stream)) {
    throw Error(ErrorKind::kInput, "a block score is not a number",
                "check the trace for NaN and huge values with sw-trace validate");
  }
  const std::size_t rows = static_cast<std::size_t>(view_.groups) * view_.rows;
  const auto begin = row_begin_.download(rows);
  const auto count = row_count_.download(rows);
  const auto blocks = blocks_.download();
  const auto parts = parts_.download();
  BlockSelection selection(geometry, view_.groups);
  for (std::size_t i = 0; i < rows; ++i) {
    const auto at = static_cast<std::size_t>(begin[i]);
    const auto size = static_cast<std::size_t>(count[i]);
    std::vector<Part> tags(size);
    std::transform(parts.begin() + begin[i], parts.begin() + begin[i] + count[i], tags.begin(),
                   [](std::uint8_t part) { return static_cast<Part>(part); });
    selection.append_row(std::span(blocks).subspan(at, size), tags);
  }
  selection.set_token_parts(view_.token_window, view_.token_sink);
  return selection;
}

KernelCost BudgetSelector::cost(int groups, int rows, int blocks) {
  const double pairs = static_cast<double>(groups) * rows * blocks;
  return {0.0, 4.0 * pairs};
}

}  // namespace sw::cuda
