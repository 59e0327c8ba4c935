#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm80/launch.hpp"
#include "kernels/cuda/sm80/prefill_attention.hpp"

namespace sw::cuda::sm80 {
namespace {

std::int64_t element_size(Element element) { return element == Element::kF32 ? 4 : 2; }

bool has_token_parts(const SelectionView& s) {
  return s.blocks != nullptr && (s.token_window > 0 || s.token_sink > 0);
}

/// Most blocks that token-level parts reach into in one row.
std::int64_t extra_capacity(const PrefillAttention& problem) {
  const SelectionView& s = problem.selection;
  const std::int64_t sink = (s.token_sink + s.block - 1) / s.block;
  // The first query of a row looks back over token_window - 1 keys before its own block, or over
  // part of that many blocks and one.
  const std::int64_t window = s.token_window > 0 ? (s.token_window + s.block - 2) / s.block + 1 : 0;
  return std::min<std::int64_t>(sink + window, s.first_row + s.rows);
}

/// One warp lists, for one row, the blocks that are seen in part: in the sink, or from the first
/// query's window on, and not kept.
__global__ void list_extra_blocks(const PrefillAttention problem, int* counts, int* lists,
                                  int capacity) {
  const SelectionView& s = problem.selection;
  const int set_row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (set_row >= s.groups * s.rows) return;
  const std::int64_t diagonal = s.first_row + set_row % s.rows;
  const std::int64_t first_query = max(diagonal * s.block, problem.tokens - problem.queries);
  const std::int32_t* kept = s.blocks + s.row_begin[set_row];
  const int kept_count = s.row_count[set_row];
  const std::int64_t sink_end = min((s.token_sink + s.block - 1) / s.block, diagonal);
  const std::int64_t window_first =
      s.token_window > 0 ? max(first_query - s.token_window + 1, std::int64_t{0}) / s.block
                         : diagonal;
  int listed = 0;
  // The diagonal block itself is always kept.
  for (std::int64_t base = sink_end > 0 ? 0 : window_first; base < diagonal; base += 32) {
    const std::int64_t j = base + lane;
    bool wanted = j < diagonal && (j < sink_end || j >= window_first);
    if (wanted) {
      int low = 0;
      int high = kept_count;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (kept[middle] < j) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      wanted = low == kept_count || kept[low] != j;
    }
    const unsigned votes = __ballot_sync(0xffffffffu, wanted);
    if (wanted) {
      lists[static_cast<std::int64_t>(set_row) * capacity + listed +
            __popc(votes & ((1u << lane) - 1))] = static_cast<int>(j);
    }
    listed += __popc(votes);
    // From the end of the sink straight to the window.
    if (base + 32 >= sink_end && base + 32 < window_first) base = window_first - 32;
  }
  if (lane == 0) counts[set_row] = listed;
}

}  // namespace

std::optional<std::string> unsupported(const PrefillAttention& problem) {
  const int block = problem.selection.block;
  if (block < 16 || block % 16 != 0) {
    return "blocks of " + std::to_string(block) + " tokens: the GPU's are multiples of 16";
  }
  if (problem.head_dim % 8 != 0 || problem.head_dim > 256) {
    return "head dimension " + std::to_string(problem.head_dim) +
           ": the GPU's are multiples of 8 up to 256";
  }
  if (problem.tokens >= std::int64_t{1} << 31) return "more than 2^31 - 1 tokens";
  const std::int64_t row = 16 / element_size(problem.element);
  for (const HeadsPointer* x : {&problem.q, &problem.k, &problem.v}) {
    if (x->head_stride % row != 0 || x->token_stride % row != 0 ||
        reinterpret_cast<std::uintptr_t>(x->data) % 16 != 0) {
      return "rows that are not aligned to 16 bytes";
    }
  }
  return {};
}

std::size_t workspace_bytes(const PrefillAttention& problem) {
  if (!has_token_parts(problem.selection)) return 0;
  const auto set_rows = static_cast<std::size_t>(problem.selection.groups) *
                        static_cast<std::size_t>(problem.selection.rows);
  return set_rows * (1 + static_cast<std::size_t>(extra_capacity(problem))) * sizeof(int);
}

KernelCost cost(const PrefillAttention& problem, double pairs) {
  const auto dim = static_cast<double>(problem.head_dim);
  const double q = static_cast<double>(problem.num_heads) * problem.queries * dim;
  const double kv = 2.0 * problem.num_kv_heads * problem.tokens * dim;
  const auto size = static_cast<double>(element_size(problem.element));
  KernelCost cost;
  cost.flops = 4.0 * dim * pairs;
  cost.bytes = (q + kv) * size + q * (problem.out_f32 ? 4.0 : size);
  if (problem.lse != nullptr) cost.bytes += 4.0 * problem.num_heads * problem.queries;
  return cost;
}

void prefill_attention(const PrefillAttention& problem, cudaStream_t stream) {
  AttentionLaunch launch;
  launch.problem = problem;
  launch.heads_per_set = problem.num_heads / problem.selection.groups;
  launch.pack_heads = std::min(problem.num_heads / problem.num_kv_heads, launch.heads_per_set);
  launch.rows =
      launch.pack_heads * std::min<std::int64_t>(problem.queries, problem.selection.block);
  if (has_token_parts(problem.selection)) {
    const int set_rows = problem.selection.groups * problem.selection.rows;
    auto* counts = static_cast<int*>(problem.workspace);
    launch.extra_count = counts;
    launch.extra = counts + set_rows;
    launch.extra_capacity = static_cast<int>(extra_capacity(problem));
    constexpr int kWarps = 4;
    list_extra_blocks<<<(set_rows + kWarps - 1) / kWarps, kWarps * 32, 0, stream>>>(
        problem, counts, counts + set_rows, launch.extra_capacity);
    check_launch("sm80 list of blocks seen in part");
  }
  visit_head_dim(problem.head_dim, problem.element,
                 [&]<int kHeadDim>() { Kernels<kHeadDim>::attend(launch, stream); });
}

}  // namespace sw::cuda::sm80
