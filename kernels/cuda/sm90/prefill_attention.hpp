#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection.hpp"

/// Exact causal attention over the selected key blocks of a prefill (sketchwalk.md section 4), for
/// Hopper: bulk tensor copies, warpgroup matrix products, warp-specialised, persistent. Without a
/// selection it is dense causal attention. Logits and sums are f32, probabilities are rounded to
/// the element type. Results are the same from run to run.
namespace sw::cuda {

struct PrefillAttention {
  Element element = Element::kBf16;  ///< of q, k, v and out
  int num_heads = 0;
  int num_kv_heads = 0;      ///< divides num_heads
  int head_dim = 0;          ///< 64, 128 or 256
  std::int64_t queries = 0;  ///< the last `queries` of the `tokens` positions
  std::int64_t tokens = 0;
  HeadsPointer q;       ///< [num_heads, queries, head_dim]
  HeadsPointer k;       ///< [num_kv_heads, tokens, head_dim]
  HeadsPointer v;       ///< [num_kv_heads, tokens, head_dim]
  void* out = nullptr;  ///< [num_heads, queries, head_dim], by the strides below (in elements)
  std::int64_t out_head_stride = 0;
  std::int64_t out_token_stride = 0;
  /// [num_heads, queries], ln of the sum of exp(logits) of the visible keys; null = not wanted.
  float* lse = nullptr;
  float scale = 0.0f;                        ///< of the logits, > 0
  const SelectionView* selection = nullptr;  ///< null = dense
  int* tile_counter = nullptr;  ///< one int of device memory; reset in the stream by each launch
};

/// Why the kernel cannot compute this, in words; nothing when it can. Data pointers and strides
/// must be multiples of 16 bytes, blocks multiples of 64 tokens.
std::optional<std::string> prefill_attention_unsupported(const PrefillAttention& a);

/// Enqueues the kernel; can be captured in a graph. The selection is read on the device only.
/// Throws Error(kUnsupported) with the reason above, Error(kResource) when the launch fails.
void launch_prefill_attention(const PrefillAttention& a, cudaStream_t stream);

/// `kept_pairs` is the number of (query, key) pairs with a visible key, summed over the query
/// heads.
KernelCost prefill_attention_cost(const PrefillAttention& a, double kept_pairs);

}  // namespace sw::cuda
