#include "kernels/cuda/sm90/prefill_attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "kernels/cuda/common/device_attribute.hpp"
#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/sm90/prefill_params.hpp"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace sw::cuda {
namespace {

constexpr int kFine = 64;
constexpr int kElementBytes = 2;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* data, std::int64_t head_stride, std::int64_t token_stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 &&
         head_stride * kElementBytes % 16 == 0 && token_stride * kElementBytes % 16 == 0;
}

CUtensorMap tensor_map(Element element, const HeadsPointer& x, int heads, std::int64_t tokens,
                       int dim) {
  return make_tensor_map({element == Element::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                    : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                          x.data,
                          {static_cast<std::uint64_t>(dim), static_cast<std::uint64_t>(tokens),
                           static_cast<std::uint64_t>(heads)},
                          {static_cast<std::uint64_t>(x.token_stride * kElementBytes),
                           static_cast<std::uint64_t>(x.head_stride * kElementBytes)},
                          {64, kFine, 1}});
}

template <int kDim>
PrefillInstance instance_of(Element element, int warpgroups, bool masked) {
  return element == Element::kBf16 ? prefill_instance<Element::kBf16, kDim>(warpgroups, masked)
                                   : prefill_instance<Element::kF16, kDim>(warpgroups, masked);
}

PrefillInstance instance_of(const PrefillAttention& a, int warpgroups, bool masked) {
  if (a.head_dim == 64) return instance_of<64>(a.element, warpgroups, masked);
  if (a.head_dim == 128) return instance_of<128>(a.element, warpgroups, masked);
  return instance_of<256>(a.element, warpgroups, masked);
}

}  // namespace

std::optional<std::string> prefill_attention_unsupported(const PrefillAttention& a) {
  if (a.head_dim != 64 && a.head_dim != 128 && a.head_dim != 256) {
    return "head_dim " + std::to_string(a.head_dim) + " (it must be 64, 128 or 256)";
  }
  if (a.num_heads < 1 || a.num_kv_heads < 1 || a.num_heads % a.num_kv_heads != 0) {
    return std::to_string(a.num_heads) + " heads over " + std::to_string(a.num_kv_heads) +
           " KV heads (they must divide)";
  }
  if (a.queries < 1 || a.queries > a.tokens) {
    return std::to_string(a.queries) + " queries over " + std::to_string(a.tokens) + " tokens";
  }
  if (a.tokens > (1 << 30)) return "more than 2^30 tokens";
  if (!(a.scale > 0.0f) || !std::isfinite(a.scale)) return "a scale that is not positive";
  if (!aligned(a.q.data, a.q.head_stride, a.q.token_stride) ||
      !aligned(a.k.data, a.k.head_stride, a.k.token_stride) ||
      !aligned(a.v.data, a.v.head_stride, a.v.token_stride) ||
      !aligned(a.out, a.out_head_stride, a.out_token_stride)) {
    return "tensors that do not start at, or step by, multiples of 16 bytes";
  }
  if (a.selection != nullptr) {
    const SelectionView& s = *a.selection;
    if (s.block < kFine || s.block % kFine != 0) {
      return "blocks of " + std::to_string(s.block) + " tokens (they must be multiples of 64)";
    }
    if (s.groups != 1 && s.groups != a.num_kv_heads && s.groups != a.num_heads) {
      return "a selection with " + std::to_string(s.groups) +
             " row sets (one, one a KV head or one a head)";
    }
    const std::int64_t first = (a.tokens - a.queries) / s.block;
    if (s.first_row != first || s.rows != ceil_div(a.tokens, s.block) - first) {
      return "a selection whose rows are not those of the queries";
    }
  }
  int device = 0;
  int major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    cudaGetLastError();
    return "no GPU";
  }
  if (major != 9) return "compute capability " + std::to_string(major) + ".x (Hopper has 9.0)";
  return std::nullopt;
}

void launch_prefill_attention(const PrefillAttention& a, cudaStream_t stream) {
  if (const auto reason = prefill_attention_unsupported(a)) {
    throw Error(ErrorKind::kUnsupported, "the Hopper attention kernel does not support " + *reason,
                "use --backend cpu");
  }
  const SelectionView* selection = a.selection;
  const bool masked =
      selection != nullptr && (selection->token_window > 0 || selection->token_sink > 0);
  const std::int64_t query_begin = a.tokens - a.queries;

  PrefillParams p{};
  p.q = tensor_map(a.element, a.q, a.num_heads, a.queries, a.head_dim);
  p.k = tensor_map(a.element, a.k, a.num_kv_heads, a.tokens, a.head_dim);
  p.v = tensor_map(a.element, a.v, a.num_kv_heads, a.tokens, a.head_dim);
  p.out = a.out;
  p.out_head_stride = a.out_head_stride;
  p.out_token_stride = a.out_token_stride;
  p.lse = a.lse;
  p.scale_log2 = static_cast<float>(static_cast<double>(a.scale) * 1.4426950408889634);
  p.tokens = static_cast<int>(a.tokens);
  p.query_begin = static_cast<int>(query_begin);
  p.group = a.num_heads / a.num_kv_heads;
  p.tile_counter = a.tile_counter;
  p.fine_per_block = 1;
  if (selection != nullptr) {
    p.row_begin = selection->row_begin;
    p.row_count = selection->row_count;
    p.blocks = selection->blocks;
    p.heads_per_group = a.num_heads / selection->groups;
    p.selection_rows = selection->rows;
    p.first_row = selection->first_row;
    p.fine_per_block = selection->block / kFine;
    p.token_window = static_cast<int>(std::min(selection->token_window, a.tokens));
    p.token_sink = static_cast<int>(std::min(selection->token_sink, a.tokens));
  }

  // Two warpgroups need one list: two heads of a KV head with a common row set, or two fine blocks
  // of one block (or of a dense row). Otherwise each warpgroup is a CTA, two on a multiprocessor.
  const bool heads_share =
      p.group > 1 && (selection == nullptr || selection->groups <= a.num_kv_heads);
  // The diagonals of two rows must lie in one step, which is of 64 keys for head_dim 256.
  const bool rows_share =
      !masked && a.head_dim <= 128 && (selection == nullptr || p.fine_per_block % 2 == 0);
  p.heads_per_tile = heads_share && !(rows_share && p.group % 2 != 0) ? 2 : 1;
  // head_dim 64 leaves registers for four warpgroups, unless more of them would have no head.
  if (a.head_dim == 64 && p.heads_per_tile == 2 &&
      ceil_div(p.group, 4) * 4 == ceil_div(p.group, 2) * 2) {
    p.heads_per_tile = 4;
  }
  p.rows_per_tile = p.heads_per_tile == 1 && rows_share ? 2 : 1;
  p.sets = static_cast<int>(ceil_div(p.group, p.heads_per_tile));
  p.first_fine = static_cast<int>(query_begin / (kFine * p.rows_per_tile)) * p.rows_per_tile;
  p.tile_rows =
      static_cast<int>(ceil_div(ceil_div(a.tokens, kFine) - p.first_fine, p.rows_per_tile));
  const std::int64_t tiles = static_cast<std::int64_t>(a.num_kv_heads) * p.sets * p.tile_rows;
  if (tiles > std::numeric_limits<int>::max() / 2) {
    throw Error(ErrorKind::kUnsupported, "too many heads and tokens for one attention launch");
  }
  p.tiles = static_cast<int>(tiles);

  const PrefillInstance instance = instance_of(a, p.heads_per_tile * p.rows_per_tile, masked);
  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  const void* kernel = reinterpret_cast<const void*>(instance.kernel);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             instance.shared_bytes),
        "reservation of shared memory");
  check(cudaMemsetAsync(p.tile_counter, 0, sizeof(int), stream), "reset of the tile counter");
  const int ctas = std::min(p.tiles, multiprocessors * instance.ctas_per_multiprocessor);
  std::array<void*, 1> arguments = {&p};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(ctas)),
                         dim3(static_cast<unsigned>(instance.threads)), arguments.data(),
                         static_cast<std::size_t>(instance.shared_bytes), stream),
        "launch of prefill attention");
}

KernelCost prefill_attention_cost(const PrefillAttention& a, double kept_pairs) {
  const double q = static_cast<double>(a.num_heads) * static_cast<double>(a.queries);
  const double kv = static_cast<double>(a.num_kv_heads) * static_cast<double>(a.tokens);
  KernelCost cost;
  cost.flops = 4.0 * kept_pairs * a.head_dim;
  cost.bytes = 2.0 * (q + kv) * a.head_dim * kElementBytes + (a.lse != nullptr ? q * 4.0 : 0.0);
  return cost;
}

}  // namespace sw::cuda
