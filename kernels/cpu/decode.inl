// Body of the f32 decode kernel, included once by each decode_<isa>.cpp.
#include "kernels/cpu/vector.inl"

namespace sw::cpu {
namespace {

/// out[i] = sum of the elements of x[i], for kWidth vectors.
template <int Half>
inline Vec sum_each(Vec (&x)[kWidth]) {
  // Lanes with the bit Half go to the second vector of a pair, so that lane i ends up with x[i].
  IntVec low;
  for (int lane = 0; lane < kWidth; ++lane) {
    low[lane] = (lane & Half) == 0 ? lane : kWidth + lane - Half;
  }
  const IntVec high = low + Half;
  for (int i = 0; i < Half; ++i) {
    x[i] = __builtin_shuffle(x[i], x[i + Half], low) + __builtin_shuffle(x[i], x[i + Half], high);
  }
  if constexpr (Half == 1) {
    return x[0];
  } else {
    return sum_each<Half / 2>(x);
  }
}

void pack_query(const void* row, std::int32_t dim, void* q) {
  for (int j = 0; j < dim; ++j) {
    static_cast<float*>(q)[j] = static_cast<const float*>(row)[j];
  }
}

/// Logits of keys [first, first + kWidth) and one head. Keys after the last one repeat it.
inline Vec logits(const DecodeTile& t, const float* q, int first) {
  const auto* k = static_cast<const float*>(t.k.data);
  const float* row[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    row[i] = k + (first + i < t.k.count ? first + i : t.k.count - 1) * t.k.stride;
  }
  Vec sum[kWidth] = {};
  int j = 0;
  for (; j + kWidth <= t.k.dim; j += kWidth) {
    const Vec x = load(q + j);
    for (int i = 0; i < kWidth; ++i) sum[i] += load(row[i] + j) * x;
  }
  Vec result = sum_each<kWidth / 2>(sum);
  for (; j < t.k.dim; ++j) {
    for (int i = 0; i < kWidth; ++i) result[i] += row[i][j] * q[j];
  }
  return result;
}

/// o[h][j] := o[h][j] factor[h] + sum over keys of s[h][key] v[key][j], for Heads heads from `head`
/// on and the elements [j, j + kWidth Vectors).
template <int Heads, int Vectors>
inline void add_values(const DecodeTile& t, int head, const float* factor, int padded, int j) {
  const float* v = static_cast<const float*>(t.v.data) + j;
  float* o = t.o + head * padded + j;
  const float* s = t.s + head * kTileKeys;
  Vec sum[Heads][Vectors];
  for (int h = 0; h < Heads; ++h) {
    for (int x = 0; x < Vectors; ++x) sum[h][x] = load(o + h * padded + x * kWidth) * factor[h];
  }
  for (int i = 0; i < t.v.count; ++i) {
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

template <int Heads>
void run_heads(const DecodeTile& t, int head, int padded) {
  float factor[Heads];
  for (int h = 0; h < Heads; ++h) {
    const float* q = static_cast<const float*>(t.q) + (head + h) * padded * 2;
    float* s = t.s + (head + h) * kTileKeys;
    Vec largest = broadcast(-kInfinity);
    for (int i = 0; i < t.k.count; i += kWidth) {
      const Vec x = logits(t, q, i) * t.scale;
      largest = max(largest, x);
      store(s + i, x);
    }
    const float old_base = t.m[head + h];
    float base = old_base;
    for (int x = 0; x < kWidth; ++x) base = largest[x] > base ? largest[x] : base;
    Vec total = {};
    for (int i = 0; i < t.k.count; i += kWidth) {
      Vec p = exp2_nonpositive(load(s + i) - base);
      for (int x = t.k.count - i; x < kWidth; ++x) p[x] = 0.0f;
      store(s + i, p);
      total += p;
    }
    float sum = 0.0f;
    for (int x = 0; x < kWidth; ++x) sum += total[x];
    factor[h] = exp2_nonpositive(broadcast(old_base - base))[0];
    t.m[head + h] = base;
    t.l[head + h] = t.l[head + h] * factor[h] + sum;
    t.tile_sum[head + h] = sum;
    t.tile_base[head + h] = base;
  }
  int j = 0;
  for (; j + 4 * kWidth <= t.v.dim; j += 4 * kWidth) add_values<Heads, 4>(t, head, factor, padded, j);
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
  for (int i = 0; i < t.next_count; ++i) {
    for (int j = 0; j < t.k.dim; j += 16) {
      __builtin_prefetch(static_cast<const float*>(t.next_k) + i * t.k.stride + j, 0, 2);
      __builtin_prefetch(static_cast<const float*>(t.next_v) + i * t.v.stride + j, 0, 2);
    }
  }
  int head = 0;
  for (; head + 2 <= t.heads; head += 2) run_heads<2>(t, head, padded);
  for (; head < t.heads; ++head) run_heads<1>(t, head, padded);
}

constexpr DecodeKernel kDecode = {DType::kF32, pack_query, run_decode};

}  // namespace
}  // namespace sw::cpu
