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

inline __m512i with_fifth_bits(__m512i words, const char* bits) {
  std::uint32_t mask;
  __builtin_memcpy(&mask, bits, sizeof mask);
  return _mm512_mask_add_epi16(words, static_cast<__mmask32>(mask), words, _mm512_set1_epi16(16));
}

/// sum[v] += products of one group.
template <int Bits>
inline void add_group(const std::int16_t* x, int group, const char* codes,
                      __m512i (&sum)[kVectors]) {
  const char* fifth = codes + group * (kCodedOutputs / 2);
  for (int i = 0; i < group; i += Bits == 8 ? 2 : 4) {
    for (int v = 0; v < kVectors; ++v, codes += 32) {
      const __m256i bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes));
      if constexpr (Bits == 8) {
        sum[v] = _mm512_dpwssd_epi32(sum[v], _mm512_cvtepi8_epi16(bytes), pair_of(x + i));
      } else {
        const __m512i words = _mm512_cvtepu8_epi16(bytes);
        __m512i first = _mm512_and_si512(words, _mm512_set1_epi16(15));
        __m512i second = _mm512_srli_epi16(words, 4);
        if constexpr (Bits == 5) {
          first = with_fifth_bits(first, fifth);
          second = with_fifth_bits(second, fifth + 4);
          fifth += 8;
        }
        sum[v] = _mm512_dpwssd_epi32(sum[v], first, pair_of(x + i));
        sum[v] = _mm512_dpwssd_epi32(sum[v], second, pair_of(x + i + 2));
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
    const auto* codes = reinterpret_cast<const char*>(scale + (Minimum ? 2 : 1) * kCodedOutputs);
    const __m512i start = _mm512_set1_epi32(-p.layout.offset * p.x.code_sum[g]);
    __m512i sum[kVectors] = {start, start};
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

template <int Bits>
void multiply_bits(const CodedProduct& p) {
  p.layout.minimum ? multiply<Bits, true>(p) : multiply<Bits, false>(p);
}

void multiply_any(const CodedProduct& p) {
  switch (p.layout.bits) {
    case 4:
      return multiply_bits<4>(p);
    case 5:
      return multiply_bits<5>(p);
    default:
      return multiply_bits<8>(p);
  }
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
    __m512i sum = _mm512_setzero_si512();
    for (int v = 0; v < group / 16; ++v) {
      const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(value[v], inverse));
      sum = _mm512_add_epi32(sum, code);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.code + g * group + 16 * v),
                          _mm512_cvtsepi32_epi16(code));
    }
    out.code_sum[g] = _mm512_reduce_add_epi32(sum);
  }
}

constexpr CodedKernel kKernel{encode, multiply_any};

}  // namespace

const CodedKernel& avx512_vnni_coded_kernel();
const CodedKernel& avx512_vnni_coded_kernel() { return kKernel; }

}  // namespace sw
