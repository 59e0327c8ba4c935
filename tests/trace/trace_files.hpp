#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/rng.hpp"
#include "core/tensor.hpp"
#include "trace/trace.hpp"

/// Files and contents for the tests of lib/trace.
namespace sw::testing {

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Random finite bits of `dtype`.
inline HeadsTensor random_tensor(DType dtype, std::int64_t heads, std::int64_t tokens,
                                 std::int64_t dim, std::uint64_t seed) {
  HeadsTensor tensor(dtype, heads, tokens, dim);
  SplitMix64 random(seed);
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    const auto x = static_cast<float>(random.normal());
    convert_from_float(&x, dtype, 1,
                       tensor.data() + static_cast<std::size_t>(i) * dtype_size(dtype));
  }
  return tensor;
}

inline bool same(const HeadsTensor& a, const HeadsTensor& b) {
  return a.dtype() == b.dtype() && a.heads() == b.heads() && a.tokens() == b.tokens() &&
         a.dim() == b.dim() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

inline TraceInfo small_info(DType dtype) {
  TraceInfo info;
  info.model = "small \"model\"";
  info.first_layer = 9;
  info.num_layers = 2;
  info.model_layers = 12;
  info.num_heads = 4;
  info.num_kv_heads = 2;
  info.head_dim = 8;
  info.prefill_tokens = 600;
  info.total_tokens = 603;
  info.dtype = dtype;
  info.source = "a test";
  info.created_by = "Grüße";
  info.text = "line\n\ttab \xE2\x82\xAC";
  for (std::int32_t t = 0; t < 603; ++t) info.tokens.push_back(1000 + t);
  info.answer_spans = {{0, 1}, {599, 603}};
  info.planted = PlantedBlocks{64, 2, 10, 1, std::vector<std::int32_t>(20, 3)};
  info.planted->blocks[5] = -1;
  return info;
}

inline HeadsTensor small_tensor(const TraceInfo& info, std::int64_t layer, TraceTensor tensor) {
  return random_tensor(info.dtype, info.heads(tensor), info.total_tokens, info.head_dim,
                       static_cast<std::uint64_t>(layer * 3 + static_cast<int>(tensor)));
}

/// Writes small_tensor of every layer, `step` tokens at a time, layers in turns.
inline void write_small(const std::string& path, const TraceInfo& info, std::int64_t step,
                        const TraceWriteOptions& options = {}) {
  TraceWriter writer(path, info, options);
  for (std::int64_t begin = 0; begin < info.total_tokens; begin += step) {
    const std::int64_t end = std::min(begin + step, info.total_tokens);
    for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
      for (const TraceTensor tensor : kTraceTensors) {
        const HeadsTensor all = small_tensor(info, layer, tensor);
        writer.append(layer, tensor, all.view().tokens_slice(begin, end));
      }
    }
  }
  writer.commit();
}

inline std::size_t files_in(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder),
                                                std::filesystem::directory_iterator()));
}

}  // namespace sw::testing
