#include "model/config.hpp"

/// Llama 1 to 3, SmolLM and others of the same form: no biases; GGUF keeps the rows of Q and K in
/// the order of Meta's checkpoints, for rotations of neighbouring pairs.
namespace sw {

ModelConfig read_llama_config(const Gguf& gguf) {
  ModelConfig config = read_common_config(gguf);
  config.interleaved_qk_rows = true;
  return config;
}

}  // namespace sw
