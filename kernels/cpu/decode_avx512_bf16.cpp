// Decode over a bf16 cache with the dot products of AVX512-BF16.
#include "kernels/cpu/avx512_bf16.inl"
#include "kernels/cpu/decode.hpp"

namespace sw::cpu {
namespace {

inline const std::uint16_t* row_of(const TokenRows& rows, int i) {
  return static_cast<const std::uint16_t*>(rows.data) + i * rows.stride;
}

/// Asks for the rows [key, key + 8) of the tile to come, as far as it has them. Inlined by force:
/// GCC takes a function that only prefetches for one without effect and drops its calls.
__attribute__((always_inline)) inline void prefetch(const DecodeTile& t, int key) {
  for (int i = key; i < key + 8 && i < t.next_count; ++i) {
    const auto* k = static_cast<const std::uint16_t*>(t.next_k) + i * t.k.stride;
    const auto* v = static_cast<const std::uint16_t*>(t.next_v) + i * t.v.stride;
    for (int j = 0; j < t.k.dim; j += 32) {
      _mm_prefetch(k + j, _MM_HINT_T1);
      _mm_prefetch(v + j, _MM_HINT_T1);
    }
  }
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

/// Queries as `add_products` reads them: for 16 pairs at a time 4 vectors, of which vector c holds
/// pair 4 i + c in all lanes of its quarter i.
void pack_query(const void* row, std::int32_t dim, void* q) {
  auto* to = static_cast<std::int32_t*>(q);
  for (int j = 0; j < dim; j += 32, to += 64) {
    const __m512i x =
        _mm512_maskz_loadu_epi16(first32(dim - j), static_cast<const std::uint16_t*>(row) + j);
    _mm512_storeu_si512(to, _mm512_shuffle_epi32(x, _MM_PERM_AAAA));
    _mm512_storeu_si512(to + 16, _mm512_shuffle_epi32(x, _MM_PERM_BBBB));
    _mm512_storeu_si512(to + 32, _mm512_shuffle_epi32(x, _MM_PERM_CCCC));
    _mm512_storeu_si512(to + 48, _mm512_shuffle_epi32(x, _MM_PERM_DDDD));
  }
}

/// Pairs 4 i + c of 4 rows, in the order of the rows, become quarter i of column[c].
inline void load_columns(const std::uint16_t* const (&row)[4], int j, __mmask32 inside,
                         __m512i (&column)[4]) {
  __m512i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm512_maskz_loadu_epi16(inside, row[i] + j);
  const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(x[0], x[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(x[2], x[3]);
  column[0] = _mm512_unpacklo_epi64(low01, low23);
  column[1] = _mm512_unpackhi_epi64(low01, low23);
  column[2] = _mm512_unpacklo_epi64(high01, high23);
  column[3] = _mm512_unpackhi_epi64(high01, high23);
}

/// sum[.][h] += products of twice 4 keys with Heads queries over 32 elements. Lane i is of key i
/// mod 4.
template <int Heads>
inline void add_products(const std::uint16_t* const (&k)[2][4], int j, __mmask32 inside,
                         const std::int32_t* q, std::int64_t q_stride, __m512 (&sum)[2][Heads]) {
  __m512i column[2][4];
  load_columns(k[0], j, inside, column[0]);
  load_columns(k[1], j, inside, column[1]);
  for (int c = 0; c < 4; ++c) {
    for (int h = 0; h < Heads; ++h) {
      const __m512bh x = as_bf16(_mm512_loadu_si512(q + h * q_stride + 2 * j + 16 * c));
      sum[0][h] = _mm512_dpbf16_ps(sum[0][h], as_bf16(column[0][c]), x);
      sum[1][h] = _mm512_dpbf16_ps(sum[1][h], as_bf16(column[1][c]), x);
    }
  }
}

/// Logits of Heads heads from `head` on into s, and the largest of each lane. Keys after the last
/// one repeat it.
template <int Heads>
inline void logits(const DecodeTile& t, int head, int padded, __m512 (&largest)[Heads]) {
  const std::int64_t q_stride = padded * std::int64_t{2};
  const auto* q = static_cast<const std::int32_t*>(t.q) + head * q_stride;
  const int last = t.k.count - 1;
  for (int first = 0; first <= last; first += 16) {
    __m512 half[2][Heads];
    for (int i = 0; i < 2; ++i) {
      const std::uint16_t* k[2][4];
      for (int r = 0; r < 8; ++r) {
        const int key = first + 8 * i + r;
        k[r / 4][r % 4] = row_of(t.k, key < last ? key : last);
      }
      if (head == 0) prefetch(t, first + 8 * i);
      __m512 sum[2][Heads] = {};
      int j = 0;
      for (; j + 32 <= t.k.dim; j += 32) add_products<Heads>(k, j, ~0u, q, q_stride, sum);
      if (j < t.k.dim) add_products<Heads>(k, j, first32(t.k.dim - j), q, q_stride, sum);
      for (int h = 0; h < Heads; ++h) half[i][h] = fold<4>(sum[0][h], sum[1][h]);
    }
    for (int h = 0; h < Heads; ++h) {
      const __m512 x = fold<8>(half[0][h], half[1][h]);
      largest[h] = _mm512_max_ps(largest[h], x);
      _mm512_storeu_ps(t.s + (head + h) * kTileKeys + first, x);
    }
  }
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
    __m512i pairs[4];
    for (int x = 0; x < 2; ++x) {
      const __m512i a = _mm512_maskz_loadu_epi16(inside[x], row + 32 * x);
      const __m512i b = _mm512_maskz_loadu_epi16(inside[x], next + 32 * x);
      pairs[2 * x] = _mm512_permutex2var_epi16(a, low, b);
      pairs[2 * x + 1] = _mm512_permutex2var_epi16(a, high, b);
    }
    for (int h = 0; h < Heads; ++h) {
      const __m512bh p = as_bf16(_mm512_set1_epi32(
          reinterpret_cast<const std::int32_t*>(t.s + (head + h) * kTileKeys)[i / 2]));
      for (int x = 0; x < 4; ++x) sum[h][x] = _mm512_dpbf16_ps(sum[h][x], as_bf16(pairs[x]), p);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < 4; ++x) _mm512_storeu_ps(o + h * padded + 16 * x, sum[h][x]);
  }
}

template <int Heads>
void run_heads(const DecodeTile& t, int head, int padded) {
  __m512 largest[Heads];
  for (int h = 0; h < Heads; ++h) largest[h] = _mm512_set1_ps(-kInfinity);
  logits<Heads>(t, head, padded, largest);
  float factor[Heads];
  for (int h = 0; h < Heads; ++h) factor[h] = softmax(t, head + h, largest[h]);
  for (int j = 0; j < t.v.dim; j += kDecodeStrip) add_values<Heads>(t, head, factor, padded, j);
}

void run_decode(const DecodeTile& t) {
  const int padded = (t.k.dim + kDecodeStrip - 1) / kDecodeStrip * kDecodeStrip;
  int head = 0;
  for (; head + 4 <= t.heads; head += 4) run_heads<4>(t, head, padded);
  switch (t.heads - head) {
    case 3:
      return run_heads<3>(t, head, padded);
    case 2:
      return run_heads<2>(t, head, padded);
    case 1:
      return run_heads<1>(t, head, padded);
  }
}

}  // namespace

const DecodeKernel kAvx512Bf16Decode = {DType::kBf16, pack_query, run_decode};

}  // namespace sw::cpu
