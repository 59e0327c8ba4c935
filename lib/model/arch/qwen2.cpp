#include "model/config.hpp"

/// Qwen2 and Qwen2.5: biases on Q, K and V; rows as in Hugging Face's checkpoints.
namespace sw {
namespace {

template <class Source>
ModelConfig read(const Source& source) {
  ModelConfig config = read_common_config(source);
  config.qkv_bias = true;
  return config;
}

}  // namespace

Architecture qwen2_architecture() {
  return {"qwen2", "Qwen2ForCausalLM", read<Gguf>, read<JsonFields>};
}

}  // namespace sw
