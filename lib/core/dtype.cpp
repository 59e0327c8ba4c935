#include "core/dtype.hpp"

#include <cmath>
#include <cstring>
#include <string>

#include "core/error.hpp"

namespace sw {

float to_float(F16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  }
  if (magnitude < 0x0400u) {  // zero or subnormal: magnitude * 2^-24 is exact in float
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return {static_cast<std::uint16_t>((bits >> 16) | 0x0040u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

F16 to_f16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 65520.0f) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x1p-14f) {
    // Subnormal: adding 0.5 aligns the last mantissa bit with 2^-24, so the addition rounds for us.
    const float shifted = magnitude + 0.5f;
    return {
        static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u))};
  }
  const std::uint32_t m = std::bit_cast<std::uint32_t>(magnitude) - 0x38000000u;
  return {static_cast<std::uint16_t>(sign | ((m + 0xfffu + ((m >> 13) & 1u)) >> 13))};
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kF16:
      return "f16";
    default:
      return "f32";
  }
}

DType parse_dtype(std::string_view name) {
  for (DType d : {DType::kBf16, DType::kF16, DType::kF32}) {
    if (dtype_name(d) == name) return d;
  }
  throw Error(ErrorKind::kUsage, "unknown dtype '" + std::string(name) + "'",
              "use bf16, f16 or f32");
}

void convert_to_float(const void* src, DType dtype, std::int64_t count, float* dst) {
  visit_dtype(dtype, [&]<class T>() {
    const T* s = static_cast<const T*>(src);
    for (std::int64_t i = 0; i < count; ++i) dst[i] = to_float(s[i]);
  });
}

void convert_from_float(const float* src, DType dtype, std::int64_t count, void* dst) {
  visit_dtype(dtype, [&]<class T>() {
    T* d = static_cast<T*>(dst);
    for (std::int64_t i = 0; i < count; ++i) d[i] = from_float<T>(src[i]);
  });
}

}  // namespace sw
