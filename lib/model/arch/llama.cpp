#include "model/config.hpp"

/// Llama 1 to 3, SmolLM and others of the same form: no biases; from 3.1 on RoPE may be scaled.
/// GGUF keeps the rows of Q and K in the order of Meta's checkpoints, for rotations of neighbouring
/// pairs, and the scaling as divisors.
namespace sw {
namespace {

ModelConfig read_gguf(const Gguf& gguf) {
  ModelConfig config = read_common_config(gguf);
  config.interleaved_qk_rows = true;
  apply_rope_divisors(gguf, config);
  return config;
}

ModelConfig read_json(const JsonFields& json) { return read_common_config(json); }

}  // namespace

Architecture llama_architecture() { return {"llama", "LlamaForCausalLM", read_gguf, read_json}; }

}  // namespace sw
