// What the kernels for AVX512-BF16 share. As in vector.inl, everything is in an unnamed namespace
// and no inline function of a library is called.
#include <immintrin.h>

namespace sw::cpu {
namespace {

constexpr int kWidth = 16;
constexpr float kInfinity = __builtin_inff();

inline __m512bh as_bf16(__m512i x) { return (__m512bh)x; }
inline __mmask16 first16(int count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << (count > 0 ? count : 0)) - 1u);
}
inline __mmask32 first32(int count) {
  return count >= 32 ? ~0u : (1u << (count > 0 ? count : 0)) - 1u;
}

/// Adds each lane to the one `Half` lanes away, for two vectors at once: lanes without the bit Half
/// of the result are of a, the others of b.
template <int Half>
inline __m512 fold(__m512 a, __m512 b) {
  constexpr __mmask16 kUpper = Half == 8   ? 0xff00
                               : Half == 4 ? 0xf0f0
                               : Half == 2 ? 0xcccc
                                           : 0xaaaa;
  const __m512 own = _mm512_mask_blend_ps(kUpper, a, b);
  const __m512 other = _mm512_mask_blend_ps(kUpper, b, a);
  if constexpr (Half == 8) return _mm512_add_ps(own, _mm512_shuffle_f32x4(other, other, 0x4e));
  if constexpr (Half == 4) return _mm512_add_ps(own, _mm512_shuffle_f32x4(other, other, 0xb1));
  if constexpr (Half == 2) return _mm512_add_ps(own, _mm512_permute_ps(other, 0x4e));
  if constexpr (Half == 1) return _mm512_add_ps(own, _mm512_permute_ps(other, 0xb1));
}

/// 2^x for x <= 16, relative error below 3.1e-6; exact for integers, 0 at -infinity. A minimax
/// polynomial of 2^f on [0, 1) with the value 1 at 0.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
  __m512 y = _mm512_set1_ps(0.0134266838f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.0522424728f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.241280198f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.693044841f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, x);
}

}  // namespace
}  // namespace sw::cpu
