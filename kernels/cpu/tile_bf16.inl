// What the tile kernels of bf16 elements share: queries and softmax weights as pairs in lanes.
#include "kernels/cpu/avx512_bf16.inl"
#include "kernels/cpu/tile.hpp"

namespace sw::cpu {
namespace {

inline void apply_mask(const Tile& t, int lane, int keys) {
  const __m512i position = _mm512_loadu_si512(t.position + lane);
  const __m512i window = _mm512_sub_epi32(position, _mm512_set1_epi32(t.token_window));
  for (int i = 0; i < keys; ++i) {
    const __m512i key = _mm512_set1_epi32(t.key_begin + i);
    __mmask16 hidden = _mm512_cmplt_epi32_mask(position, key);
    if (t.mask == Mask::kTokenParts && t.key_begin + i >= t.token_sink) {
      hidden = static_cast<__mmask16>(hidden | _mm512_cmpge_epi32_mask(window, key));
    }
    float* s = t.s + i * kLanes + lane;
    _mm512_mask_storeu_ps(s, hidden, _mm512_set1_ps(-kInfinity));
  }
}

/// Softmax weights of 16 lanes: logits s [keys][kLanes] become pairs of bf16 [keys / 2][kLanes] in
/// the same place. Returns what the running output has to be multiplied with.
inline __m512 softmax(const Tile& t, int lane, int keys, __m512 largest) {
  // The base moves only when a logit exceeds it by more than 8: weights up to 2^8 are as exact.
  const __m512 old_base = _mm512_loadu_ps(t.m + lane);
  const __m512 top = _mm512_mul_ps(largest, _mm512_set1_ps(t.scale));
  const __mmask16 moves =
      _mm512_cmp_ps_mask(top, _mm512_add_ps(old_base, _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
  const __m512 new_base = _mm512_mask_mov_ps(old_base, moves, top);
  // A lane that has seen no key yet has base -infinity; 0 keeps the differences defined.
  const __m512 base = _mm512_maskz_mov_ps(
      _mm512_cmp_ps_mask(new_base, _mm512_set1_ps(-kInfinity), _CMP_GT_OQ), new_base);
  const __m512 scale = _mm512_set1_ps(t.scale);
  // Word 2 l from the first key's lane l, word 2 l + 1 from the second key's.
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int i = 0; i < keys; i += 2) {
    const float* s = t.s + i * kLanes + lane;
    const __m512 p0 = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s), scale, base));
    const __m512 p1 = i + 1 < keys ? exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s + kLanes), scale, base))
                                   : _mm512_setzero_ps();
    sum[0] = _mm512_add_ps(sum[0], p0);
    sum[1] = _mm512_add_ps(sum[1], p1);
    const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(p1, p0);
    _mm512_storeu_si512(t.s + i / 2 * kLanes + lane, _mm512_permutexvar_epi16(interleave, pair));
  }
  const __m512 total = _mm512_add_ps(sum[0], sum[1]);
  const __m512 factor = exp2(_mm512_sub_ps(old_base, base));
  _mm512_storeu_ps(t.m + lane, new_base);
  _mm512_storeu_ps(t.l + lane, _mm512_fmadd_ps(_mm512_loadu_ps(t.l + lane), factor, total));
  if (t.tile_sum != nullptr) {
    _mm512_storeu_ps(t.tile_sum + lane, total);
    _mm512_storeu_ps(t.tile_max + lane, base);
  }
  return factor;
}

inline const std::uint16_t* row_of(const TokenRows& rows, int i) {
  return static_cast<const std::uint16_t*>(rows.data) + i * rows.stride;
}

/// Elements of two rows of 32 as pairs: of the first 16, and of the others.
inline void interleave(__m512i a, __m512i b, __m512i (&pairs)[2]) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  pairs[0] = _mm512_permutex2var_epi16(a, low, b);
  pairs[1] = _mm512_permutex2var_epi16(a, high, b);
}

/// Transposes 16 rows of 16 elements of 32 bits.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 8; ++i) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 2; ++j) {
      x[4 * i + 2 * j] = _mm512_unpacklo_epi64(y[4 * i + j], y[4 * i + j + 2]);
      x[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(y[4 * i + j], y[4 * i + j + 2]);
    }
  }
  // x[4 i + c] holds, in its quarter q, column 4 q + c of the rows 4 i .. 4 i + 3.
  for (int c = 0; c < 4; ++c) {
    y[c] = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
    y[4 + c] = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
    y[8 + c] = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
  }
  for (int c = 0; c < 4; ++c) {
    x[c] = _mm512_shuffle_i32x4(y[c], y[8 + c], 0x88);
    x[8 + c] = _mm512_shuffle_i32x4(y[c], y[8 + c], 0xdd);
    x[4 + c] = _mm512_shuffle_i32x4(y[4 + c], y[12 + c], 0x88);
    x[12 + c] = _mm512_shuffle_i32x4(y[4 + c], y[12 + c], 0xdd);
  }
}

inline void pack_queries(const TokenRows& rows, std::int32_t lane, void* qt) {
  const int pairs = (rows.dim + 1) / 2;
  for (int i = 0; i < rows.count; i += 16) {
    const int count = rows.count - i < 16 ? rows.count - i : 16;
    for (int j = 0; j < pairs; j += 16) {
      __m512i x[16];
      for (int r = 0; r < 16; ++r) {
        x[r] = r < count ? _mm512_maskz_loadu_epi16(first32(rows.dim - 2 * j),
                                                    row_of(rows, i + r) + 2 * j)
                         : _mm512_setzero_si512();
      }
      transpose(x);
      std::int32_t* to = static_cast<std::int32_t*>(qt) + j * kLanes + lane + i;
      for (int r = 0; r < 16; ++r) {
        if (j + r < pairs) _mm512_mask_storeu_epi32(to + r * kLanes, first16(count), x[r]);
      }
    }
  }
}

inline void finish(const float* ot, const float* l, std::int32_t lane, std::int32_t count,
                   std::int32_t dim, float* out) {
  for (int i = 0; i < count; i += 16) {
    const __mmask16 rows = first16(count - i);
    const __m512 sum = _mm512_maskz_loadu_ps(rows, l + lane + i);
    const __mmask16 seen = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 inverse = _mm512_maskz_div_ps(seen, _mm512_set1_ps(1.0f), sum);
    for (int j = 0; j < dim; j += 16) {
      __m512i x[16];
      for (int r = 0; r < 16; ++r) {
        const float* from = ot + (j + r) * kLanes + lane + i;
        x[r] = j + r < dim
                   ? _mm512_castps_si512(_mm512_mul_ps(_mm512_maskz_loadu_ps(rows, from), inverse))
                   : _mm512_setzero_si512();
      }
      transpose(x);
      for (int r = 0; r < 16 && i + r < count; ++r) {
        _mm512_mask_storeu_epi32(out + (i + r) * dim + j, first16(dim - j), x[r]);
      }
    }
  }
}

inline void normalize(float* sum, const float* max, const float* m, const float* l,
                      std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const __m512 total = _mm512_loadu_ps(l + i);
    const __m512 weight = exp2(_mm512_sub_ps(_mm512_loadu_ps(max + i), _mm512_loadu_ps(m + i)));
    const __mmask16 seen = _mm512_cmp_ps_mask(total, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 share =
        _mm512_maskz_div_ps(seen, _mm512_mul_ps(_mm512_loadu_ps(sum + i), weight), total);
    _mm512_storeu_ps(sum + i, share);
  }
}

}  // namespace
}  // namespace sw::cpu
