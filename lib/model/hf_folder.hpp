#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/safetensors.hpp"
#include "model/quant.hpp"

/// A folder as Hugging Face's libraries write it: config.json, and the weights in
/// model.safetensors or in the shards that model.safetensors.index.json names.
namespace sw {

class HfFolder {
 public:
  /// Maps and checks everything but the configuration's meaning. Throws Error(kInput) for files
  /// that are missing, damaged or too many, for an index that does not fit its shards, and
  /// Error(kUnsupported) for weights that are not bf16, f16 or f32.
  explicit HfFolder(const std::string& path);

  const std::string& path() const { return path_; }
  /// The fields of config.json.
  const JsonFields& config() const { return config_; }
  /// The weights by name: matrices [outputs, inputs] and vectors, without the buffers of
  /// frequencies that old files hold.
  const std::map<std::string, StoredMatrix>& tensors() const { return tensors_; }
  /// Paths of config.json, the index, the weights, and what the tokenizer and the chat template are
  /// read from, as far as they exist.
  std::vector<std::string> files() const;

 private:
  std::string file(const std::string& name) const;
  void open_shards();
  void check_index(const std::map<std::string, std::string>& index) const;

  std::string path_;
  JsonFields config_;
  bool indexed_ = false;
  std::map<std::string, Safetensors> shards_;  // by file name
  std::map<std::string, StoredMatrix> tensors_;
};

}  // namespace sw
