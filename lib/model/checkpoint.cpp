#include "model/checkpoint.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/error.hpp"
#include "model/gguf.hpp"
#include "model/hf_folder.hpp"

namespace sw {
namespace {

/// Names of the weights; % stands for the layer.
struct WeightNames {
  WeightRole role;
  const char* gguf;
  const char* hugging_face;
};

constexpr WeightNames kWeightNames[] = {
    {WeightRole::kEmbedding, "token_embd.weight", "model.embed_tokens.weight"},
    {WeightRole::kOutputNorm, "output_norm.weight", "model.norm.weight"},
    {WeightRole::kOutput, "output.weight", "lm_head.weight"},
    {WeightRole::kAttentionNorm, "blk.%.attn_norm.weight", "model.layers.%.input_layernorm.weight"},
    {WeightRole::kQuery, "blk.%.attn_q.weight", "model.layers.%.self_attn.q_proj.weight"},
    {WeightRole::kQueryBias, "blk.%.attn_q.bias", "model.layers.%.self_attn.q_proj.bias"},
    {WeightRole::kQueryNorm, "blk.%.attn_q_norm.weight", "model.layers.%.self_attn.q_norm.weight"},
    {WeightRole::kKey, "blk.%.attn_k.weight", "model.layers.%.self_attn.k_proj.weight"},
    {WeightRole::kKeyBias, "blk.%.attn_k.bias", "model.layers.%.self_attn.k_proj.bias"},
    {WeightRole::kKeyNorm, "blk.%.attn_k_norm.weight", "model.layers.%.self_attn.k_norm.weight"},
    {WeightRole::kValue, "blk.%.attn_v.weight", "model.layers.%.self_attn.v_proj.weight"},
    {WeightRole::kValueBias, "blk.%.attn_v.bias", "model.layers.%.self_attn.v_proj.bias"},
    {WeightRole::kAttentionOut, "blk.%.attn_output.weight",
     "model.layers.%.self_attn.o_proj.weight"},
    {WeightRole::kFfnNorm, "blk.%.ffn_norm.weight",
     "model.layers.%.post_attention_layernorm.weight"},
    {WeightRole::kGate, "blk.%.ffn_gate.weight", "model.layers.%.mlp.gate_proj.weight"},
    {WeightRole::kUp, "blk.%.ffn_up.weight", "model.layers.%.mlp.up_proj.weight"},
    {WeightRole::kDown, "blk.%.ffn_down.weight", "model.layers.%.mlp.down_proj.weight"},
};

std::string weight_name(const char* WeightNames::*format, WeightRole role, std::int64_t layer) {
  const auto* names = std::ranges::find(kWeightNames, role, &WeightNames::role);
  std::string name = names->*format;
  if (const auto at = name.find('%'); at != std::string::npos) {
    name.replace(at, 1, std::to_string(layer));
  }
  return name;
}

struct Expected {
  WeightRole role;
  std::int64_t rows;  // 1 for vectors
  std::int64_t row_elements;
};

std::vector<Expected> model_weights(const ModelConfig& c) {
  std::vector<Expected> weights = {{WeightRole::kEmbedding, c.vocabulary, c.hidden},
                                   {WeightRole::kOutputNorm, 1, c.hidden}};
  if (!c.tied_embeddings) weights.push_back({WeightRole::kOutput, c.vocabulary, c.hidden});
  return weights;
}

std::vector<Expected> layer_weights(const ModelConfig& c) {
  std::vector<Expected> weights = {{WeightRole::kAttentionNorm, 1, c.hidden},
                                   {WeightRole::kQuery, c.q_rows(), c.hidden},
                                   {WeightRole::kKey, c.kv_rows(), c.hidden},
                                   {WeightRole::kValue, c.kv_rows(), c.hidden},
                                   {WeightRole::kAttentionOut, c.hidden, c.q_rows()},
                                   {WeightRole::kFfnNorm, 1, c.hidden},
                                   {WeightRole::kGate, c.ffn, c.hidden},
                                   {WeightRole::kUp, c.ffn, c.hidden},
                                   {WeightRole::kDown, c.hidden, c.ffn}};
  if (c.qkv_bias) {
    weights.insert(weights.end(), {{WeightRole::kQueryBias, 1, c.q_rows()},
                                   {WeightRole::kKeyBias, 1, c.kv_rows()},
                                   {WeightRole::kValueBias, 1, c.kv_rows()}});
  }
  if (c.qk_norm) {
    weights.insert(weights.end(), {{WeightRole::kQueryNorm, 1, c.head_dim},
                                   {WeightRole::kKeyNorm, 1, c.head_dim}});
  }
  return weights;
}

class GgufCheckpoint : public Checkpoint {
 public:
  explicit GgufCheckpoint(Gguf gguf)
      : Checkpoint(gguf.path(), read_config(gguf), tensors(gguf), name), gguf_(std::move(gguf)) {}

  const std::string& path() const override { return gguf_.path(); }
  std::string format() const override { return "GGUF"; }
  std::vector<std::string> files() const override { return {gguf_.path()}; }
  ChatTemplate chat_template() const override { return ChatTemplate::of(gguf_); }

 private:
  Tokenizer read_tokenizer() const override { return Tokenizer(gguf_); }

  static std::string name(WeightRole role, std::int64_t layer) {
    return weight_name(&WeightNames::gguf, role, layer);
  }
  static std::map<std::string, StoredMatrix> tensors(const Gguf& gguf) {
    std::map<std::string, StoredMatrix> tensors;
    const bool divisors = read_config(gguf).rope_scaling != "none";  // the configuration has them
    for (const GgufTensor& tensor : gguf.tensors()) {
      if (!divisors || tensor.name != "rope_freqs.weight") {
        tensors.emplace(tensor.name, tensor.matrix());
      }
    }
    return tensors;
  }

  Gguf gguf_;
};

class HfCheckpoint : public Checkpoint {
 public:
  explicit HfCheckpoint(HfFolder folder)
      : Checkpoint(folder.path(), configuration(folder), tensors(folder), name),
        folder_(std::move(folder)) {}

  const std::string& path() const override { return folder_.path(); }
  std::string format() const override { return "Hugging Face"; }
  std::vector<std::string> files() const override { return folder_.files(); }
  ChatTemplate chat_template() const override { return ChatTemplate::of_folder(path()); }

 private:
  Tokenizer read_tokenizer() const override { return Tokenizer::from_folder(path()); }

  static std::string name(WeightRole role, std::int64_t layer) {
    return weight_name(&WeightNames::hugging_face, role, layer);
  }
  static ModelConfig configuration(const HfFolder& folder) {
    ModelConfig config = read_config(folder.config());
    const auto whole = std::filesystem::absolute(folder.path() + "/").lexically_normal();
    config.name = whole.parent_path().filename().string();
    return config;
  }
  /// Some files hold a tied output a second time; then it must be the embedding.
  static std::map<std::string, StoredMatrix> tensors(const HfFolder& folder) {
    auto tensors = folder.tensors();
    const auto output = tensors.find(name(WeightRole::kOutput, 0));
    const auto embedding = tensors.find(name(WeightRole::kEmbedding, 0));
    if (output == tensors.end() || embedding == tensors.end() ||
        !folder.config().boolean("tie_word_embeddings", false)) {
      return tensors;
    }
    if (!std::ranges::equal(output->second.data, embedding->second.data)) {
      throw Error(ErrorKind::kInput,
                  folder.config().name("tie_word_embeddings") + " is true, but '" + output->first +
                      "' is not '" + embedding->first + "'",
                  "set it to what the model was trained with");
    }
    tensors.erase(output);
    return tensors;
  }

  HfFolder folder_;
};

}  // namespace

std::shared_ptr<const Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;  // is told when the file is opened
  if (std::filesystem::is_directory(path, error)) {
    return std::make_shared<HfCheckpoint>(HfFolder(path));
  }
  return std::make_shared<GgufCheckpoint>(Gguf(path));
}

Checkpoint::Checkpoint(const std::string& path, ModelConfig config,
                       const std::map<std::string, StoredMatrix>& tensors, Names names)
    : config_(std::move(config)) {
  std::set<std::string> used;
  const auto take = [&](const Expected& expected, std::int64_t layer) {
    const std::string name = names(expected.role, layer);
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      throw Error(ErrorKind::kInput, "'" + path + "' has no tensor '" + name + "'",
                  "the checkpoint is not complete; fetch it again");
    }
    const StoredMatrix& stored = it->second;
    if (stored.rows != expected.rows || stored.row_elements != expected.row_elements) {
      throw Error(ErrorKind::kInput,
                  "'" + path + "': tensor '" + name + "' has " + std::to_string(stored.rows) +
                      " rows of " + std::to_string(stored.row_elements) +
                      ", but the configuration asks for " + std::to_string(expected.rows) + " of " +
                      std::to_string(expected.row_elements),
                  "the checkpoint is damaged or was converted wrongly; fetch it again");
    }
    used.insert(name);
    weights_.emplace(std::pair(expected.role, layer), stored);
  };
  for (const Expected& expected : model_weights(config_)) take(expected, 0);
  const std::vector<Expected> of_layer = layer_weights(config_);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    for (const Expected& expected : of_layer) take(expected, layer);
  }
  for (const auto& tensor : tensors) {
    if (used.contains(tensor.first)) continue;
    throw Error(ErrorKind::kUnsupported,
                "'" + path + "' has the tensor '" + tensor.first.substr(0, 64) +
                    "', which its architecture does not use here",
                "the model has a part that is not implemented; use another model");
  }
}

Tokenizer Checkpoint::tokenizer() const {
  Tokenizer tokenizer = read_tokenizer();
  if (tokenizer.size() > config_.vocabulary) {
    throw Error(ErrorKind::kInput,
                "'" + path() + "': the tokenizer has " + std::to_string(tokenizer.size()) +
                    " tokens, but the embedding only " + std::to_string(config_.vocabulary) +
                    " rows",
                "tokenizer and weights are not of the same model; fetch both again");
  }
  return tokenizer;
}

const StoredMatrix& Checkpoint::weight(WeightRole role, std::int64_t layer) const {
  return weights_.at({role, layer});
}

}  // namespace sw
