// Compiled for AVX-512 with VNNI. No inline function of a library is called, so that no code for
// this instruction set can end up in another one's path.
#include <immintrin.h>

#include "model/coded_kernel.hpp"

namespace sw {
namespace {

constexpr int kVectors = kCodedOutputs / 16;

inline __m512i pair_of(const std::int16_t* x) {
  std::int32_t pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  return _mm512_set1_epi32(pair);
}

/// sum[v] += products of one group.
template <int Bits>
inline void add_group(const std::int16_t* x, int group, const std::int8_t* codes,
                      __m512i (&sum)[kVectors]) {
  for (int i = 0; i < group; i += Bits == 8 ? 2 : 4) {
    for (int v = 0; v < kVectors; ++v, codes += 32) {
      const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
      if constexpr (Bits == 8) {
        sum[v] = _mm512_dpwssd_epi32(sum[v], _mm512_cvtepi8_epi16(bytes), pair_of(x + i));
      } else {
        const __m512i words = _mm512_cvtepu8_epi16(bytes);
        const __m512i low = _mm512_and_si512(words, _mm512_set1_epi16(15));
        sum[v] = _mm512_dpwssd_epi32(sum[v], low, pair_of(x + i));
        sum[v] = _mm512_dpwssd_epi32(sum[v], _mm512_srli_epi16(words, 4), pair_of(x + i + 2));
      }
    }
  }
}

template <int Bits, bool Minimum>
void multiply(const CodedProduct& p) {
  const auto* at = static_cast<const char*>(p.weights);
  const std::int64_t groups = p.inputs / p.layout.group;
  const std::int64_t bytes = p.layout.group_bytes();
  const std::int16_t* x = p.x.code;
  __m512 y[kVectors] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (std::int64_t g = 0; g < groups; ++g, at += bytes, x += p.layout.group) {
    const auto* scale = reinterpret_cast<const float*>(at);
    const float* minimum = scale + kCodedOutputs;
    const auto* codes =
        reinterpret_cast<const std::int8_t*>(scale + (Minimum ? 2 : 1) * kCodedOutputs);
    __m512i sum[kVectors] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    add_group<Bits>(x, p.layout.group, codes, sum);
    const __m512 x_scale = _mm512_set1_ps(p.x.scale[g]);
    for (int v = 0; v < kVectors; ++v) {
      const __m512 factor = _mm512_mul_ps(x_scale, _mm512_load_ps(scale + 16 * v));
      y[v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[v]), factor, y[v]);
      if constexpr (Minimum) {
        y[v] = _mm512_fmadd_ps(_mm512_set1_ps(p.x.sum[g]), _mm512_load_ps(minimum + 16 * v), y[v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int valid = p.outputs - 16 * v;
    if (valid <= 0) break;
    const auto mask = static_cast<__mmask16>(valid >= 16 ? 0xffff : (1 << valid) - 1);
    float* to = p.y + 16 * v;
    if (p.bias) y[v] = _mm512_add_ps(y[v], _mm512_maskz_loadu_ps(mask, p.bias + 16 * v));
    if (p.add) y[v] = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), y[v]);
    _mm512_mask_storeu_ps(to, mask, y[v]);
  }
}

void multiply_any(const CodedProduct& p) {
  if (p.layout.bits == 4) return p.layout.minimum ? multiply<4, true>(p) : multiply<4, false>(p);
  p.layout.minimum ? multiply<8, true>(p) : multiply<8, false>(p);
}

void encode(const void* x, std::int64_t inputs, int group, const CodedVector& out) {
  const auto* words = static_cast<const std::uint16_t*>(x);
  for (std::int64_t g = 0; g * group < inputs; ++g) {
    __m512 value[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int v = 0; v < group / 16; ++v) {
      const __m256i bits =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + g * group + 16 * v));
      value[v] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    const float largest =
        _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(value[0]), _mm512_abs_ps(value[1])));
    out.scale[g] = largest / 32767.0f;
    out.sum[g] = _mm512_reduce_add_ps(_mm512_add_ps(value[0], value[1]));
    const __m512 inverse = _mm512_set1_ps(largest > 0x1p-100f ? 32767.0f / largest : 0.0f);
    for (int v = 0; v < group / 16; ++v) {
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(value[v], inverse));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.code + g * group + 16 * v),
                          _mm512_cvtsepi32_epi16(code));
    }
  }
}

constexpr CodedKernel kKernel{encode, multiply_any};

}  // namespace

const CodedKernel& avx512_vnni_coded_kernel();
const CodedKernel& avx512_vnni_coded_kernel() { return kKernel; }

}  // namespace sw
