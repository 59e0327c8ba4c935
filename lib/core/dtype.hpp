#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

/// Element types of traces and checkpoints. `Bf16` and `F16` are plain 16-bit storage types: they
/// are converted to float for arithmetic and have no operators of their own.
namespace sw {

enum class DType : std::uint8_t { kBf16, kF16, kF32 };

struct Bf16 {
  std::uint16_t bits;
};

struct F16 {
  std::uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
/// IEEE binary16 to binary32, exact (subnormals, infinities and NaN included).
float to_float(F16 x);

/// Round to nearest, ties to even; NaN stays NaN (quiet), overflow becomes infinity.
Bf16 to_bf16(float x);
F16 to_f16(float x);

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Bf16 from_float<Bf16>(float x) {
  return to_bf16(x);
}
template <>
inline F16 from_float<F16>(float x) {
  return to_f16(x);
}

/// Bytes of one element.
constexpr std::size_t dtype_size(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
/// "bf16", "f16" or "f32".
std::string_view dtype_name(DType dtype);
/// Inverse of `dtype_name`; throws Error(kUsage) for any other text.
DType parse_dtype(std::string_view name);

/// Calls `f.template operator()<T>()` with the storage type T of `dtype`.
template <class F>
decltype(auto) visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBf16:
      return f.template operator()<Bf16>();
    case DType::kF16:
      return f.template operator()<F16>();
    default:
      return f.template operator()<float>();
  }
}

/// Converts `count` contiguous elements of `dtype` at `src` to float.
void convert_to_float(const void* src, DType dtype, std::int64_t count, float* dst);
/// Converts `count` floats to `dtype` (round to nearest even).
void convert_from_float(const float* src, DType dtype, std::int64_t count, void* dst);

}  // namespace sw
