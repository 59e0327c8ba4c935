#include "model/config.hpp"

/// Qwen3: an RMS norm on every head of Q and K, a head dimension of its own, no biases; rows as in
/// Hugging Face's checkpoints.
namespace sw {
namespace {

ModelConfig read_gguf(const Gguf& gguf) {
  ModelConfig config = read_common_config(gguf);
  config.qk_norm = true;
  return config;
}

ModelConfig read_json(const JsonFields& json) {
  json.required_integer("head_dim");  // the default of transformers is not hidden / heads
  ModelConfig config = read_common_config(json);
  config.qk_norm = true;
  return config;
}

}  // namespace

Architecture qwen3_architecture() { return {"qwen3", "Qwen3ForCausalLM", read_gguf, read_json}; }

}  // namespace sw
