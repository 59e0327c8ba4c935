#include "model/quant.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>
#include <vector>

#include "core/dtype.hpp"

// Fields are read with memcpy, because a block need not be aligned in the file.

namespace sw {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little endian");

constexpr std::int64_t kLargestBlock = 256;
constexpr std::array<std::pair<QuantType, QuantFormat>, 11> kFormats{{
    {QuantType::kF32, {"F32", 1, 4}},
    {QuantType::kF16, {"F16", 1, 2}},
    {QuantType::kBF16, {"BF16", 1, 2}},
    {QuantType::kQ40, {"Q4_0", 32, 18}},
    {QuantType::kQ41, {"Q4_1", 32, 20}},
    {QuantType::kQ50, {"Q5_0", 32, 22}},
    {QuantType::kQ51, {"Q5_1", 32, 24}},
    {QuantType::kQ80, {"Q8_0", 32, 34}},
    {QuantType::kQ4K, {"Q4_K", 256, 144}},
    {QuantType::kQ5K, {"Q5_K", 256, 176}},
    {QuantType::kQ6K, {"Q6_K", 256, 210}},
}};

template <class T>
T load(const std::uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float load_f16(const std::uint8_t* p) { return to_float(load<F16>(p)); }

/// One block as integers: weight i is scale[i / 16] code[i] + minimum[i / 16].
struct Block {
  std::int8_t* code;
  float* scale;
  float* minimum;

  void set_group(int first, int count, float s, float m) const {
    std::fill_n(scale + first / kCodeGroup, count / kCodeGroup, s);
    std::fill_n(minimum + first / kCodeGroup, count / kCodeGroup, m);
  }
};

std::int8_t signed_code(int value) { return static_cast<std::int8_t>(value); }

// Element i of a 32-block lies in the low (i < 16) or high nibble of byte i % 16; a fifth bit,
// where there is one, is bit i of a 32-bit word.

void nibbles(const std::uint8_t* bytes, std::uint32_t high, int offset, const Block& to) {
  for (int i = 0; i < 16; ++i) {
    to.code[i] = signed_code(((bytes[i] & 15) | static_cast<int>(high >> i & 1) << 4) - offset);
    to.code[i + 16] =
        signed_code(((bytes[i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4) - offset);
  }
}

void q4_0(const std::uint8_t* b, const Block& to) {
  nibbles(b + 2, 0, 8, to);
  to.set_group(0, 32, load_f16(b), 0.0f);
}

void q4_1(const std::uint8_t* b, const Block& to) {
  nibbles(b + 4, 0, 0, to);
  to.set_group(0, 32, load_f16(b), load_f16(b + 2));
}

void q5_0(const std::uint8_t* b, const Block& to) {
  nibbles(b + 6, load<std::uint32_t>(b + 2), 16, to);
  to.set_group(0, 32, load_f16(b), 0.0f);
}

void q5_1(const std::uint8_t* b, const Block& to) {
  nibbles(b + 8, load<std::uint32_t>(b + 4), 0, to);
  to.set_group(0, 32, load_f16(b), load_f16(b + 2));
}

void q8_0(const std::uint8_t* b, const Block& to) {
  std::memcpy(to.code, b + 2, 32);
  to.set_group(0, 32, load_f16(b), 0.0f);
}

/// Scale and minimum j of the eight 6-bit pairs that Q4_K and Q5_K pack into 12 bytes: the low six
/// bits of bytes 0..3 (scales) and 4..7 (minima) hold pairs 0..3; pairs 4..7 have their low four
/// bits in bytes 8..11 and their high two bits in the top of bytes 0..7.
std::pair<int, int> scale_and_min(const std::uint8_t* s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4};
}

/// Q4_K, and Q5_K, where bit j of byte i of `high` is the fifth bit of element i of sub-block j.
void q45_k(const std::uint8_t* b, const std::uint8_t* high, const std::uint8_t* q,
           const Block& to) {
  const float d = load_f16(b);
  const float dmin = load_f16(b + 2);
  for (int j = 0; j < 8; ++j) {  // sub-block j: 32 elements, low or high nibbles of 32 bytes
    const auto [scale, minimum] = scale_and_min(b + 4, j);
    to.set_group(j * 32, 32, d * static_cast<float>(scale), -(dmin * static_cast<float>(minimum)));
    const std::uint8_t* bytes = q + j / 2 * 32;
    const int shift = j % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int fifth = high ? high[i] >> j & 1 : 0;
      to.code[j * 32 + i] = signed_code((bytes[i] >> shift & 15) | fifth << 4);
    }
  }
}
void q4_k(const std::uint8_t* b, const Block& to) { q45_k(b, nullptr, b + 16, to); }
void q5_k(const std::uint8_t* b, const Block& to) { q45_k(b, b + 16, b + 48, to); }

void q6_k(const std::uint8_t* b, const Block& to) {
  const float d = load_f16(b + 208);
  for (int half = 0; half < 2; ++half) {  // 128 elements each: 64 low bytes, 32 high, 8 scales
    const std::uint8_t* low = b + half * 64;
    const std::uint8_t* high = b + 128 + half * 32;
    const std::uint8_t* scales = b + 192 + half * 8;
    for (int part = 0; part < 4; ++part) {  // 32 elements each
      const std::uint8_t* bytes = low + part % 2 * 32;
      const int shift = part / 2 * 4;
      const int first = half * 128 + part * 32;
      for (int i = 0; i < 32; ++i) {
        const int value = (bytes[i] >> shift & 15) | (high[i] >> (2 * part) & 3) << 4;
        to.code[first + i] = signed_code(value - 32);
      }
      for (int g = 0; g < 2; ++g) {
        const auto scale = static_cast<std::int8_t>(scales[part * 2 + g]);
        to.set_group(first + 16 * g, 16, d * static_cast<float>(scale), 0.0f);
      }
    }
  }
}

/// Null for types that are not quantised.
void (*decoder(QuantType type))(const std::uint8_t*, const Block&) {
  switch (type) {
    case QuantType::kQ40:
      return q4_0;
    case QuantType::kQ41:
      return q4_1;
    case QuantType::kQ50:
      return q5_0;
    case QuantType::kQ51:
      return q5_1;
    case QuantType::kQ80:
      return q8_0;
    case QuantType::kQ4K:
      return q4_k;
    case QuantType::kQ5K:
      return q5_k;
    case QuantType::kQ6K:
      return q6_k;
    default:
      return nullptr;
  }
}

}  // namespace

const QuantFormat* find_quant_format(std::uint32_t code) {
  for (const auto& [type, format] : kFormats) {
    if (static_cast<std::uint32_t>(type) == code) return &format;
  }
  return nullptr;
}

const QuantFormat& quant_format(QuantType type) {
  const QuantFormat* format = find_quant_format(static_cast<std::uint32_t>(type));
  assert(format);
  return *format;
}

std::string quant_type_names() {
  std::string names;
  for (const auto& [type, format] : kFormats) {
    names += names.empty() ? "" : ", ";
    names += format.name;
  }
  return names;
}

CodeFormat CodeFormat::operator|(const CodeFormat& other) const {
  return {std::min(lowest, other.lowest), std::max(highest, other.highest),
          std::min(group, other.group), minimum || other.minimum};
}

std::optional<CodeFormat> code_format(QuantType type) {
  switch (type) {
    case QuantType::kQ40:
      return CodeFormat{-8, 7, 32, false};
    case QuantType::kQ41:
    case QuantType::kQ4K:
      return CodeFormat{0, 15, 32, true};
    case QuantType::kQ50:
      return CodeFormat{-16, 15, 32, false};
    case QuantType::kQ51:
    case QuantType::kQ5K:
      return CodeFormat{0, 31, 32, true};
    case QuantType::kQ80:
      return CodeFormat{-128, 127, 32, false};
    case QuantType::kQ6K:
      return CodeFormat{-32, 31, 16, false};
    default:
      return std::nullopt;
  }
}

void dequantize(QuantType type, const std::byte* src, std::int64_t elements, float* dst) {
  if (type == QuantType::kF32) {
    std::memcpy(dst, src, static_cast<std::size_t>(elements) * sizeof(float));
    return;
  }
  if (type == QuantType::kF16) return convert_to_float(src, DType::kF16, elements, dst);
  if (type == QuantType::kBF16) return convert_to_float(src, DType::kBf16, elements, dst);
  const QuantFormat& format = quant_format(type);
  assert(elements % format.block_elements == 0);
  const auto decode = decoder(type);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(src);
  std::int8_t code[kLargestBlock];
  float scale[kLargestBlock / kCodeGroup];
  float minimum[kLargestBlock / kCodeGroup];
  for (std::int64_t i = 0; i < elements; i += format.block_elements, bytes += format.block_bytes) {
    decode(bytes, {code, scale, minimum});
    for (std::int64_t j = 0; j < format.block_elements; ++j) {
      const std::int64_t group = j / kCodeGroup;
      dst[i + j] = scale[group] * static_cast<float>(code[j]) + minimum[group];
    }
  }
}

std::span<const std::byte> StoredMatrix::row(std::int64_t index) const {
  const QuantFormat& format = quant_format(type);
  const auto bytes =
      static_cast<std::size_t>(row_elements / format.block_elements * format.block_bytes);
  return data.subspan(static_cast<std::size_t>(index) * bytes, bytes);
}

void StoredMatrix::load_row(std::int64_t index, float* out) const {
  const auto source = row(index);
  if (std::bit_cast<std::uintptr_t>(source.data()) % 2 == 0) {
    return dequantize(type, source.data(), row_elements, out);
  }
  const std::vector<std::byte> aligned(source.begin(), source.end());
  dequantize(type, aligned.data(), row_elements, out);
}

void StoredMatrix::load_codes(std::int64_t index, const CodedRow& out) const {
  const QuantFormat& format = quant_format(type);
  const auto decode = decoder(type);
  assert(decode);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row(index).data());
  for (std::int64_t i = 0; i < row_elements; i += format.block_elements) {
    decode(bytes, {out.code + i, out.scale + i / kCodeGroup, out.minimum + i / kCodeGroup});
    bytes += format.block_bytes;
  }
}

}  // namespace sw
