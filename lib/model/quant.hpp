#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

/// Quantised storage of GGUF tensors ("ggml types") and its expansion to float. A row is cut into
/// blocks of 32 or 256 elements, each with its own scales. Source: the GGUF specification and the
/// block layouts documented with ggml.
namespace sw {

/// The storage types that are read; the values are those of the file format.
enum class QuantType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ40 = 2,
  kQ41 = 3,
  kQ50 = 6,
  kQ51 = 7,
  kQ80 = 8,
  kQ4K = 12,
  kQ5K = 13,
  kQ6K = 14,
  kBF16 = 30,
};

struct QuantFormat {
  const char* name;             ///< "Q4_K"
  std::int64_t block_elements;  ///< a row's length is a multiple of it
  std::int64_t block_bytes;
};

/// Format of a type code as it stands in a file; nullptr for codes that are not read here.
const QuantFormat* find_quant_format(std::uint32_t code);
/// Format of a known type.
const QuantFormat& quant_format(QuantType type);
/// "F32, F16, Q4_0, ...": the types that are read, for error messages.
std::string quant_type_names();

/// Expands `elements` (a multiple of block_elements) stored at `src` (even address) to `dst`.
/// `src` holds elements / block_elements * block_bytes bytes.
void dequantize(QuantType type, const std::byte* src, std::int64_t elements, float* dst);

/// Elements that a scale and a minimum of a CodedRow are for.
inline constexpr std::int64_t kCodeGroup = 16;

/// A quantised row as integers: weight i is scale[i / 16] code[i] + minimum[i / 16].
struct CodedRow {
  std::int8_t* code;  ///< [row_elements]
  float* scale;       ///< [row_elements / kCodeGroup]
  float* minimum;     ///< [row_elements / kCodeGroup]
};

/// What the codes of a type need.
struct CodeFormat {
  int lowest;    ///< smallest code
  int highest;   ///< largest code
  int group;     ///< 16 or 32 elements have a scale in common
  bool minimum;  ///< whether minima differ from 0

  /// What both need.
  CodeFormat operator|(const CodeFormat& other) const;
};

/// Nothing for types that are not quantised.
std::optional<CodeFormat> code_format(QuantType type);

/// A matrix as it is stored in a mapped file, row by row; a vector is one row.
struct StoredMatrix {
  QuantType type = QuantType::kF32;
  std::int64_t rows = 0;
  std::int64_t row_elements = 0;    ///< a multiple of the type's block_elements
  std::span<const std::byte> data;  ///< of all rows, at any address

  /// Expands a row to row_elements floats.
  void load_row(std::int64_t index, float* out) const;
  /// A row as integers, for types that have a code_format().
  void load_codes(std::int64_t index, const CodedRow& out) const;

 private:
  std::span<const std::byte> row(std::int64_t index) const;
};

}  // namespace sw
