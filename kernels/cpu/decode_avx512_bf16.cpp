// Decode over a bf16 cache with the dot products of AVX512-BF16.
#include <utility>

#include "kernels/cpu/avx512_bf16.inl"
#include "kernels/cpu/decode.hpp"

namespace sw::cpu {
namespace {

/// Heads of one pass over a tile: their sums stay in registers.
constexpr int kMostHeads = 8;
constexpr int kGroupKeys = 16;
static_assert(kTailBytes == 2 * kGroupKeys * 2);

/// Consecutive rows of bf16.
struct Rows {
  const std::uint16_t* data;
  std::int64_t stride;

  const std::uint16_t* operator[](int i) const { return data + i * stride; }
};

/// A copy of the last keys of a tile whose number is no multiple of kGroupKeys, and zeros after
/// them.
inline Rows copy_tail(Rows from, int count, int dim, int padded, std::uint16_t* to) {
  for (int i = 0; i < kGroupKeys; ++i) {
    for (int j = 0; j < dim; j += 32) {
      const __mmask32 inside = i < count ? first32(dim - j) : 0;
      _mm512_storeu_si512(to + i * padded + j, _mm512_maskz_loadu_epi16(inside, from[i] + j));
    }
  }
  return {to, padded};
}

// Prefetches go to the second cache, where more of them can be under way. The functions are inlined
// by force: GCC takes a function that only prefetches for one without effect and drops its calls.

__attribute__((always_inline)) inline void prefetch_row(const std::uint16_t* row, int dim) {
  for (int j = 0; j < dim; j += 32) _mm_prefetch(row + j, _MM_HINT_T1);
}

/// The keys of the next tile, asked for evenly over the passes of this one's values.
class KeysAhead {
 public:
  KeysAhead(const DecodeTile& t, int calls)
      : rows_{static_cast<const std::uint16_t*>(t.next_k), t.k.stride},
        count_(t.next_count),
        dim_(t.k.dim),
        pace_(calls > 0 ? (count_ << 16) / calls + 1 : 0) {}

  __attribute__((always_inline)) void advance() {
    progress_ += pace_;
    for (; row_ < (progress_ >> 16) && row_ < count_; ++row_) prefetch_row(rows_[row_], dim_);
  }

 private:
  Rows rows_;
  int count_;
  int dim_;
  int pace_;  ///< rows of a call, times 2^16
  int progress_ = 0;
  int row_ = 0;
};

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
inline void load_columns(Rows rows, int j, __mmask32 inside, __m512i (&column)[4]) {
  __m512i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm512_maskz_loadu_epi16(inside, rows[i] + j);
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
inline void add_products(Rows k, int j, __mmask32 inside, const std::int32_t* q,
                         std::int64_t q_stride, __m512 (&sum)[2][Heads]) {
  __m512i column[2][4];
  load_columns(k, j, inside, column[0]);
  load_columns({k[4], k.stride}, j, inside, column[1]);
  for (int c = 0; c < 4; ++c) {
    for (int h = 0; h < Heads; ++h) {
      const __m512bh x = as_bf16(_mm512_loadu_si512(q + h * q_stride + 2 * j + 16 * c));
      sum[0][h] = _mm512_dpbf16_ps(sum[0][h], as_bf16(column[0][c]), x);
      sum[1][h] = _mm512_dpbf16_ps(sum[1][h], as_bf16(column[1][c]), x);
    }
  }
}

/// Logits of 8 keys and Heads heads: sum[h] has key i in the lanes i mod 4 + 8 (i / 4) and 4 after.
template <int Heads>
inline void logits_of_8(const DecodeTile& t, Rows k, const std::int32_t* q, std::int64_t q_stride,
                        __m512 (&half)[Heads]) {
  __m512 sum[2][Heads];
  for (int h = 0; h < Heads; ++h) sum[0][h] = sum[1][h] = _mm512_setzero_ps();
  int j = 0;
  for (; j + 32 <= t.k.dim; j += 32) add_products<Heads>(k, j, ~0u, q, q_stride, sum);
  if (j < t.k.dim) add_products<Heads>(k, j, first32(t.k.dim - j), q, q_stride, sum);
  for (int h = 0; h < Heads; ++h) half[h] = fold<4>(sum[0][h], sum[1][h]);
}

/// Gives a head the base that its logits ask for; returns what its running sums and output have to
/// be multiplied with.
__attribute__((noinline)) float move_base(const DecodeTile& t, int head, __m512 top) {
  const float base = _mm512_reduce_max_ps(top);
  const __m512 factor = exp2(_mm512_sub_ps(_mm512_set1_ps(t.m[head]), _mm512_set1_ps(base)));
  float* l = t.l + head * kDecodeSums;
  t.m[head] = base;
  _mm512_storeu_ps(l, _mm512_mul_ps(_mm512_loadu_ps(l), factor));
  return _mm512_cvtss_f32(factor);
}

/// Softmax weights of one head: the logits s [kTileKeys] become bf16 in the same place, zeros after
/// the last key. Returns what the running output has to be multiplied with.
inline float softmax(const DecodeTile& t, int head, __m512 largest) {
  float* s = t.s + head * kTileKeys;
  const int keys = t.k.count;
  const __m512 scale = _mm512_set1_ps(t.scale);
  const __m512 top = _mm512_mul_ps(largest, scale);
  float factor = 1.0f;
  // As in the tiles of a prefill.
  if (_mm512_cmp_ps_mask(top, _mm512_set1_ps(t.m[head] + 8.0f), _CMP_GT_OQ) != 0) [[unlikely]] {
    factor = move_base(t, head, top);
  }
  const __m512 base = _mm512_set1_ps(t.m[head]);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < keys; i += 32) {
    __m512 p[2];
    for (int x = 0; x < 2; ++x) {
      const __mmask16 inside = first16(keys - i - 16 * x);
      p[x] = _mm512_maskz_mov_ps(
          inside, exp2(_mm512_fmsub_ps(_mm512_loadu_ps(s + i + 16 * x), scale, base)));
      total = _mm512_add_ps(total, p[x]);
    }
    _mm512_storeu_si512(reinterpret_cast<std::uint16_t*>(s) + i,
                        (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
  }
  float* l = t.l + head * kDecodeSums;
  _mm512_storeu_ps(l, _mm512_add_ps(_mm512_loadu_ps(l), total));
  if (t.tile_sum != nullptr) {
    t.tile_sum[head] = _mm512_reduce_add_ps(total);
    t.tile_base[head] = t.m[head];
  }
  return factor;
}

/// sum[h] += p[h] V for the 32 Lines elements from j on. An output vector of 32 elements is kept as
/// what unpacking two rows leaves: 0-3, 8-11, .. in the first half, 4-7, 12-15, .. in the other.
template <int Heads, int Lines, bool Masked>
inline void add_rows(Rows v, int keys, int j, __mmask32 inside, const std::int32_t* p,
                     KeysAhead& ahead, __m512 (&sum)[Heads][2 * Lines]) {
  for (int i = 0; i < keys; i += 2) {
    ahead.advance();
    __m512i pairs[2 * Lines];
    for (int x = 0; x < Lines; ++x) {
      const std::uint16_t* row = v[i] + j + 32 * x;
      const std::uint16_t* next = v[i + 1] + j + 32 * x;
      const __m512i a = Masked ? _mm512_maskz_loadu_epi16(inside, row) : _mm512_loadu_si512(row);
      const __m512i b = Masked ? _mm512_maskz_loadu_epi16(inside, next) : _mm512_loadu_si512(next);
      pairs[2 * x] = _mm512_unpacklo_epi16(a, b);
      pairs[2 * x + 1] = _mm512_unpackhi_epi16(a, b);
    }
    for (int h = 0; h < Heads; ++h) {
      const __m512bh weight = as_bf16(_mm512_set1_epi32(p[h * kTileKeys + i / 2]));
      for (int x = 0; x < 2 * Lines; ++x) {
        sum[h][x] = _mm512_dpbf16_ps(sum[h][x], as_bf16(pairs[x]), weight);
      }
    }
  }
}

/// What the products with V need of a tile: its first `whole` keys where they are, then the tail.
struct Values {
  const DecodeTile& tile;
  int padded;
  Rows rows;
  int whole;
  Rows tail;
  KeysAhead& ahead;
};

/// o[h] := o[h] factor[h] + p[h] V for Heads heads from `head` on and 32 Lines elements from j on.
template <int Heads, int Lines, bool Masked>
inline void add_values(const Values& v, int head, const float* factor, int j) {
  const DecodeTile& t = v.tile;
  float* o = t.o + head * v.padded + j;
  const auto* p = reinterpret_cast<const std::int32_t*>(t.s + head * kTileKeys);
  const __mmask32 inside = first32(t.v.dim - j);
  __m512 sum[Heads][2 * Lines];
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < 2 * Lines; ++x) {
      sum[h][x] =
          _mm512_mul_ps(_mm512_loadu_ps(o + h * v.padded + 16 * x), _mm512_set1_ps(factor[h]));
    }
  }
  add_rows<Heads, Lines, Masked>(v.rows, v.whole, j, inside, p, v.ahead, sum);
  add_rows<Heads, Lines, Masked>(v.tail, t.v.count - v.whole, j, inside, p + v.whole / 2, v.ahead,
                                 sum);
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < 2 * Lines; ++x) _mm512_storeu_ps(o + h * v.padded + 16 * x, sum[h][x]);
  }
}

/// The same for Heads heads, as many at a time as fill the registers: rows are read from one end to
/// the other, since the CPU reads ahead by itself then.
template <int Heads, int Lines, bool Masked = false>
inline void add_strip(const Values& v, int head, const float* factor, int j) {
  constexpr int kAtOnce = 8 / Lines;
  constexpr int kRest = Heads % kAtOnce;
  for (int h = 0; h + kAtOnce <= Heads; h += kAtOnce) {
    add_values<kAtOnce, Lines, Masked>(v, head + h, factor + h, j);
  }
  if constexpr (kRest > 0) {
    add_values<kRest, Lines, Masked>(v, head + Heads - kRest, factor + Heads - kRest, j);
  }
}

/// Heads heads from `head` on. The last keys, of no whole group, are in the tails.
template <int Heads>
void run_heads(const DecodeTile& t, int head, int padded, const Rows& k_tail, const Rows& v_tail) {
  const std::int64_t q_stride = padded * std::int64_t{2};
  const auto* q = static_cast<const std::int32_t*>(t.q) + head * q_stride;
  const Rows k{static_cast<const std::uint16_t*>(t.k.data), t.k.stride};
  const Rows v{static_cast<const std::uint16_t*>(t.v.data), t.v.stride};
  const int whole = t.k.count / kGroupKeys * kGroupKeys;
  __m512 largest[Heads];
  for (int h = 0; h < Heads; ++h) largest[h] = _mm512_set1_ps(-kInfinity);
  for (int first = 0; first < t.k.count; first += kGroupKeys) {
    const Rows rows = first < whole ? Rows{k[first], k.stride} : k_tail;
    if (head == 0) {
      for (int i = first; i < first + kGroupKeys && i < t.v.count; ++i) prefetch_row(v[i], t.v.dim);
    }
    __m512 half[2][Heads];
    logits_of_8<Heads>(t, rows, q, q_stride, half[0]);
    logits_of_8<Heads>(t, {rows[8], rows.stride}, q, q_stride, half[1]);
    const __mmask16 present = first16(t.k.count - first);
    for (int h = 0; h < Heads; ++h) {
      const __m512 x = fold<8>(half[0][h], half[1][h]);
      largest[h] = _mm512_mask_max_ps(largest[h], present, largest[h], x);
      _mm512_storeu_ps(t.s + (head + h) * kTileKeys + first, x);
    }
  }
  float factor[Heads];
  for (int h = 0; h < Heads; ++h) factor[h] = softmax(t, head + h, largest[h]);
  // Calls of add_rows for all keys.
  const int passes = t.v.dim / 128 * ((Heads + 1) / 2) + t.v.dim % 128 / 64 * ((Heads + 3) / 4) +
                     (t.v.dim % 64 + 31) / 32 * ((Heads + 7) / 8);
  KeysAhead ahead(t, head == 0 ? passes * ((t.v.count + 1) / 2) : 0);
  const Values values{t, padded, v, whole, v_tail, ahead};
  int j = 0;
  for (; j + 128 <= t.v.dim; j += 128) add_strip<Heads, 4>(values, head, factor, j);
  for (; j + 64 <= t.v.dim; j += 64) add_strip<Heads, 2>(values, head, factor, j);
  for (; j + 32 <= t.v.dim; j += 32) add_strip<Heads, 1>(values, head, factor, j);
  if (j < t.v.dim) add_strip<Heads, 1, true>(values, head, factor, j);
}

void run_decode(const DecodeTile& t) {
  const int padded = (t.k.dim + kDecodeStrip - 1) / kDecodeStrip * kDecodeStrip;
  Rows k_tail{};
  Rows v_tail{};
  const int whole = t.k.count / kGroupKeys * kGroupKeys;
  if (whole < t.k.count) {
    const int rest = t.k.count - whole;
    const Rows k{static_cast<const std::uint16_t*>(t.k.data), t.k.stride};
    const Rows v{static_cast<const std::uint16_t*>(t.v.data), t.v.stride};
    auto* buffer = static_cast<std::uint16_t*>(t.tail);
    k_tail = copy_tail({k[whole], k.stride}, rest, t.k.dim, padded, buffer);
    v_tail = copy_tail({v[whole], v.stride}, rest, t.v.dim, padded, buffer + kGroupKeys * padded);
  }
  // Passes of about the same number of heads.
  const int passes = (t.heads + kMostHeads - 1) / kMostHeads;
  for (int pass = 0, head = 0; pass < passes; ++pass) {
    const int heads = (t.heads - head) / (passes - pass);
    const auto run = [&]<int... Heads>(std::integer_sequence<int, Heads...>) {
      ((heads == Heads + 1 ? run_heads<Heads + 1>(t, head, padded, k_tail, v_tail) : void()), ...);
    };
    run(std::make_integer_sequence<int, kMostHeads>());
    head += heads;
  }
}

void unpack_output(const float* o, std::int32_t dim, float* out) {
  const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int j = 0; j < dim; j += 32) {
    const __m512 low = _mm512_loadu_ps(o + j);
    const __m512 high = _mm512_loadu_ps(o + j + 16);
    _mm512_mask_storeu_ps(out + j, first16(dim - j), _mm512_permutex2var_ps(low, first, high));
    _mm512_mask_storeu_ps(out + j + 16, first16(dim - j - 16),
                          _mm512_permutex2var_ps(low, second, high));
  }
}

}  // namespace

const DecodeKernel kAvx512Bf16Decode = {DType::kBf16, pack_query, run_decode, unpack_output};

}  // namespace sw::cpu
