#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/chat_template.hpp"
#include "model/config.hpp"
#include "model/quant.hpp"
#include "model/tokenizer.hpp"

/// A model as it lies on the disk, whatever its format: configuration, weights by the role they
/// have in the transformer, tokenizer and chat template.
namespace sw {

/// What a stored tensor is for. Matrices [outputs, inputs]; norms and biases are vectors.
enum class WeightRole {
  kEmbedding,   ///< [vocabulary, hidden]
  kOutputNorm,  ///< [hidden]
  kOutput,      ///< [vocabulary, hidden]; where the embeddings are tied, there is none
  // The others are those of a layer.
  kAttentionNorm,  ///< [hidden]
  kQuery,          ///< [q_rows, hidden]
  kQueryBias,      ///< [q_rows], as the other two with qkv_bias
  kQueryNorm,      ///< [head_dim], as the other one with qk_norm
  kKey,            ///< [kv_rows, hidden]
  kKeyBias,        ///< [kv_rows]
  kKeyNorm,        ///< [head_dim]
  kValue,          ///< [kv_rows, hidden]
  kValueBias,      ///< [kv_rows]
  kAttentionOut,   ///< [hidden, q_rows]
  kFfnNorm,        ///< [hidden]
  kGate,           ///< [ffn, hidden]
  kUp,             ///< [ffn, hidden]
  kDown,           ///< [hidden, ffn]
};

class Checkpoint {
 public:
  /// Maps a GGUF file or, when `path` is a folder, a Hugging Face checkpoint, and checks that the
  /// weights are exactly those that the configuration asks for. Throws Error(kInput) for what is
  /// missing, damaged or contradictory, Error(kUnsupported) for models that are not computed here.
  static std::shared_ptr<const Checkpoint> open(const std::string& path);

  virtual ~Checkpoint() = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  virtual const std::string& path() const = 0;
  /// "GGUF" or "Hugging Face".
  virtual std::string format() const = 0;
  /// Paths of all files that decide results, for checksums.
  virtual std::vector<std::string> files() const = 0;
  virtual ChatTemplate chat_template() const = 0;
  /// Throws Error(kInput) when it has more tokens than the embedding has rows; fewer are usual.
  Tokenizer tokenizer() const;

  const ModelConfig& config() const { return config_; }
  /// A weight that the configuration asks for; `layer` is 0 for those of no layer.
  const StoredMatrix& weight(WeightRole role, std::int64_t layer = 0) const;

 protected:
  using Names = std::string (*)(WeightRole role, std::int64_t layer);

  /// `tensors`: all that the file holds; they stay mapped as long as the derived object lives.
  Checkpoint(const std::string& path, ModelConfig config,
             const std::map<std::string, StoredMatrix>& tensors, Names names);
  virtual Tokenizer read_tokenizer() const = 0;

 private:
  ModelConfig config_;
  std::map<std::pair<WeightRole, std::int64_t>, StoredMatrix> weights_;
};

}  // namespace sw
