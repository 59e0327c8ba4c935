// Tiles of bf16 elements with the dot products of AVX512-BF16.

#include "kernels/cpu/tile_bf16.inl"

namespace sw::cpu {
namespace {

/// acc[i][x] += sum over p < depth of a[i * a_row + p * a_step] . b[p][x]: pairs of bf16. `a` is
/// read one pair at a time, `b` has rows of kLanes pairs.
template <int Rows, int Vectors>
inline void multiply(const std::int32_t* a, std::int64_t a_row, std::int64_t a_step,
                     const std::int32_t* b, int depth, __m512 (&acc)[Rows][Vectors]) {
  for (int p = 0; p < depth; ++p) {
    __m512bh row[Vectors];
    for (int x = 0; x < Vectors; ++x) {
      row[x] = as_bf16(_mm512_loadu_si512(b + p * kLanes + x * kWidth));
    }
    for (int i = 0; i < Rows; ++i) {
      const __m512bh factor = as_bf16(_mm512_set1_epi32(a[i * a_row + p * a_step]));
      for (int x = 0; x < Vectors; ++x) acc[i][x] = _mm512_dpbf16_ps(acc[i][x], row[x], factor);
    }
  }
}

/// Calls f.operator()<Rows>(first) so that [0, count) is covered by groups of rows that fill the
/// registers, then by groups of 4 and 1.
template <int Vectors, class F>
inline void for_rows(int count, F&& f) {
  constexpr int kRows = Vectors == 4 ? 6 : Vectors == 3 ? 8 : 12;
  int i = 0;
  for (; i + kRows <= count; i += kRows) f.template operator()<kRows>(i);
  for (; i + 4 <= count; i += 4) f.template operator()<4>(i);
  for (; i < count; ++i) f.template operator()<1>(i);
}

/// Lanes [lane, lane + 16 Vectors) against the first `keys` keys of the tile.
template <int Vectors>
void run_lanes(const Tile& t, int lane, int keys) {
  const auto* qt = static_cast<const std::int32_t*>(t.qt) + lane;
  const auto* k = static_cast<const std::int32_t*>(t.k);
  const auto* v = static_cast<const std::int32_t*>(t.v);
  const int pairs = (t.dim + 1) / 2;
  __m512 largest[Vectors];
  for (int x = 0; x < Vectors; ++x) largest[x] = _mm512_set1_ps(-kInfinity);
  for_rows<Vectors>(keys, [&]<int Rows>(int first) {
    __m512 acc[Rows][Vectors] = {};
    multiply<Rows, Vectors>(k + first * pairs, pairs, 1, qt, pairs, acc);
    for (int i = 0; i < Rows; ++i) {
      for (int x = 0; x < Vectors; ++x) {
        _mm512_storeu_ps(t.s + (first + i) * kLanes + lane + x * kWidth, acc[i][x]);
        largest[x] = _mm512_max_ps(largest[x], acc[i][x]);
      }
    }
  });
  if (t.mask != Mask::kNone) {
    for (int x = 0; x < Vectors; ++x) {
      apply_mask(t, lane + x * kWidth, keys);
      largest[x] = _mm512_set1_ps(-kInfinity);
      for (int i = 0; i < keys; ++i) {
        largest[x] =
            _mm512_max_ps(largest[x], _mm512_loadu_ps(t.s + i * kLanes + lane + x * kWidth));
      }
    }
  }
  __m512 factor[Vectors];
  __mmask16 rescaled = 0;
  for (int x = 0; x < Vectors; ++x) {
    factor[x] = softmax(t, lane + x * kWidth, keys, largest[x]);
    rescaled = static_cast<__mmask16>(
        rescaled | _mm512_cmp_ps_mask(factor[x], _mm512_set1_ps(1.0f), _CMP_NEQ_OQ));
  }
  if (v == nullptr) return;
  const auto* p = reinterpret_cast<const std::int32_t*>(t.s) + lane;
  for_rows<Vectors>(t.dim, [&]<int Rows>(int first) {
    __m512 acc[Rows][Vectors];
    for (int i = 0; i < Rows; ++i) {
      for (int x = 0; x < Vectors; ++x) {
        acc[i][x] = _mm512_loadu_ps(t.ot + (first + i) * kLanes + lane + x * kWidth);
        if (rescaled != 0) acc[i][x] = _mm512_mul_ps(acc[i][x], factor[x]);
      }
    }
    multiply<Rows, Vectors>(v + first, 1, t.dim, p, (keys + 1) / 2, acc);
    for (int i = 0; i < Rows; ++i) {
      for (int x = 0; x < Vectors; ++x) {
        _mm512_storeu_ps(t.ot + (first + i) * kLanes + lane + x * kWidth, acc[i][x]);
      }
    }
  });
}

/// Masses only, every key visible: weights are summed as the logits come out of the product. The
/// base of a lane moves as in softmax(), within the tile too, whose sum so far then follows.
template <int Vectors>
void sum_lanes(const Tile& t, int begin) {
  const auto* qt = static_cast<const std::int32_t*>(t.qt) + begin;
  const auto* k = static_cast<const std::int32_t*>(t.k);
  const int pairs = (t.dim + 1) / 2;
  const __m512 scale = _mm512_set1_ps(t.scale);
  __m512 base[Vectors];
  __m512 sum[Vectors];
  for (int x = 0; x < Vectors; ++x) {
    base[x] = _mm512_loadu_ps(t.m + begin + x * kWidth);
    sum[x] = _mm512_setzero_ps();
  }
  for_rows<Vectors>(t.keys, [&]<int Rows>(int first) {
    __m512 acc[Rows][Vectors] = {};
    multiply<Rows, Vectors>(k + first * pairs, pairs, 1, qt, pairs, acc);
    for (int x = 0; x < Vectors; ++x) {
      __m512 top = acc[0][x];
      for (int i = 1; i < Rows; ++i) top = _mm512_max_ps(top, acc[i][x]);
      top = _mm512_mul_ps(top, scale);
      const __mmask16 moves =
          _mm512_cmp_ps_mask(top, _mm512_add_ps(base[x], _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
      if (moves != 0) {
        const __m512 old = base[x];
        base[x] = _mm512_mask_mov_ps(old, moves, top);
        sum[x] = _mm512_mul_ps(sum[x], exp2(_mm512_sub_ps(old, base[x])));
      }
      for (int i = 0; i < Rows; ++i) {
        sum[x] = _mm512_add_ps(sum[x], exp2(_mm512_fmsub_ps(acc[i][x], scale, base[x])));
      }
    }
  });
  for (int x = 0; x < Vectors; ++x) {
    const int lane = begin + x * kWidth;
    const __m512 factor = exp2(_mm512_sub_ps(_mm512_loadu_ps(t.m + lane), base[x]));
    _mm512_storeu_ps(t.m + lane, base[x]);
    _mm512_storeu_ps(t.l + lane, _mm512_fmadd_ps(_mm512_loadu_ps(t.l + lane), factor, sum[x]));
    if (t.tile_sum == nullptr) continue;
    _mm512_storeu_ps(t.tile_sum + lane, sum[x]);
    _mm512_storeu_ps(t.tile_max + lane, base[x]);
  }
}

/// The lanes from `begin` on, all of which see every key.
void sum_visible(const Tile& t, int begin) {
  switch ((t.lanes - begin) / kWidth) {
    case 4:
      return sum_lanes<4>(t, begin);
    case 3:
      return sum_lanes<3>(t, begin);
    case 2:
      return sum_lanes<2>(t, begin);
    case 1:
      return sum_lanes<1>(t, begin);
    default:
      return;
  }
}

/// 16 lanes at a time, each without the keys that none of them sees.
void run_causal(const Tile& t, int end) {
  for (int lane = 0; lane < end; lane += kWidth) {
    const int last = _mm512_reduce_max_epi32(_mm512_loadu_si512(t.position + lane));
    const int visible = last - t.key_begin + 1;
    run_lanes<1>(t, lane, visible < 1 ? 1 : visible < t.keys ? visible : t.keys);
  }
}

/// The first lane from which on all lanes see every key; those that are not in use have position
/// -1 and do not count.
int visible_from(const Tile& t) {
  int lane = t.lanes;
  for (; lane > 0; lane -= kWidth) {
    const __m512i position = _mm512_loadu_si512(t.position + lane - kWidth);
    const __mmask16 used = _mm512_cmpge_epi32_mask(position, _mm512_setzero_si512());
    if (_mm512_mask_reduce_min_epi32(used, position) < t.key_begin + t.keys - 1) break;
  }
  return lane;
}

void run_tile(const Tile& t) {
  if (t.v == nullptr && t.mask != Mask::kTokenParts) {
    const int from = t.mask == Mask::kNone ? 0 : visible_from(t);
    run_causal(t, from);
    return sum_visible(t, from);
  }
  if (t.mask == Mask::kCausal) return run_causal(t, t.lanes);
  switch (t.lanes / kWidth) {
    case 4:
      return run_lanes<4>(t, 0, t.keys);
    case 3:
      return run_lanes<3>(t, 0, t.keys);
    case 2:
      return run_lanes<2>(t, 0, t.keys);
    default:
      return run_lanes<1>(t, 0, t.keys);
  }
}

void pack_keys(const TokenRows& rows, void* k) {
  const int even = (rows.dim + 1) / 2 * 2;
  auto* to = static_cast<std::uint16_t*>(k);
  for (int i = 0; i < rows.count; ++i) {
    for (int j = 0; j < even; j += 32) {
      const __m512i x = _mm512_maskz_loadu_epi16(first32(rows.dim - j), row_of(rows, i) + j);
      _mm512_mask_storeu_epi16(to + i * even + j, first32(even - j), x);
    }
  }
}

void pack_values(const TokenRows& rows, void* v) {
  auto* to = static_cast<std::int32_t*>(v);
  for (int i = 0; i < rows.count; i += 2, to += rows.dim) {
    for (int j = 0; j < rows.dim; j += 32) {
      const __mmask32 inside = first32(rows.dim - j);
      const __m512i a = _mm512_maskz_loadu_epi16(inside, row_of(rows, i) + j);
      const __m512i b = i + 1 < rows.count
                            ? _mm512_maskz_loadu_epi16(inside, row_of(rows, i + 1) + j)
                            : _mm512_setzero_si512();
      __m512i pairs[2];
      interleave(a, b, pairs);
      _mm512_mask_storeu_epi32(to + j, first16(rows.dim - j), pairs[0]);
      _mm512_mask_storeu_epi32(to + j + 16, first16(rows.dim - j - 16), pairs[1]);
    }
  }
}

}  // namespace

const TileKernel kAvx512Bf16Tile = {DType::kBf16, kWidth,       2,      run_tile, pack_keys,
                                    pack_values,  pack_queries, finish, normalize};

}  // namespace sw::cpu
