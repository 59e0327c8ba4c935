#include "model/config.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

#include "core/error.hpp"

namespace sw {
namespace {

/// `title` names the file or the field that is wrong.
[[noreturn]] void impossible(const std::string& title, const std::string& what) {
  throw Error(ErrorKind::kInput, title + " " + what,
              "the file is damaged or was converted wrongly; fetch it again");
}

[[noreturn]] void unsupported(const std::string& title, const std::string& what) {
  throw Error(ErrorKind::kUnsupported, title + ": " + what + " is not implemented",
              "use a model without it");
}

/// Extents are limited so that products of three of them stay inside 64 bits; whether the weights
/// have these shapes is checked against the tensors.
std::int64_t extent(const std::string& title, std::int64_t value) {
  if (value < 1 || value > (1 << 20)) impossible(title, "is " + std::to_string(value));
  return value;
}

double positive(const std::string& title, double value) {
  if (!std::isfinite(value) || value <= 0) impossible(title, "is not a positive number");
  return value;
}

std::int64_t default_head_dim(const std::string& title, const ModelConfig& config) {
  if (config.hidden % config.heads != 0) {
    impossible(title, "has the width " + std::to_string(config.hidden) +
                          ", which is not a multiple of " + std::to_string(config.heads) +
                          " heads");
  }
  return config.hidden / config.heads;
}

/// Checks what both formats must agree with, and computes the frequencies without scaling.
void finish(const std::string& title, ModelConfig& config) {
  if (config.heads % config.kv_heads != 0) {
    impossible(title, "has " + std::to_string(config.heads) +
                          " heads, which are not a multiple of " + std::to_string(config.kv_heads) +
                          " KV heads");
  }
  if (config.head_dim % 2 != 0) {
    impossible(title,
               "has the head dimension " + std::to_string(config.head_dim) + ", which is odd");
  }
  if (config.context_length < 0 || config.context_length > std::int64_t{1} << 40) {
    impossible(title, "has the context length " + std::to_string(config.context_length));
  }
  const auto dim = static_cast<double>(config.head_dim);
  for (std::int64_t i = 0; i < config.head_dim / 2; ++i) {
    config.inverse_frequencies.push_back(
        std::pow(config.rope_base, -2.0 * static_cast<double>(i) / dim));
  }
}

/// Fields of config.json that change what other models of `transformers` compute, and the values
/// with which they change nothing. Absent and null are fine, too.
const std::vector<std::pair<std::string, nlohmann::json>>& neutral_fields() {
  static const std::vector<std::pair<std::string, nlohmann::json>> fields = {
      {"alibi", false},
      {"attention_bias", false},
      {"attention_chunk_size", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"auto_map", nullptr},
      {"clip_qkv", nullptr},
      {"compression_config", nullptr},
      {"embedding_multiplier", 1},
      {"final_logit_softcapping", nullptr},
      {"hidden_act", "silu"},
      {"is_encoder_decoder", false},
      {"logit_scale", 1},
      {"logits_scaling", 1},
      {"mlp_bias", false},
      {"moe_intermediate_size", 0},
      {"n_routed_experts", 0},
      {"no_rope_layers", nullptr},
      {"num_experts", 0},
      {"num_experts_per_tok", 0},
      {"num_local_experts", 0},
      {"qk_layernorm", false},
      {"quantization_config", nullptr},
      {"residual_multiplier", 1},
      {"rope_interleaved", false},
      {"use_qk_norm", false},
      {"use_sliding_window", false},
  };
  return fields;
}

void refuse_what_is_not_computed(const JsonFields& json, std::int64_t layers) {
  const auto refuse = [&](const std::string& key, const nlohmann::json& value) {
    unsupported(json.title(), key + " = " + value.dump().substr(0, 60));
  };
  for (const auto& [key, neutral] : neutral_fields()) {
    const nlohmann::json* value = json.find(key);
    if (value && *value != neutral) refuse(key, *value);
  }
  // Qwen states a window that is not used; others use what they state.
  if (!json.find("use_sliding_window") && json.find("sliding_window")) {
    refuse("sliding_window", *json.find("sliding_window"));
  }
  if (const auto types = json.texts("layer_types")) {
    for (const std::string& type : *types) {
      if (type != "full_attention") refuse("layer_types", type);
    }
    if (std::ssize(*types) != layers) {
      impossible(json.name("layer_types"), "has " + std::to_string(types->size()) +
                                               " entries for " + std::to_string(layers) +
                                               " layers");
    }
  }
}

/// The RoPE parameters of a config.json: rope_parameters of transformers 5, and rope_theta and
/// rope_scaling of those before. What is said twice must be the same.
class RopeFields {
 public:
  explicit RopeFields(const JsonFields& json) : json_(json) {
    for (const char* key : {"rope_parameters", "rope_scaling"}) {
      if (auto object = json.object(key)) objects_.push_back(std::move(*object));
    }
    for (const JsonFields& object : objects_) {
      for (const char* key : {"rope_type", "type"}) {
        if (const auto type = object.text(key)) agree(type_, *type, object.name(key));
      }
    }
    const std::string type = this->type();
    if (type != "default" && type != "llama3") {
      unsupported(json.title(), "RoPE scaling '" + type.substr(0, 40) + "'");
    }
    std::vector<std::string> known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"};
    if (type == "llama3") {
      known.insert(known.end(), {"factor", "low_freq_factor", "high_freq_factor",
                                 "original_max_position_embeddings"});
    }
    for (const JsonFields& object : objects_) {
      for (const std::string& key : object.keys()) {
        if (object.find(key) && std::ranges::find(known, key) == known.end()) {
          unsupported(object.name(key), "this parameter of the RoPE type '" + type + "'");
        }
      }
    }
  }

  std::string type() const { return type_.value_or("default"); }

  std::optional<double> number(const std::string& key) const {
    std::optional<double> value = json_.number(key);
    for (const JsonFields& object : objects_) {
      if (const auto other = object.number(key)) agree(value, *other, object.name(key));
    }
    return value;
  }

  double required(const std::string& key) const {
    const auto value = number(key);
    if (!value) impossible(json_.title(), "has the RoPE type '" + type() + "', but no " + key);
    return positive(json_.name(key), *value);
  }

 private:
  template <class T>
  static void agree(std::optional<T>& value, const T& other, const std::string& name) {
    if (value && *value != other) impossible(name, "contradicts the value at another place");
    value = other;
  }

  const JsonFields& json_;
  std::vector<JsonFields> objects_;
  std::optional<std::string> type_;
};

/// Llama 3.1's scaling: long waves are stretched by `factor`, short ones are not, and between them
/// the frequency goes linearly from one to the other.
void scale_as_llama3(const RopeFields& rope, const std::string& title, ModelConfig& config) {
  const double factor = rope.required("factor");
  const double low = rope.required("low_freq_factor");
  const double high = rope.required("high_freq_factor");
  const double original = rope.required("original_max_position_embeddings");
  if (high <= low) impossible(title, "has a high_freq_factor that is not above low_freq_factor");
  for (double& frequency : config.inverse_frequencies) {
    const double waves = original * frequency / (2 * std::numbers::pi);  // in the original context
    const double kept = std::clamp((waves - low) / (high - low), 0.0, 1.0);
    frequency *= kept + (1 - kept) / factor;
  }
  config.rope_scaling = "llama3";
}

std::string known_architectures() {
  std::string known;
  for (const Architecture& a : architectures()) {
    known += (known.empty() ? "" : ", ") + std::string(a.name);
  }
  return known;
}

const Architecture& find_architecture(const std::string& title, std::string_view name) {
  for (const Architecture& a : architectures()) {
    if (a.name == name) return a;
  }
  throw Error(ErrorKind::kUnsupported,
              title + " has the architecture '" + std::string(name.substr(0, 64)) +
                  "', which is not implemented",
              "use one of: " + known_architectures());
}

}  // namespace

ModelConfig read_common_config(const Gguf& gguf) {
  const std::string title = "'" + gguf.path() + "'";
  ModelConfig config;
  config.architecture = gguf.text("general.architecture");
  config.name = gguf.text("general.name", config.architecture);
  const auto key = [&](const char* suffix) { return config.architecture + "." + suffix; };
  const auto name = [&](const char* suffix) { return title + ": metadata '" + key(suffix) + "'"; };
  const auto read_extent = [&](const char* suffix) {
    return extent(name(suffix), gguf.integer(key(suffix)));
  };

  if (gguf.integer(key("expert_count"), 0) != 0) unsupported(title, "a mixture of experts");
  if (gguf.integer(key("attention.sliding_window"), 0) != 0) {
    unsupported(title, "sliding-window attention");
  }
  const std::string_view scaling = gguf.text(key("rope.scaling.type"), "none");
  if (scaling != "none" || gguf.number(key("rope.scaling.factor"), 1.0) != 1.0 ||
      gguf.number(key("rope.scale_linear"), 1.0) != 1.0) {
    const std::string type(scaling == "none" ? "linear" : scaling.substr(0, 40));
    unsupported(title, "RoPE scaling '" + type + "'");
  }

  config.layers = read_extent("block_count");
  config.hidden = read_extent("embedding_length");
  config.ffn = read_extent("feed_forward_length");
  config.heads = read_extent("attention.head_count");
  config.kv_heads = gguf.find(key("attention.head_count_kv"))
                        ? read_extent("attention.head_count_kv")
                        : config.heads;
  config.head_dim = gguf.find(key("attention.key_length")) ? read_extent("attention.key_length")
                                                           : default_head_dim(title, config);
  if (gguf.integer(key("attention.value_length"), config.head_dim) != config.head_dim) {
    unsupported(title, "a value dimension other than the key dimension");
  }
  if (gguf.integer(key("rope.dimension_count"), config.head_dim) != config.head_dim) {
    unsupported(title, "RoPE on a part of the head dimension");
  }
  config.context_length = gguf.integer(key("context_length"), 0);
  config.rope_base = positive(name("rope.freq_base"), gguf.number(key("rope.freq_base"), 10000.0));
  config.rms_epsilon = positive(name("attention.layer_norm_rms_epsilon"),
                                gguf.number(key("attention.layer_norm_rms_epsilon")));

  const GgufTensor* embedding = gguf.find_tensor("token_embd.weight");
  if (!embedding) impossible(title, "has no tensor 'token_embd.weight'");
  config.vocabulary = embedding->rows();
  config.tied_embeddings = gguf.find_tensor("output.weight") == nullptr;
  finish(title, config);
  return config;
}

ModelConfig read_common_config(const JsonFields& json) {
  ModelConfig config;
  const auto read_extent = [&](const char* key) {
    return extent(json.name(key), json.required_integer(key));
  };
  config.architecture = json.text("model_type").value_or("");
  config.layers = read_extent("num_hidden_layers");
  refuse_what_is_not_computed(json, config.layers);
  config.hidden = read_extent("hidden_size");
  config.ffn = read_extent("intermediate_size");
  config.heads = read_extent("num_attention_heads");
  config.kv_heads =
      json.find("num_key_value_heads") ? read_extent("num_key_value_heads") : config.heads;
  config.head_dim =
      json.find("head_dim") ? read_extent("head_dim") : default_head_dim(json.title(), config);
  config.vocabulary = read_extent("vocab_size");
  config.context_length = json.required_integer("max_position_embeddings");
  config.rms_epsilon = positive(json.name("rms_norm_eps"), json.required_number("rms_norm_eps"));
  config.tied_embeddings = json.boolean("tie_word_embeddings", false);
  const RopeFields rope(json);
  config.rope_base = positive(json.name("rope_theta"), rope.number("rope_theta").value_or(10000));
  if (rope.number("partial_rotary_factor").value_or(1) != 1) {
    unsupported(json.title(), "RoPE on a part of the head dimension");
  }
  finish(json.title(), config);
  if (rope.type() == "llama3") scale_as_llama3(rope, json.title(), config);
  return config;
}

void apply_rope_divisors(const Gguf& gguf, ModelConfig& config) {
  const GgufTensor* tensor = gguf.find_tensor("rope_freqs.weight");
  if (!tensor) return;
  const std::string title = "'" + gguf.path() + "': tensor 'rope_freqs.weight'";
  if (tensor->rows() != 1 || tensor->row_elements() != config.head_dim / 2) {
    impossible(title, "is not of half the head dimension");
  }
  std::vector<float> divisors(config.inverse_frequencies.size());
  tensor->matrix().load_row(0, divisors.data());
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    config.inverse_frequencies[i] /= positive(title + " [" + std::to_string(i) + "]", divisors[i]);
  }
  config.rope_scaling = "llama3";
}

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> list = {
      llama_architecture(),
      qwen2_architecture(),
      qwen3_architecture(),
  };
  return list;
}

ModelConfig read_config(const Gguf& gguf) {
  const std::string_view name = gguf.text("general.architecture");
  return find_architecture("'" + gguf.path() + "'", name).read_gguf(gguf);
}

ModelConfig read_config(const JsonFields& json) {
  const auto type = json.text("model_type");
  if (!type) impossible(json.name("model_type"), "is missing");
  const Architecture& architecture = find_architecture(json.title(), *type);
  for (const std::string& name : json.texts("architectures").value_or(std::vector<std::string>())) {
    if (name != architecture.model_class) {
      unsupported(json.title(), "the model '" + name.substr(0, 60) + "'");
    }
  }
  return architecture.read_json(json);
}

}  // namespace sw
