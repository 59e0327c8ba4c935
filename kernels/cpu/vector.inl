// Vectors of SW_VECTOR_BYTES as GCC and Clang spell them, for the kernel bodies (*.inl) that each
// <operation>_<isa>.cpp includes once. Nothing may be shared between translation units: everything
// is in an unnamed namespace, and no inline function of a library is called, so that no code
// compiled for one instruction set can end up in another one's path.
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace sw::cpu {
namespace {

constexpr int kWidth = SW_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(SW_VECTOR_BYTES)));
typedef std::int32_t IntVec __attribute__((vector_size(SW_VECTOR_BYTES)));
// What is loaded from and stored to memory may alias other types and need not be aligned.
typedef float MemVec __attribute__((vector_size(SW_VECTOR_BYTES), aligned(4), may_alias));
typedef std::uint16_t MemWordVec
    __attribute__((vector_size(SW_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef std::int32_t MemIntVec __attribute__((vector_size(SW_VECTOR_BYTES), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const MemVec*>(p); }
inline IntVec load(const std::int32_t* p) { return *reinterpret_cast<const MemIntVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<MemVec*>(p) = x; }
/// x - 0 is x for every x, so that nothing is left to compute; x + 0 is not for -0.
inline Vec broadcast(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

constexpr float kInfinity = __builtin_inff();

/// 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126 (and at -infinity).
inline Vec exp2_nonpositive(Vec x) {
  const Vec clamped = max(x, broadcast(-126.0f));
  const Vec shifted = clamped + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const Vec f = clamped - (shifted - 12582912.0f);
  // Taylor series of 2^f on [-1/2, 1/2]: ln(2)^k / k!.
  Vec y = broadcast(1.54035304e-4f);
  y = y * f + 1.33335581e-3f;
  y = y * f + 9.61812911e-3f;
  y = y * f + 5.55041087e-2f;
  y = y * f + 2.40226507e-1f;
  y = y * f + 6.93147181e-1f;
  y = y * f + 1.0f;
  const IntVec exponent = reinterpret_cast<IntVec>(shifted) << 23;
  const Vec result = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(y) + exponent);
  return x < -126.0f ? Vec{} : result;
}

/// IEEE binary16 bits to f32, exact: the exponent is rebased by a multiplication.
template <class Floats, class Ints>
inline Floats half_to_float(Ints bits) {
  const Ints magnitude = (bits & 0x7fff) << 13;
  Ints value = reinterpret_cast<Ints>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
  value = magnitude >= 0x0f800000 ? value | 0x7f800000 : value;  // infinity and NaN
  return reinterpret_cast<Floats>(value | (bits & 0x8000) << 16);
}

/// kWidth elements of `dtype` at `index`, as f32.
inline Vec load_as_float(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kF32) return load(static_cast<const float*>(data) + index);
  const auto* words = static_cast<const std::uint16_t*>(data) + index;
#ifdef __AVX512F__
  if (dtype == DType::kF16) {
    // The form with a mask, since GCC 12 warns of the plain one's undefined source (bug 105593).
    return _mm512_maskz_cvtph_ps(0xffff,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
  }
#endif
  const IntVec bits = __builtin_convertvector(*reinterpret_cast<const MemWordVec*>(words), IntVec);
  return dtype == DType::kBf16 ? reinterpret_cast<Vec>(bits << 16) : half_to_float<Vec>(bits);
}
inline float element_as_float(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const std::int32_t bits = static_cast<const std::uint16_t*>(data)[index];
  const Vec value = dtype == DType::kBf16 ? reinterpret_cast<Vec>(IntVec{} + (bits << 16))
                                          : half_to_float<Vec>(IntVec{} + bits);
  return value[0];
}

}  // namespace
}  // namespace sw::cpu
