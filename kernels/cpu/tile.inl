// Body of the f32 tile kernel, included once by each tile_<isa>.cpp, with SW_ROWS
// (keys or output dims of a register block) and SW_VECTORS (vectors of lanes of a register block)
// set.
#include "kernels/cpu/vector.inl"

namespace sw::cpu {
namespace {

/// c[i][lane] (+)= sum over j < depth of a[i * a_row + j * a_step] * b[j][lane] for i < Rows and
/// Vectors vectors of lanes: one register block. b and c have rows of kLanes.
template <int Rows, int Vectors, bool Accumulate>
inline void multiply_block(const float* a, int a_row, int a_step, const float* b, float* c,
                           int depth) {
  Vec sum[Rows][Vectors];
  for (int i = 0; i < Rows; ++i) {
    for (int x = 0; x < Vectors; ++x) {
      sum[i][x] = Accumulate ? load(c + i * kLanes + x * kWidth) : Vec{};
    }
  }
  for (int j = 0; j < depth; ++j) {
    Vec row[Vectors];
    for (int x = 0; x < Vectors; ++x) row[x] = load(b + j * kLanes + x * kWidth);
    for (int i = 0; i < Rows; ++i) {
      const Vec factor = broadcast(a[i * a_row + j * a_step]);
      for (int x = 0; x < Vectors; ++x) sum[i][x] += factor * row[x];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int x = 0; x < Vectors; ++x) store(c + i * kLanes + x * kWidth, sum[i][x]);
  }
}

template <int Vectors, bool Accumulate>
inline void multiply_columns(const float* a, int a_row, int a_step, const float* b, float* c,
                             int rows, int depth) {
  int i = 0;
  for (; i + SW_ROWS <= rows; i += SW_ROWS) {
    multiply_block<SW_ROWS, Vectors, Accumulate>(a + i * a_row, a_row, a_step, b, c + i * kLanes,
                                                 depth);
  }
  for (; i + 2 <= rows; i += 2) {
    multiply_block<2, Vectors, Accumulate>(a + i * a_row, a_row, a_step, b, c + i * kLanes, depth);
  }
  for (; i < rows; ++i) {
    multiply_block<1, Vectors, Accumulate>(a + i * a_row, a_row, a_step, b, c + i * kLanes, depth);
  }
}

/// c [rows][lanes] (+)= a [rows][depth] b [depth][lanes].
template <bool Accumulate>
inline void multiply(const float* a, int a_row, int a_step, const float* b, float* c, int rows,
                     int depth, int lanes) {
  int lane = 0;
  for (; lane + SW_VECTORS * kWidth <= lanes; lane += SW_VECTORS * kWidth) {
    multiply_columns<SW_VECTORS, Accumulate>(a, a_row, a_step, b + lane, c + lane, rows, depth);
  }
  for (; lane < lanes; lane += kWidth) {
    multiply_columns<1, Accumulate>(a, a_row, a_step, b + lane, c + lane, rows, depth);
  }
}

inline void apply_mask(const Tile& t) {
  for (int lane = 0; lane < t.lanes; lane += kWidth) {
    const IntVec position = load(t.position + lane);
    for (int i = 0; i < t.keys; ++i) {
      const std::int32_t key = t.key_begin + i;
      IntVec hidden = position < key;
      if (t.mask == Mask::kTokenParts && key >= t.token_sink) {
        hidden |= position - t.token_window >= key;
      }
      float* s = t.s + i * kLanes + lane;
      store(s, hidden ? broadcast(-kInfinity) : load(s));
    }
  }
}

void run_tile(const Tile& t) {
  const auto* v = static_cast<const float*>(t.v);
  // Logits, transposed: s[key][lane].
  multiply<false>(static_cast<const float*>(t.k), t.dim, 1, static_cast<const float*>(t.qt), t.s,
                  t.keys, t.dim, t.lanes);
  if (t.mask != Mask::kNone) apply_mask(t);

  for (int lane = 0; lane < t.lanes; lane += kWidth) {
    Vec largest = load(t.s + lane);
    for (int i = 1; i < t.keys; ++i) largest = max(largest, load(t.s + i * kLanes + lane));
    const Vec old_max = load(t.m + lane);
    const Vec new_max = max(old_max, largest * t.scale);
    // A lane that has seen no key yet has maximum -infinity; 0 keeps the differences defined.
    const Vec base = new_max == -kInfinity ? Vec{} : new_max;
    Vec sum = Vec{};
    for (int i = 0; i < t.keys; ++i) {
      float* s = t.s + i * kLanes + lane;
      const Vec p = exp2_nonpositive(load(s) * t.scale - base);
      store(s, p);
      sum += p;
    }
    const Vec rescale = exp2_nonpositive(old_max - base);
    store(t.m + lane, new_max);
    store(t.l + lane, load(t.l + lane) * rescale + sum);
    if (t.tile_sum != nullptr) {
      store(t.tile_sum + lane, sum);
      store(t.tile_max + lane, base);
    }
    if (v == nullptr) continue;
    bool changed = false;
    for (int x = 0; x < kWidth; ++x) changed |= rescale[x] != 1.0f;
    if (!changed) continue;
    for (int j = 0; j < t.dim; ++j) {
      float* o = t.ot + j * kLanes + lane;
      store(o, load(o) * rescale);
    }
  }
  // Output, transposed: ot[dim][lane] += v^T p.
  if (v != nullptr) multiply<true>(v, 1, t.dim, t.s, t.ot, t.dim, t.keys, t.lanes);
}

/// [count][dim] as f32.
void pack_rows(const TokenRows& rows, void* to) {
  for (int i = 0; i < rows.count; ++i) {
    float* out = static_cast<float*>(to) + static_cast<std::int64_t>(i) * rows.dim;
    int j = 0;
    for (; j + kWidth <= rows.dim; j += kWidth) {
      store(out + j, load_as_float(rows.data, rows.dtype, i * rows.stride + j));
    }
    for (; j < rows.dim; ++j) {
      out[j] = element_as_float(rows.data, rows.dtype, i * rows.stride + j);
    }
  }
}

void pack_queries(const TokenRows& rows, std::int32_t lane, void* qt) {
  for (int i = 0; i < rows.count; ++i) {
    float* column = static_cast<float*>(qt) + lane + i;
    for (int j = 0; j < rows.dim; ++j)
      column[j * kLanes] = element_as_float(rows.data, rows.dtype, i * rows.stride + j);
  }
}

void finish(const float* ot, const float* l, std::int32_t lane, std::int32_t count,
            std::int32_t dim, float* out) {
  for (int i = lane; i < lane + count; ++i, out += dim) {
    const float inverse = l[i] > 0.0f ? 1.0f / l[i] : 0.0f;
    for (int j = 0; j < dim; ++j) out[j] = ot[j * kLanes + i] * inverse;
  }
}

void normalize(float* sum, const float* max, const float* m, const float* l, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const Vec total = load(l + i);
    const Vec share = load(sum + i) * exp2_nonpositive(load(max + i) - load(m + i)) / total;
    store(sum + i, total == Vec{} ? Vec{} : share);
  }
}

constexpr TileKernel kTile = {DType::kF32, kWidth,       2,      run_tile, pack_rows,
                              pack_rows,   pack_queries, finish, normalize};

}  // namespace
}  // namespace sw::cpu
