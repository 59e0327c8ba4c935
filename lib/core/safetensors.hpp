#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/file.hpp"

/// safetensors files: a JSON header and named tensors of one mapped file. Everything is checked
/// when the file is opened (header and offsets against the file size, shapes against the bytes,
/// gaps and overlaps), so that a span handed out later is always inside the mapping. Source: the
/// safetensors format.
namespace sw {

struct SafetensorsTensor {
  std::string dtype;                ///< as stored: "BF16", "F32", "I64", ...
  std::vector<std::int64_t> shape;  ///< slowest dimension first; an extent may be 0
  std::span<const std::byte> data;  ///< the elements of `shape`; may lie at any address
};

class Safetensors {
 public:
  /// Maps and checks `path`. Throws Error(kInput), which names the file, when it is not a whole
  /// safetensors file.
  explicit Safetensors(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, SafetensorsTensor>& tensors() const { return tensors_; }

 private:
  MappedFile file_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, SafetensorsTensor> tensors_;
};

}  // namespace sw
