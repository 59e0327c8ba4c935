// Decode over a bf16 cache with the dot products of AVX512-BF16.
#include "kernels/cpu/avx512_bf16.inl"
#include "kernels/cpu/decode.hpp"

namespace sw::cpu {
namespace {

inline const std::uint16_t* row_of(const TokenRows& rows, int i) {
  return static_cast<const std::uint16_t*>(rows.data) + i * rows.stride;
}

inline void prefetch(const void* next, const TokenRows& rows, int key) {
  const auto* row = static_cast<const std::uint16_t*>(next) + key * rows.stride;
  for (int j = 0; j < rows.dim; j += 32) _mm_prefetch(row + j, _MM_HINT_T0);
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

/// Lane i: the sum of the lanes of x[i].
inline __m512 sum_each(__m512 (&x)[16]) {
  for (int i = 0; i < 8; ++i) x[i] = fold<8>(x[i], x[i + 8]);
  for (int i = 0; i < 4; ++i) x[i] = fold<4>(x[i], x[i + 4]);
  for (int i = 0; i < 2; ++i) x[i] = fold<2>(x[i], x[i + 2]);
  return fold<1>(x[0], x[1]);
}

/// q . k of 16 keys from `first` on; keys after the last one repeat it.
inline __m512 logits(const TokenRows& k, const std::uint16_t* q, int first) {
  __m512 sum[16] = {};
  int j = 0;
  if (first + 16 <= k.count) {
    const std::uint16_t* rows = row_of(k, first);
    for (; j + 32 <= k.dim; j += 32) {
      const __m512bh x = as_bf16(_mm512_loadu_si512(q + j));
      for (int i = 0; i < 16; ++i) {
        sum[i] = _mm512_dpbf16_ps(sum[i], x, as_bf16(_mm512_loadu_si512(rows + i * k.stride + j)));
      }
    }
  }
  for (; j < k.dim; j += 32) {
    const __mmask32 inside = first32(k.dim - j);
    const __m512bh x = as_bf16(_mm512_loadu_si512(q + j));
    for (int i = 0; i < 16; ++i) {
      const int key = first + i < k.count ? first + i : k.count - 1;
      sum[i] = _mm512_dpbf16_ps(sum[i], x,
                                as_bf16(_mm512_maskz_loadu_epi16(inside, row_of(k, key) + j)));
    }
  }
  return sum_each(sum);
}

/// Softmax weights of one head: the logits s [kTileKeys] become bf16 in the same place, zeros after
/// the last key. Returns what the running output has to be multiplied with.
inline float softmax(const DecodeTile& t, int head, __m512 largest) {
  float* s = t.s + head * kTileKeys;
  const int keys = t.k.count;
  const float top = _mm512_reduce_max_ps(largest) * t.scale;
  const float old_base = t.m[head];
  const float base = top > old_base + 8.0f ? top : old_base;  // as in the tiles of a prefill
  const __m512 scale = _mm512_set1_ps(t.scale);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < keys; i += 32) {
    __m512 p[2];
    for (int x = 0; x < 2; ++x) {
      const __mmask16 inside = first16(keys - i - 16 * x);
      p[x] = _mm512_maskz_mov_ps(inside, exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s + i + 16 * x),
                                                              scale, _mm512_set1_ps(base))));
      total = _mm512_add_ps(total, p[x]);
    }
    _mm512_storeu_si512(reinterpret_cast<std::uint16_t*>(s) + i,
                        (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
  }
  const float sum = _mm512_reduce_add_ps(total);
  const float factor = _mm512_cvtss_f32(exp2(_mm512_set1_ps(old_base - base)));
  t.m[head] = base;
  t.l[head] = t.l[head] * factor + sum;
  t.tile_sum[head] = sum;
  t.tile_base[head] = base;
  return factor;
}

/// o[h] := o[h] factor[h] + p[h] V for Heads heads from `head` on and 64 elements from j on.
template <int Heads>
inline void add_values(const DecodeTile& t, int head, const float* factor, int padded, int j) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __mmask32 inside[2] = {first32(t.v.dim - j), first32(t.v.dim - j - 32)};
  float* o = t.o + head * padded + j;
  __m512 sum[Heads][4];
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < 4; ++x) {
      sum[h][x] =
          _mm512_mul_ps(_mm512_loadu_ps(o + h * padded + 16 * x), _mm512_set1_ps(factor[h]));
    }
  }
  for (int i = 0; i < t.v.count; i += 2) {
    const std::uint16_t* row = row_of(t.v, i) + j;
    // The weight of a key after the last one is 0.
    const std::uint16_t* next = i + 1 < t.v.count ? row + t.v.stride : row;
    __m512bh pairs[4];
    for (int x = 0; x < 2; ++x) {
      const __m512i a = _mm512_maskz_loadu_epi16(inside[x], row + 32 * x);
      const __m512i b = _mm512_maskz_loadu_epi16(inside[x], next + 32 * x);
      pairs[2 * x] = as_bf16(_mm512_permutex2var_epi16(a, low, b));
      pairs[2 * x + 1] = as_bf16(_mm512_permutex2var_epi16(a, high, b));
    }
    for (int h = 0; h < Heads; ++h) {
      const __m512bh p = as_bf16(_mm512_set1_epi32(
          reinterpret_cast<const std::int32_t*>(t.s + (head + h) * kTileKeys)[i / 2]));
      for (int x = 0; x < 4; ++x) sum[h][x] = _mm512_dpbf16_ps(sum[h][x], pairs[x], p);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < 4; ++x) _mm512_storeu_ps(o + h * padded + 16 * x, sum[h][x]);
  }
}

template <int Heads>
void add_heads(const DecodeTile& t, int head, const float* factor, int padded) {
  for (int j = 0; j < t.v.dim; j += kDecodeStrip) add_values<Heads>(t, head, factor, padded, j);
}

void run_decode(const DecodeTile& t) {
  const int padded = (t.k.dim + kDecodeStrip - 1) / kDecodeStrip * kDecodeStrip;
  for (int i = 0; i < t.k.count; ++i) {
    prefetch(t.next_k, t.k, i);
    prefetch(t.next_v, t.v, i);
  }
  for (int head = 0; head < t.heads; head += 4) {
    const int heads = t.heads - head < 4 ? t.heads - head : 4;
    float factor[4];
    for (int h = 0; h < heads; ++h) {
      const auto* q = static_cast<const std::uint16_t*>(t.q) + (head + h) * padded;
      __m512 largest = _mm512_set1_ps(-kInfinity);
      for (int i = 0; i < t.k.count; i += 16) {
        const __m512 x = logits(t.k, q, i);
        largest = _mm512_max_ps(largest, x);
        _mm512_storeu_ps(t.s + (head + h) * kTileKeys + i, x);
      }
      factor[h] = softmax(t, head + h, largest);
    }
    switch (heads) {
      case 4:
        add_heads<4>(t, head, factor, padded);
        break;
      case 3:
        add_heads<3>(t, head, factor, padded);
        break;
      case 2:
        add_heads<2>(t, head, factor, padded);
        break;
      default:
        add_heads<1>(t, head, factor, padded);
    }
  }
}

}  // namespace

const DecodeKernel kAvx512Bf16Decode = {DType::kBf16, run_decode};

}  // namespace sw::cpu
