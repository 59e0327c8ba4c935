#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.hpp"

/// What distinguishes one decoder-only transformer from another, read from a file's metadata by one
/// function for each architecture (arch/*.cpp).
namespace sw {

struct ModelConfig {
  std::string architecture;  ///< "llama", "qwen2"
  std::string name;          ///< of the model, for reports
  std::int64_t layers = 0;
  std::int64_t hidden = 0;    ///< width of the residual stream
  std::int64_t ffn = 0;       ///< inner width of the SwiGLU block
  std::int64_t heads = 0;     ///< query heads H
  std::int64_t kv_heads = 0;  ///< Hkv, divides H
  std::int64_t head_dim = 0;  ///< d, even
  std::int64_t vocabulary = 0;
  std::int64_t context_length = 0;  ///< longest context of the training
  double rope_base = 0;
  double rms_epsilon = 0;
  bool qkv_bias = false;
  /// The file orders the rows of a Q or K head as (0, d/2, 1, d/2 + 1, ...), for rotations of
  /// neighbouring pairs. They are put back when loaded, so that the rotation is that of halves,
  /// (i, i + d/2), for every architecture.
  bool interleaved_qk_rows = false;

  std::int64_t q_rows() const { return heads * head_dim; }
  std::int64_t kv_rows() const { return kv_heads * head_dim; }
};

/// Reads the metadata that all architectures share (<architecture>.block_count etc.) and checks it.
/// Throws Error(kInput) for impossible values, Error(kUnsupported) for what the runner does not
/// compute: scaled or partial RoPE, sliding windows, mixtures of experts.
ModelConfig read_common_config(const Gguf& gguf);

/// One entry for each file of arch/.
struct Architecture {
  std::string_view name;  ///< general.architecture
  ModelConfig (*read_config)(const Gguf& gguf);
};

ModelConfig read_llama_config(const Gguf& gguf);
ModelConfig read_qwen2_config(const Gguf& gguf);

/// The explicit list of all architectures.
const std::vector<Architecture>& architectures();

/// Configuration of the file's architecture. Throws Error(kUnsupported) for one not in the list.
ModelConfig read_config(const Gguf& gguf);

}  // namespace sw
