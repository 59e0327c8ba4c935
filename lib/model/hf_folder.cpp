#include "model/hf_folder.hpp"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/tensor.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";
constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{1} << 24;
constexpr std::uint64_t kMaxIndexBytes = std::uint64_t{1} << 28;
constexpr int kMaxDepth = 16;

bool exists(const std::string& path) {
  std::error_code error;  // a name that the system refuses is that of no file
  return fs::exists(path, error);
}

Error wrong(const std::string& message) {
  return Error(ErrorKind::kInput, message, "the folder is not complete; fetch it again");
}

JsonFields read_fields(const std::string& path, std::uint64_t max_bytes) {
  const std::string title = "'" + path + "'";
  return {parse_json_object(read_file(path, max_bytes), title, kMaxDepth), title};
}

/// The file of each tensor, as the index has it.
std::map<std::string, std::string> read_index(const std::string& path) {
  const JsonFields json = read_fields(path, kMaxIndexBytes);
  const auto map = json.object("weight_map");
  if (!map) throw wrong(json.name("weight_map") + " is missing");
  std::map<std::string, std::string> index;
  for (const std::string& tensor : map->keys()) {
    const std::string file = map->text(tensor).value_or("");
    if (!file.ends_with(".safetensors") || fs::path(file).filename() != file) {
      throw wrong(map->name(tensor) + " is not the name of a safetensors file");
    }
    index.emplace(tensor, file);
  }
  return index;
}

StoredMatrix stored_matrix(const std::string& title, const SafetensorsTensor& tensor) {
  static const std::map<std::string, QuantType> kTypes = {
      {"BF16", QuantType::kBF16}, {"F16", QuantType::kF16}, {"F32", QuantType::kF32}};
  const auto type = kTypes.find(tensor.dtype);
  if (type == kTypes.end()) {
    throw Error(ErrorKind::kUnsupported, title + " is stored as " + tensor.dtype,
                "use a checkpoint in BF16, F16 or F32");
  }
  if (tensor.shape.empty() || tensor.shape.size() > 2) {
    throw Error(ErrorKind::kUnsupported,
                title + " has the shape " + shape_text(tensor.shape) +
                    ", but only vectors and matrices are used here",
                "the model has a part that is not implemented; use another model");
  }
  return {type->second, tensor.shape.size() == 2 ? tensor.shape[0] : 1, tensor.shape.back(),
          tensor.data};
}

}  // namespace

HfFolder::HfFolder(const std::string& path)
    : path_(path), config_(read_fields(file("config.json"), kMaxConfigBytes)) {
  open_shards();
  for (const auto& [name, shard] : shards_) {
    for (const auto& [tensor_name, tensor] : shard.tensors()) {
      if (tensor_name.ends_with("rotary_emb.inv_freq")) continue;
      const std::string title = "'" + file(name) + "': tensor '" + tensor_name.substr(0, 60) + "'";
      tensors_.emplace(tensor_name, stored_matrix(title, tensor));
    }
  }
}

std::string HfFolder::file(const std::string& name) const {
  return (fs::path(path_) / name).string();
}

void HfFolder::open_shards() {
  indexed_ = exists(file(kIndex));
  std::map<std::string, std::string> index;
  if (indexed_) index = read_index(file(kIndex));
  if (!indexed_ && !exists(file(kSingle))) {
    throw Error(ErrorKind::kInput, "'" + path_ + "' has neither " + kSingle + " nor " + kIndex,
                "fetch the weights as safetensors, or save them so with transformers");
  }
  const auto open = [&](const std::string& name) {
    if (shards_.contains(name)) return;
    if (!exists(file(name))) {
      throw wrong("'" + path_ + "' has no '" + name + "', which its index names");
    }
    shards_.emplace(name, file(name));
  };
  if (!indexed_) open(kSingle);
  for (const auto& entry : index) open(entry.second);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".safetensors") && !shards_.contains(name)) {
      throw Error(ErrorKind::kInput,
                  "'" + path_ + "' has the weights '" + name + "', which " +
                      (indexed_ ? "its index does not name" : "no index names"),
                  "fetch the index that belongs to the weights, or move the file away");
    }
  }
  if (error) throw wrong("'" + path_ + "' cannot be listed: " + error.message());
  if (indexed_) check_index(index);
}

void HfFolder::check_index(const std::map<std::string, std::string>& index) const {
  for (const auto& [tensor, name] : index) {
    if (!shards_.at(name).tensors().contains(tensor)) {
      throw wrong("'" + file(kIndex) + "' names the tensor '" + tensor.substr(0, 60) +
                  "', which '" + name + "' does not have");
    }
  }
  for (const auto& [name, shard] : shards_) {
    for (const auto& [tensor, stored] : shard.tensors()) {
      const auto it = index.find(tensor);
      if (it == index.end() || it->second != name) {
        throw wrong("'" + file(name) + "' has the tensor '" + tensor.substr(0, 60) + "', which " +
                    (it == index.end() ? "the index does not name"
                                       : "the index says to be in '" + it->second + "'"));
      }
    }
  }
}

std::vector<std::string> HfFolder::files() const {
  std::vector<std::string> files = {file("config.json")};
  if (indexed_) files.push_back(file(kIndex));
  for (const auto& entry : shards_) files.push_back(file(entry.first));
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "chat_template.jinja"}) {
    if (exists(file(name))) files.push_back(file(name));
  }
  return files;
}

}  // namespace sw
