#include "model/config.hpp"

/// Qwen2 and Qwen2.5: biases on Q, K and V; rows as in Hugging Face's checkpoints.
namespace sw {

ModelConfig read_qwen2_config(const Gguf& gguf) {
  ModelConfig config = read_common_config(gguf);
  config.qkv_bias = true;
  return config;
}

}  // namespace sw
