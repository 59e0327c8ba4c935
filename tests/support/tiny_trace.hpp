#pragma once

#include <unistd.h>

#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>

#include "support/golden_inputs.hpp"
#include "trace/trace.hpp"

/// Small traces in temporary files, for tests of whatever reads traces.
namespace sw::testing {

/// A folder that is removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "sw_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a folder");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct TinyTrace {
  std::int64_t heads = 4;
  std::int64_t kv_heads = 2;
  std::int64_t dim = 16;
  std::int64_t prefill = 200;
  std::int64_t decode = 3;
  std::int64_t first_layer = 1;
  std::int64_t layers = 3;
  std::uint64_t seed = 5;
  std::int64_t nan_layer = -1;  ///< a NaN in k of this layer
  bool answers = true;

  TraceInfo info() const {
    TraceInfo info;
    info.model = "tiny";
    info.first_layer = first_layer;
    info.num_layers = layers;
    info.num_heads = heads;
    info.num_kv_heads = kv_heads;
    info.head_dim = dim;
    info.prefill_tokens = prefill;
    info.total_tokens = prefill + decode;
    info.dtype = DType::kF32;
    info.source = "a test";
    info.created_by = "a test";
    for (std::int64_t t = 0; t < info.total_tokens; ++t) {
      info.tokens.push_back(static_cast<std::int32_t>(t));
    }
    if (answers) info.answer_spans = {{40, 50}};
    return info;
  }

  /// q, k and v of a layer for all tokens.
  HeadsTensor tensor(std::int64_t layer, int which) const {
    return golden_tensor(seed, layer, which, which == 0 ? heads : kv_heads, prefill + decode, dim,
                         2.0, 1.0);
  }

  /// Writes the trace; the extension of `path` chooses the container.
  std::string write(const std::string& path) const {
    TraceWriter writer(path, info());
    for (std::int64_t layer = first_layer; layer < first_layer + layers; ++layer) {
      HeadsTensor k = tensor(layer, 1);
      if (layer == nan_layer) k.row<float>(0, 7)[3] = std::numeric_limits<float>::quiet_NaN();
      writer.append(layer, tensor(layer, 0).view(), k.view(), tensor(layer, 2).view());
    }
    writer.commit();
    return path;
  }
};

}  // namespace sw::testing
