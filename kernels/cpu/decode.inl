// Body of the f32 decode kernel, included once by each decode_<isa>.cpp, with SW_HEADS (heads whose
// outputs stay in registers) set.
#include <utility>

#include "kernels/cpu/vector.inl"

namespace sw::cpu {
namespace {

/// Adds each lane to the one `Half` lanes away, for two vectors at once: lanes without the bit Half
/// of the result are of a, the others of b.
template <int Half, int... Lane>
inline Vec fold_lanes(Vec a, Vec b, std::integer_sequence<int, Lane...>) {
  return __builtin_shufflevector(a, b, ((Lane & Half) == 0 ? Lane : kWidth + Lane - Half)...) +
         __builtin_shufflevector(a, b, ((Lane & Half) == 0 ? Lane + Half : kWidth + Lane)...);
}
template <int Half>
inline Vec fold(Vec a, Vec b) {
  return fold_lanes<Half>(a, b, std::make_integer_sequence<int, kWidth>());
}

void pack_query(const void* row, std::int32_t dim, void* q) {
  for (int j = 0; j < dim; ++j) {
    static_cast<float*>(q)[j] = static_cast<const float*>(row)[j];
  }
}

/// Logits of Heads heads from `head` on and keys [first, first + kWidth), not scaled. Keys after
/// the last one repeat it.
template <int Heads>
inline void logits(const DecodeTile& t, int head, int padded, int first, Vec (&result)[Heads]) {
  const auto* k = static_cast<const float*>(t.k.data);
  const float* q = static_cast<const float*>(t.q) + head * padded * 2;
  const int whole = t.k.dim / kWidth * kWidth;
  Vec part[kWidth / 4][Heads];
  for (int group = 0; group < kWidth / 4; ++group) {
    const float* row[4];
    for (int i = 0; i < 4; ++i) {
      const int key = first + 4 * group + i;
      row[i] = k + (key < t.k.count ? key : t.k.count - 1) * t.k.stride;
    }
    Vec sum[Heads][4] = {};
    for (int j = 0; j < whole; j += kWidth) {
      Vec x[4];
      for (int i = 0; i < 4; ++i) x[i] = load(row[i] + j);
      for (int h = 0; h < Heads; ++h) {
        const Vec factor = load(q + h * padded * 2 + j);
        for (int i = 0; i < 4; ++i) sum[h][i] += x[i] * factor;
      }
    }
    // Lane i now gets a part of the sum of key i mod 4.
    for (int h = 0; h < Heads; ++h) {
      part[group][h] = fold<2>(fold<1>(sum[h][0], sum[h][1]), fold<1>(sum[h][2], sum[h][3]));
    }
  }
  for (int h = 0; h < Heads; ++h) {
    if constexpr (kWidth == 16) {
      result[h] = fold<8>(fold<4>(part[0][h], part[1][h]), fold<4>(part[2][h], part[3][h]));
    } else if constexpr (kWidth == 8) {
      result[h] = fold<4>(part[0][h], part[1][h]);
    } else {
      result[h] = part[0][h];
    }
    for (int j = whole; j < t.k.dim; ++j) {
      for (int i = 0; i < kWidth; ++i) {
        const int key = first + i < t.k.count ? first + i : t.k.count - 1;
        result[h][i] += k[key * t.k.stride + j] * q[h * padded * 2 + j];
      }
    }
  }
}

/// Asks for a row that is used later.
__attribute__((always_inline)) inline void prefetch_row(const float* row, int dim) {
  for (int j = 0; j < dim; j += 16) __builtin_prefetch(row + j, 0, 2);
}

/// o[h][j] := o[h][j] factor[h] + sum over keys of s[h][key] v[key][j], for Heads heads from `head`
/// on and the elements [j, j + kWidth Vectors).
template <int Heads, int Vectors>
inline void add_values(const DecodeTile& t, int head, const float* factor, int padded, int j) {
  const bool ahead = head == 0 && j == 0;
  const float* v = static_cast<const float*>(t.v.data) + j;
  float* o = t.o + head * padded + j;
  const float* s = t.s + head * kTileKeys;
  Vec sum[Heads][Vectors];
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < Vectors; ++x) sum[h][x] = load(o + h * padded + x * kWidth) * factor[h];
  }
  for (int i = 0; i < t.v.count; ++i) {
    if (ahead && i < t.next_count) {
      prefetch_row(static_cast<const float*>(t.next_k) + i * t.k.stride, t.k.dim);
    }
    Vec row[Vectors];
    for (int x = 0; x < Vectors; ++x) row[x] = load(v + i * t.v.stride + x * kWidth);
    for (int h = 0; h < Heads; ++h) {
      const Vec p = broadcast(s[h * kTileKeys + i]);
      for (int x = 0; x < Vectors; ++x) sum[h][x] += p * row[x];
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < Vectors; ++x) store(o + h * padded + x * kWidth, sum[h][x]);
  }
}

/// The largest lane.
inline float largest_of(Vec x) {
  float top = x[0];
  for (int i = 1; i < kWidth; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

template <int Heads>
void run_heads(const DecodeTile& t, int head, int padded) {
  float factor[Heads];
  Vec largest[Heads];
  for (Vec& x : largest) x = broadcast(-kInfinity);
  for (int i = 0; i < t.k.count; i += kWidth) {
    if (head == 0) {
      const auto* v = static_cast<const float*>(t.v.data);
      for (int key = i; key < i + kWidth && key < t.v.count; ++key) {
        prefetch_row(v + key * t.v.stride, t.v.dim);
      }
    }
    Vec x[Heads];
    logits<Heads>(t, head, padded, i, x);
    for (int h = 0; h < Heads; ++h) {
      x[h] *= t.scale;
      largest[h] = max(largest[h], x[h]);
      store(t.s + (head + h) * kTileKeys + i, x[h]);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    float* s = t.s + (head + h) * kTileKeys;
    const float old_base = t.m[head + h];
    const float top = largest_of(largest[h]);
    const float base = top > old_base ? top : old_base;
    Vec total = {};
    for (int i = 0; i < t.k.count; i += kWidth) {
      Vec p = exp2_nonpositive(load(s + i) - base);
      for (int x = t.k.count - i; x < kWidth; ++x) p[x] = 0.0f;  // keys after the last one
      store(s + i, p);
      total += p;
    }
    factor[h] = exp2_nonpositive(broadcast(old_base - base))[0];
    t.m[head + h] = base;
    float* l = t.l + (head + h) * kDecodeSums;
    store(l, load(l) * factor[h] + total);
    if (t.tile_sum != nullptr) {
      float sum = 0.0f;
      for (int x = 0; x < kWidth; ++x) sum += total[x];
      t.tile_sum[head + h] = sum;
      t.tile_base[head + h] = base;
    }
  }
  int j = 0;
  for (; j + 4 * kWidth <= t.v.dim; j += 4 * kWidth)
    add_values<Heads, 4>(t, head, factor, padded, j);
  for (; j + kWidth <= t.v.dim; j += kWidth) add_values<Heads, 1>(t, head, factor, padded, j);
  for (; j < t.v.dim; ++j) {
    const float* v = static_cast<const float*>(t.v.data) + j;
    for (int h = 0; h < Heads; ++h) {
      float* o = t.o + (head + h) * padded + j;
      *o *= factor[h];
      for (int i = 0; i < t.v.count; ++i) *o += t.s[(head + h) * kTileKeys + i] * v[i * t.v.stride];
    }
  }
}

void run_decode(const DecodeTile& t) {
  const int padded = (t.k.dim + kDecodeStrip - 1) / kDecodeStrip * kDecodeStrip;
  int head = 0;
  for (; head + SW_HEADS <= t.heads; head += SW_HEADS) run_heads<SW_HEADS>(t, head, padded);
  if constexpr (SW_HEADS > 3) {
    for (; head + 3 <= t.heads; head += 3) run_heads<3>(t, head, padded);
  }
  for (; head + 2 <= t.heads; head += 2) run_heads<2>(t, head, padded);
  for (; head < t.heads; ++head) run_heads<1>(t, head, padded);
}

void unpack_output(const float* o, std::int32_t dim, float* out) {
  for (int j = 0; j < dim; ++j) out[j] = o[j];
}

constexpr DecodeKernel kDecode = {DType::kF32, pack_query, run_decode, unpack_output};

}  // namespace
}  // namespace sw::cpu
