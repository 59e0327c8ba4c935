#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.hpp"
#include "model/gguf.hpp"

/// What distinguishes one decoder-only transformer from another, read by one file for each
/// architecture (arch/*.cpp) from the metadata of a GGUF file or from the config.json of a Hugging
/// Face folder. What a configuration asks for and is not computed here is refused by name.
namespace sw {

struct ModelConfig {
  std::string architecture;  ///< "llama", "qwen2", "qwen3"
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
  std::string rope_scaling = "none";        ///< or "llama3"
  std::vector<double> inverse_frequencies;  ///< [head_dim / 2], radians a position, scaled
  double rms_epsilon = 0;
  bool qkv_bias = false;
  bool qk_norm = false;          ///< RMS norm of each head of Q and K, before the rotation
  bool tied_embeddings = false;  ///< the vocabulary product has the weights of the embedding
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

/// The same for the fields of a config.json, with the defaults that `transformers` has for all
/// three architectures. RoPE may be given as rope_theta and rope_scaling, as rope_parameters
/// (transformers 5), or as both when they agree; its scaling may be `llama3`.
ModelConfig read_common_config(const JsonFields& json);

/// Divides the frequencies by the divisors [head_dim / 2] in the tensor rope_freqs.weight, as GGUF
/// keeps the scaling `llama3`; nothing when there is no such tensor.
void apply_rope_divisors(const Gguf& gguf, ModelConfig& config);

/// What a file of arch/ gives.
struct Architecture {
  std::string_view name;         ///< general.architecture of GGUF, model_type of config.json
  std::string_view model_class;  ///< of transformers, in `architectures` of config.json
  ModelConfig (*read_gguf)(const Gguf& gguf);
  ModelConfig (*read_json)(const JsonFields& json);
};

Architecture llama_architecture();
Architecture qwen2_architecture();
Architecture qwen3_architecture();

/// The explicit list of all architectures.
const std::vector<Architecture>& architectures();

/// Configuration of the file's architecture. Throws Error(kUnsupported) for one not in the list.
ModelConfig read_config(const Gguf& gguf);
ModelConfig read_config(const JsonFields& json);

}  // namespace sw
