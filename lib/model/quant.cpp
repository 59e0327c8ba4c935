#include "model/quant.hpp"

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

// Element i of a 32-block lies in the low (i < 16) or high nibble of byte i % 16; a fifth bit,
// where there is one, is bit i of a 32-bit word.

void q4_0(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((b[2 + i] & 15) - 8);
    y[i + 16] = d * static_cast<float>((b[2 + i] >> 4) - 8);
  }
}

void q4_1(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  const float m = load_f16(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(b[4 + i] & 15) + m;
    y[i + 16] = d * static_cast<float>(b[4 + i] >> 4) + m;
  }
}

void q5_0(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  const auto high = load<std::uint32_t>(b + 2);
  for (int i = 0; i < 16; ++i) {
    const int low = (b[6 + i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int up = (b[6 + i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    y[i] = d * static_cast<float>(low - 16);
    y[i + 16] = d * static_cast<float>(up - 16);
  }
}

void q5_1(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  const float m = load_f16(b + 2);
  const auto high = load<std::uint32_t>(b + 4);
  for (int i = 0; i < 16; ++i) {
    const int low = (b[8 + i] & 15) | static_cast<int>((high >> i & 1) << 4);
    const int up = (b[8 + i] >> 4) | static_cast<int>((high >> (i + 16) & 1) << 4);
    y[i] = d * static_cast<float>(low) + m;
    y[i + 16] = d * static_cast<float>(up) + m;
  }
}

void q8_0(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<std::int8_t>(b[2 + i]));
}

/// Scale and minimum j of the eight 6-bit pairs that Q4_K and Q5_K pack into 12 bytes: the low six
/// bits of bytes 0..3 (scales) and 4..7 (minima) hold pairs 0..3; pairs 4..7 have their low four
/// bits in bytes 8..11 and their high two bits in the top of bytes 0..7.
std::pair<int, int> scale_and_min(const std::uint8_t* s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4};
}

void q4_k(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  const float dmin = load_f16(b + 2);
  const std::uint8_t* q = b + 16;
  for (int j = 0; j < 8; ++j) {  // sub-block j: 32 elements, low or high nibbles of 32 bytes
    const auto [scale, minimum] = scale_and_min(b + 4, j);
    const float s = d * static_cast<float>(scale);
    const float m = dmin * static_cast<float>(minimum);
    const std::uint8_t* bytes = q + j / 2 * 32;
    const int shift = j % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      y[j * 32 + i] = s * static_cast<float>(bytes[i] >> shift & 15) - m;
    }
  }
}

void q5_k(const std::uint8_t* b, float* y) {
  const float d = load_f16(b);
  const float dmin = load_f16(b + 2);
  const std::uint8_t* high = b + 16;  // bit j of byte i: fifth bit of element i of sub-block j
  const std::uint8_t* q = b + 48;
  for (int j = 0; j < 8; ++j) {
    const auto [scale, minimum] = scale_and_min(b + 4, j);
    const float s = d * static_cast<float>(scale);
    const float m = dmin * static_cast<float>(minimum);
    const std::uint8_t* bytes = q + j / 2 * 32;
    const int shift = j % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = (bytes[i] >> shift & 15) | (high[i] >> j & 1) << 4;
      y[j * 32 + i] = s * static_cast<float>(value) - m;
    }
  }
}

void q6_k(const std::uint8_t* b, float* y) {
  const float d = load_f16(b + 208);
  for (int half = 0; half < 2; ++half) {  // 128 elements each: 64 low bytes, 32 high, 8 scales
    const std::uint8_t* low = b + half * 64;
    const std::uint8_t* high = b + 128 + half * 32;
    const std::uint8_t* scales = b + 192 + half * 8;
    for (int part = 0; part < 4; ++part) {  // 32 elements each
      const std::uint8_t* bytes = low + part % 2 * 32;
      const int shift = part / 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int value = (bytes[i] >> shift & 15) | (high[i] >> (2 * part) & 3) << 4;
        const float s = d * static_cast<float>(static_cast<std::int8_t>(scales[part * 2 + i / 16]));
        y[half * 128 + part * 32 + i] = s * static_cast<float>(value - 32);
      }
    }
  }
}

template <void (*block)(const std::uint8_t*, float*)>
void each_block(const QuantFormat& format, const std::byte* src, std::int64_t elements,
                float* dst) {
  assert(elements % format.block_elements == 0);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(src);
  for (std::int64_t i = 0; i < elements / format.block_elements; ++i) {
    block(bytes + i * format.block_bytes, dst + i * format.block_elements);
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

void dequantize(QuantType type, const std::byte* src, std::int64_t elements, float* dst) {
  const QuantFormat& format = quant_format(type);
  switch (type) {
    case QuantType::kF32:
      std::memcpy(dst, src, static_cast<std::size_t>(elements) * sizeof(float));
      return;
    case QuantType::kF16:
      return convert_to_float(src, DType::kF16, elements, dst);
    case QuantType::kBF16:
      return convert_to_float(src, DType::kBf16, elements, dst);
    case QuantType::kQ40:
      return each_block<q4_0>(format, src, elements, dst);
    case QuantType::kQ41:
      return each_block<q4_1>(format, src, elements, dst);
    case QuantType::kQ50:
      return each_block<q5_0>(format, src, elements, dst);
    case QuantType::kQ51:
      return each_block<q5_1>(format, src, elements, dst);
    case QuantType::kQ80:
      return each_block<q8_0>(format, src, elements, dst);
    case QuantType::kQ4K:
      return each_block<q4_k>(format, src, elements, dst);
    case QuantType::kQ5K:
      return each_block<q5_k>(format, src, elements, dst);
    case QuantType::kQ6K:
      return each_block<q6_k>(format, src, elements, dst);
  }
}

void StoredMatrix::load_row(std::int64_t row, float* out) const {
  const QuantFormat& format = quant_format(type);
  const auto bytes =
      static_cast<std::size_t>(row_elements / format.block_elements * format.block_bytes);
  const auto source = data.subspan(static_cast<std::size_t>(row) * bytes, bytes);
  if (std::bit_cast<std::uintptr_t>(source.data()) % 2 == 0) {
    return dequantize(type, source.data(), row_elements, out);
  }
  const std::vector<std::byte> aligned(source.begin(), source.end());
  dequantize(type, aligned.data(), row_elements, out);
}

}  // namespace sw
