#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.hpp"
#include "trace/trace.hpp"

/// Synthetic traces with a known answer: which key blocks matter to which query block, at sizes
/// that no model at hand reaches. Everything follows from the seed, layer by layer and token by
/// token, so that a trace never has to be in memory and does not depend on the number of threads.
///
/// Construction, for a layer and a KV head, with blocks of B = `block` tokens and u_j, h_j (one
/// pair a block) and e independent random unit vectors in d dimensions:
///
///     k_s = d^(1/4) ( u_j + (-1)^s h_j + [s < 4] e + noise )                        s in block j
///     q_t = d^(1/4) ( sum_j w_ij u_j + (-1)^t x h_H + sink_strength e + noise )     t in block i
///     v_s = u_j + noise
///
/// where noise is random with norm `noise`. So the logit q.k / sqrt(d) of a query in block i is
/// w_ij for the keys of block j, plus sink_strength for the first 4 tokens, plus a random part of
/// zero mean and standard deviation about |q_t| |k_s| / d. The weights w_ij are:
///  - local: local_strength for j = i, and ln 2 less for j = i - 1;
///  - heavy: heavy_strength for `heavy_blocks` random blocks in 1 .. i-2 (as many as there are);
///  - all others 0.
/// With hops > 1 the layers form chains of `hops` layers, from layer 2 on (by default Sketch&Walk
/// attends densely before) or from the first layer of the trace, whichever is later. Let V_l(i) be
/// the first heavy block of block i at layer l, and m = V_l(i) at the first layer of a chain. At
/// the next layer m -> V(m) = H becomes the hidden block of i, at the one after that V(H), and so
/// on: a query in block i attends to it with x = heavy_strength + ln 2, and only to the keys whose
/// sign agrees (half of them, hence the ln 2). Signs alternate, so block means see nothing of it:
/// scores of block means find H for i only by walking i -> m at the layer before and m -> H at this
/// one. Use an even block size with hops.
///
/// `planted` of the trace holds, for each layer and block row, the heavy blocks and, with hops > 1,
/// the hidden block in the last place.
namespace sw {

struct SyntheticOptions {
  std::int64_t num_layers = 4;
  std::int64_t first_layer = 0;
  std::int64_t num_heads = 4;
  std::int64_t num_kv_heads = 2;
  std::int64_t head_dim = 64;
  std::int64_t prefill_tokens = 1024;
  std::int64_t decode_tokens = 16;
  DType dtype = DType::kBf16;
  std::uint64_t seed = 0;
  std::int64_t block = 64;
  std::int64_t heavy_blocks = 2;
  double heavy_strength = 8;
  std::int64_t hops = 1;
  double sink_strength = 8;
  double local_strength = 7;
  double noise = 0.5;
};

/// Names of the presets: small, medium, l8b-128k (one layer of Llama-3.1-8B's shape, 131072
/// tokens).
std::vector<std::string> synthetic_presets();
/// Throws Error(kUsage) for an unknown name.
SyntheticOptions synthetic_preset(const std::string& name);

/// The trace's description with the planted blocks. Throws Error(kUsage) for impossible options.
TraceInfo plan_synthetic_trace(const SyntheticOptions& options);

/// Tokens [begin, end) of one tensor of a planned trace: [heads, end - begin, d].
HeadsTensor synthetic_tokens(const SyntheticOptions& options, const TraceInfo& plan,
                             std::int64_t layer, TraceTensor tensor, std::int64_t begin,
                             std::int64_t end);

}  // namespace sw
