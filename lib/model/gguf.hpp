#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/file.hpp"
#include "model/quant.hpp"

/// GGUF files, versions 2 and 3, little endian: typed metadata and named tensors of one mapped
/// file. Everything is checked when the file is opened (counts against the bytes that are left,
/// shapes and offsets against the file size, overlaps), so that a span handed out later is always
/// inside the mapping. Source: the GGUF specification.
namespace sw {

/// One tensor. `shape` has the fastest dimension first, as the format stores it, so a weight matrix
/// that maps `inputs` to `outputs` has the shape {inputs, outputs} and one row for each output.
struct GgufTensor {
  std::string name;
  QuantType type = QuantType::kF32;
  std::vector<std::int64_t> shape;  ///< 1 to 4 dimensions, each >= 1
  std::span<const std::byte> data;

  std::int64_t row_elements() const { return shape[0]; }
  std::int64_t rows() const;
  StoredMatrix matrix() const { return {type, rows(), row_elements(), data}; }
};

/// Array of numbers or booleans, as stored; `type` is the format's value type code.
struct GgufNumbers {
  std::uint32_t type = 0;
  std::uint64_t count = 0;
  std::span<const std::byte> data;
};

/// Signed and unsigned integers of all widths, booleans, floats, texts and arrays. Texts look into
/// the mapping.
using GgufValue = std::variant<std::int64_t, std::uint64_t, bool, double, std::string_view,
                               std::vector<std::string_view>, GgufNumbers>;

class Gguf {
 public:
  /// Maps and checks `path`. Throws Error(kInput) for a file that is damaged, and
  /// Error(kUnsupported) for a version, byte order or tensor type that is not read here.
  explicit Gguf(const std::string& path);

  const std::string& path() const { return file_.path(); }
  /// nullptr when the key is missing.
  const GgufValue* find(std::string_view key) const;

  // The functions below throw Error(kInput), which names file and key, when the value has another
  // type or does not fit, and when it is missing and there is no default.
  std::string_view text(std::string_view key) const;
  std::string_view text(std::string_view key, std::string_view otherwise) const;
  std::int64_t integer(std::string_view key) const;
  std::int64_t integer(std::string_view key, std::int64_t otherwise) const;
  double number(std::string_view key) const;
  double number(std::string_view key, double otherwise) const;
  bool boolean(std::string_view key, bool otherwise) const;
  const std::vector<std::string_view>& texts(std::string_view key) const;
  std::vector<std::int64_t> integers(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// nullptr when there is no such tensor.
  const GgufTensor* find_tensor(std::string_view name) const;

 private:
  template <class T>
  std::optional<T> get(std::string_view key) const;
  [[noreturn]] void fail_missing(std::string_view key) const;

  MappedFile file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> tensor_index_;
};

}  // namespace sw
