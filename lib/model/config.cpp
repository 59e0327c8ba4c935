#include "model/config.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"

namespace sw {

ModelConfig read_common_config(const Gguf& gguf) {
  ModelConfig config;
  config.architecture = gguf.text("general.architecture");
  config.name = gguf.text("general.name", config.architecture);
  const auto key = [&](const char* suffix) { return config.architecture + "." + suffix; };
  const auto unsupported = [&](const std::string& what) {
    throw Error(ErrorKind::kUnsupported, "'" + gguf.path() + "': " + what + " is not implemented",
                "use a model without it");
  };
  const auto impossible = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, "'" + gguf.path() + "': " + what,
                "the file is damaged or was converted wrongly; fetch it again");
  };
  // Extents are limited so that products of three of them stay inside 64 bits; whether the weights
  // have these shapes is checked against the tensors.
  const auto extent = [&](const char* suffix) {
    const std::int64_t value = gguf.integer(key(suffix));
    if (value < 1 || value > (1 << 20)) {
      impossible("metadata '" + key(suffix) + "' is " + std::to_string(value));
    }
    return value;
  };
  const auto positive = [&](const char* suffix, double value) {
    if (!std::isfinite(value) || value <= 0) {
      impossible("metadata '" + key(suffix) + "' is not a positive number");
    }
    return value;
  };

  if (gguf.integer(key("expert_count"), 0) != 0) unsupported("a mixture of experts");
  if (gguf.integer(key("attention.sliding_window"), 0) != 0)
    unsupported("sliding-window attention");
  if (gguf.text(key("rope.scaling.type"), "none") != "none" ||
      gguf.number(key("rope.scaling.factor"), 1.0) != 1.0 ||
      gguf.number(key("rope.scale_linear"), 1.0) != 1.0 || gguf.find_tensor("rope_freqs.weight")) {
    unsupported("RoPE scaling");
  }

  config.layers = extent("block_count");
  config.hidden = extent("embedding_length");
  config.ffn = extent("feed_forward_length");
  config.heads = extent("attention.head_count");
  config.kv_heads =
      gguf.find(key("attention.head_count_kv")) ? extent("attention.head_count_kv") : config.heads;
  if (config.heads % config.kv_heads != 0) {
    impossible(std::to_string(config.heads) + " heads are not a multiple of " +
               std::to_string(config.kv_heads) + " KV heads");
  }
  if (gguf.find(key("attention.key_length"))) {
    config.head_dim = extent("attention.key_length");
  } else if (config.hidden % config.heads == 0) {
    config.head_dim = config.hidden / config.heads;
  } else {
    impossible("the width " + std::to_string(config.hidden) + " is not a multiple of " +
               std::to_string(config.heads) + " heads");
  }
  if (config.head_dim % 2 != 0) {
    impossible("the head dimension " + std::to_string(config.head_dim) + " is odd");
  }
  if (gguf.integer(key("attention.value_length"), config.head_dim) != config.head_dim) {
    unsupported("a value dimension other than the key dimension");
  }
  if (gguf.integer(key("rope.dimension_count"), config.head_dim) != config.head_dim) {
    unsupported("RoPE on a part of the head dimension");
  }
  config.context_length = gguf.integer(key("context_length"), 0);
  config.rope_base = positive("rope.freq_base", gguf.number(key("rope.freq_base"), 10000.0));
  config.rms_epsilon = positive("attention.layer_norm_rms_epsilon",
                                gguf.number(key("attention.layer_norm_rms_epsilon")));

  const GgufTensor* embedding = gguf.find_tensor("token_embd.weight");
  if (!embedding) impossible("there is no tensor 'token_embd.weight'");
  config.vocabulary = embedding->rows();
  return config;
}

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> list = {
      {"llama", read_llama_config},
      {"qwen2", read_qwen2_config},
  };
  return list;
}

ModelConfig read_config(const Gguf& gguf) {
  const std::string_view name = gguf.text("general.architecture");
  std::string known;
  for (const Architecture& a : architectures()) {
    if (a.name == name) return a.read_config(gguf);
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  throw Error(ErrorKind::kUnsupported,
              "'" + gguf.path() + "' has the architecture '" + std::string(name.substr(0, 64)) +
                  "', which is not implemented",
              "use one of: " + known);
}

}  // namespace sw
