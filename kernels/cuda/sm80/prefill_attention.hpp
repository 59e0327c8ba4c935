#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection.hpp"

/// Portable attention over selected key blocks, for every GPU of compute capability 8.0 or more:
/// mma.sync for bf16 and f16, fused multiply-adds for f32. Exact softmax attention (sketchwalk.md
/// section 4), causal at token level; the queries are the last `queries` of `tokens` positions, so
/// prefill, chunked prefill and decode are one problem. Results do not change from run to run.
namespace sw::cuda::sm80 {

struct PrefillAttention {
  HeadsPointer q;                    ///< [num_heads, queries, head_dim]
  HeadsPointer k;                    ///< [num_kv_heads, tokens, head_dim]
  HeadsPointer v;                    ///< [num_kv_heads, tokens, head_dim]
  Element element = Element::kBf16;  ///< of q, k and v
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  std::int64_t tokens = 0;
  std::int64_t queries = 0;
  float scale = 1.0f;         ///< of q.k; > 0
  SelectionView selection;    ///< `blocks` null: every causal block
  void* workspace = nullptr;  ///< of workspace_bytes(), 16-byte aligned; may be null if that is 0

  void* out = nullptr;               ///< [num_heads, queries, head_dim], f32 or `element`
  std::int64_t out_head_stride = 0;  ///< in elements
  std::int64_t out_token_stride = 0;
  bool out_f32 = true;
  float* lse = nullptr;  ///< [num_heads, queries] ln of the sum of exp(logit); null: not wanted
};

/// Why this kernel cannot compute `problem`, or nothing: blocks that are not a multiple of 16,
/// head_dim above 256 or not a multiple of 8, rows that are not aligned to 16 bytes.
std::optional<std::string> unsupported(const PrefillAttention& problem);

/// Bytes of device memory that the launch needs beside its inputs: lists of the blocks that
/// token-level parts reach into; 0 without such parts.
std::size_t workspace_bytes(const PrefillAttention& problem);

/// Cost of the launch for `pairs` visible (query, key) pairs, summed over query heads.
KernelCost cost(const PrefillAttention& problem, double pairs);

/// Enqueues the attention. `problem` must be supported.
void prefill_attention(const PrefillAttention& problem, cudaStream_t stream);

}  // namespace sw::cuda::sm80
