// Body of the selection kernels, included once by each scores_<isa>.cpp, with SW_ROWS and
// SW_VECTORS (register block of the matrix product) set.
#include "kernels/cpu/vector.inl"

namespace sw::cpu {
namespace {

constexpr int kDoubles = kWidth / 2;
constexpr int kPanel = SW_VECTORS * kDoubles;  // columns of a register block
constexpr int kDepth = 256;                    // rows of b that stay in the cache
typedef double DoubleVec __attribute__((vector_size(SW_VECTOR_BYTES)));
typedef std::int64_t LongVec __attribute__((vector_size(SW_VECTOR_BYTES)));
typedef double MemDoubleVec __attribute__((vector_size(SW_VECTOR_BYTES), aligned(8), may_alias));
// As many f32 or 16-bit elements as make a vector of doubles.
typedef float HalfVec __attribute__((vector_size(SW_VECTOR_BYTES / 2)));
typedef std::int32_t HalfIntVec __attribute__((vector_size(SW_VECTOR_BYTES / 2)));
typedef float MemHalfVec __attribute__((vector_size(SW_VECTOR_BYTES / 2), aligned(4), may_alias));
typedef std::uint16_t MemHalfWordVec
    __attribute__((vector_size(SW_VECTOR_BYTES / 4), aligned(2), may_alias));

inline DoubleVec load(const double* p) { return *reinterpret_cast<const MemDoubleVec*>(p); }
inline void store(double* p, DoubleVec x) { *reinterpret_cast<MemDoubleVec*>(p) = x; }

inline DoubleVec to_doubles(HalfVec x) {
#ifdef __AVX512F__
  // GCC 12 converts halves one after the other by itself; the form with a mask as in vector.inl.
  return _mm512_maskz_cvtps_pd(0xff, x);
#else
  return __builtin_convertvector(x, DoubleVec);
#endif
}

template <DType Type>
inline DoubleVec load_doubles(const void* data, std::int64_t index) {
  if constexpr (Type == DType::kF32) {
    const auto* p = static_cast<const float*>(data) + index;
    return to_doubles(*reinterpret_cast<const MemHalfVec*>(p));
  } else {
    const auto* p = static_cast<const std::uint16_t*>(data) + index;
    const HalfIntVec bits =
        __builtin_convertvector(*reinterpret_cast<const MemHalfWordVec*>(p), HalfIntVec);
    const HalfVec value =
        Type == DType::kBf16 ? reinterpret_cast<HalfVec>(bits << 16) : half_to_float<HalfVec>(bits);
    return to_doubles(value);
  }
}

template <DType Type>
void add_rows_of(const TokenRows& rows, double* sum) {
  int j = 0;
  for (; j + 4 * kDoubles <= rows.dim; j += 4 * kDoubles) {
    DoubleVec x[4];
    for (int u = 0; u < 4; ++u) x[u] = load(sum + j + u * kDoubles);
    for (int i = 0; i < rows.count; ++i) {
      for (int u = 0; u < 4; ++u) {
        x[u] += load_doubles<Type>(rows.data, i * rows.stride + j + u * kDoubles);
      }
    }
    for (int u = 0; u < 4; ++u) store(sum + j + u * kDoubles, x[u]);
  }
  for (; j < rows.dim; ++j) {
    for (int i = 0; i < rows.count; ++i) {
      sum[j] += double{element_as_float(rows.data, Type, i * rows.stride + j)};
    }
  }
}

void add_rows(const TokenRows& rows, double* sum) {
  switch (rows.dtype) {
    case DType::kBf16:
      return add_rows_of<DType::kBf16>(rows, sum);
    case DType::kF16:
      return add_rows_of<DType::kF16>(rows, sum);
    default:
      return add_rows_of<DType::kF32>(rows, sum);
  }
}

void add_rows_f32(const TokenRows& rows, float* sum) {
  int j = 0;
  for (; j + kWidth <= rows.dim; j += kWidth) {
    Vec x[2] = {};
    for (int i = 0; i < rows.count; ++i) {
      x[i % 2] += load_as_float(rows.data, rows.dtype, i * rows.stride + j);
    }
    store(sum + j, load(sum + j) + (x[0] + x[1]));
  }
  for (; j < rows.dim; ++j) {
    for (int i = 0; i < rows.count; ++i) {
      sum[j] += element_as_float(rows.data, rows.dtype, i * rows.stride + j);
    }
  }
}

inline float dot_product(const float* x, const float* y, std::int64_t dim) {
  Vec sum = {};
  std::int64_t j = 0;
  for (; j + kWidth <= dim; j += kWidth) sum += load(x + j) * load(y + j);
  float total = 0.0f;
  for (int lane = 0; lane < kWidth; ++lane) total += sum[lane];
  for (; j < dim; ++j) total += x[j] * y[j];
  return total;
}

/// y += factor x.
inline void add_scaled(const float* x, float factor, std::int64_t dim, float* y) {
  std::int64_t j = 0;
  for (; j + kWidth <= dim; j += kWidth) store(y + j, load(y + j) + factor * load(x + j));
  for (; j < dim; ++j) y[j] += factor * x[j];
}

std::int64_t split_rows(const TokenRows& rows, const float* mean, float* scratch, float* sums) {
  const std::int64_t dim = rows.dim;
  float* centred = scratch;
  float* direction = scratch + rows.count * dim;
  const float* farthest = centred;
  float largest = -1.0f;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    float* row = centred + i * dim;
    std::int64_t j = 0;
    for (; j + kWidth <= dim; j += kWidth) {
      store(row + j, load_as_float(rows.data, rows.dtype, i * rows.stride + j) - load(mean + j));
    }
    for (; j < dim; ++j) {
      row[j] = element_as_float(rows.data, rows.dtype, i * rows.stride + j) - mean[j];
    }
    const float distance = dot_product(row, row, dim);
    if (distance > largest) {
      largest = distance;
      farthest = row;
    }
  }
  for (std::int64_t j = 0; j < dim; ++j) direction[j] = sums[j] = sums[dim + j] = 0.0f;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const float* row = centred + i * dim;
    add_scaled(row, dot_product(row, farthest, dim), dim, direction);
  }
  std::int64_t along = 0;
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const float* row = centred + i * dim;
    const bool first = dot_product(row, direction, dim) > 0.0f;
    along += first ? 1 : 0;
    add_scaled(row, 1.0f, dim, first ? sums : sums + dim);
  }
  return along;
}

/// c [Rows][kPanel] (+)= a [Rows][depth] panel [depth][kPanel].
template <int Rows>
inline void multiply_block(ConstMatrix a, const double* panel, int depth, bool accumulate,
                           double* c, std::int64_t c_stride) {
  DoubleVec sum[Rows][SW_VECTORS] = {};
  for (int k = 0; k < depth; ++k) {
    DoubleVec row[SW_VECTORS];
    for (int x = 0; x < SW_VECTORS; ++x) row[x] = load(panel + k * kPanel + x * kDoubles);
    for (int i = 0; i < Rows; ++i) {
      const DoubleVec factor = a.data[i * a.stride + k] - DoubleVec{};
      for (int x = 0; x < SW_VECTORS; ++x) sum[i][x] += factor * row[x];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int x = 0; x < SW_VECTORS; ++x) {
      double* to = c + i * c_stride + x * kDoubles;
      store(to, accumulate ? load(to) + sum[i][x] : sum[i][x]);
    }
  }
}

void multiply(ConstMatrix a, ConstMatrix b, std::int64_t rows, std::int64_t depth,
              std::int64_t cols, double* c, std::int64_t c_stride) {
  alignas(64) double panel[kDepth * kPanel];
  alignas(64) double edge[SW_ROWS * kPanel];
  for (std::int64_t k = 0; k < depth; k += kDepth) {
    const int count = static_cast<int>(depth - k < kDepth ? depth - k : kDepth);
    for (std::int64_t j = 0; j < cols; j += kPanel) {
      const int width = static_cast<int>(cols - j < kPanel ? cols - j : kPanel);
      for (int r = 0; r < count; ++r) {
        const double* from = b.data + (k + r) * b.stride + j;
        for (int x = 0; x < kPanel; ++x) panel[r * kPanel + x] = x < width ? from[x] : 0.0;
      }
      std::int64_t i = 0;
      const auto block = [&]<int Rows>() {
        const ConstMatrix part = {a.data + i * a.stride + k, a.stride};
        double* to = c + i * c_stride + j;
        if (width == kPanel) {
          multiply_block<Rows>(part, panel, count, k > 0, to, c_stride);
          return;
        }
        multiply_block<Rows>(part, panel, count, false, edge, kPanel);
        for (int r = 0; r < Rows; ++r) {
          for (int x = 0; x < width; ++x) {
            to[r * c_stride + x] = edge[r * kPanel + x] + (k > 0 ? to[r * c_stride + x] : 0.0);
          }
        }
      };
      for (; i + SW_ROWS <= rows; i += SW_ROWS) block.template operator()<SW_ROWS>();
      for (; i < rows; ++i) block.template operator()<1>();
    }
  }
}

/// e^x for x <= 0, 0 below -708.
inline DoubleVec exp_nonpositive(DoubleVec x) {
  const DoubleVec clamped = x < -708.0 ? DoubleVec{} - 708.0 : x;
  // 1.5 * 2^52 rounds to an integer in the low bits; ln 2 in two parts keeps the rest exact.
  const DoubleVec shifted = clamped * 1.4426950408889634 + 6755399441055744.0;
  const DoubleVec n = shifted - 6755399441055744.0;
  const DoubleVec r = (clamped - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  // Taylor series: 1 / k!.
  DoubleVec y = DoubleVec{} + 1.6059043836821613e-10;
  y = y * r + 2.08767569878681e-09;
  y = y * r + 2.505210838544172e-08;
  y = y * r + 2.755731922398589e-07;
  y = y * r + 2.7557319223985893e-06;
  y = y * r + 2.48015873015873e-05;
  y = y * r + 0.0001984126984126984;
  y = y * r + 0.001388888888888889;
  y = y * r + 0.008333333333333333;
  y = y * r + 0.041666666666666664;
  y = y * r + 0.16666666666666666;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  const LongVec result = reinterpret_cast<LongVec>(y) + (reinterpret_cast<LongVec>(shifted) << 52);
  return x < -708.0 ? DoubleVec{} : reinterpret_cast<DoubleVec>(result);
}

double exponentials(double* x, std::int64_t count, double largest) {
  DoubleVec total = {};
  std::int64_t i = 0;
  for (; i + kDoubles <= count; i += kDoubles) {
    const DoubleVec y = exp_nonpositive(load(x + i) - largest);
    store(x + i, y);
    total += y;
  }
  double sum = 0.0;
  for (int u = 0; u < kDoubles; ++u) sum += total[u];
  for (; i < count; ++i) {
    x[i] = exp_nonpositive(DoubleVec{} + (x[i] - largest))[0];
    sum += x[i];
  }
  return sum;
}

void add_row_product(const double* x, const float* m, std::int64_t stride, std::int64_t rows,
                     std::int64_t cols, double* y) {
  std::int64_t j = 0;
  // Strips as wide as the registers allow, so that short rows are read from end to end.
  const auto strip = [&]<int Vectors>() {
    DoubleVec sum[Vectors];
    for (int v = 0; v < Vectors; ++v) sum[v] = load(y + j + v * kDoubles);
    for (std::int64_t i = 0; i < rows; ++i) {
      const DoubleVec factor = x[i] - DoubleVec{};
      for (int v = 0; v < Vectors; ++v) {
        sum[v] += factor * load_doubles<DType::kF32>(m, i * stride + j + v * kDoubles);
      }
    }
    for (int v = 0; v < Vectors; ++v) store(y + j + v * kDoubles, sum[v]);
    j += Vectors * kDoubles;
  };
  constexpr int kMost = SW_VECTOR_BYTES == 64 ? 16 : 8;
  while (j + kMost * kDoubles <= cols) strip.template operator()<kMost>();
  while (j + 4 * kDoubles <= cols) strip.template operator()<4>();
  while (j + kDoubles <= cols) strip.template operator()<1>();
  for (; j < cols; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) y[j] += x[i] * double{m[i * stride + j]};
  }
}

constexpr ScoreKernel kScores = {add_rows, add_rows_f32,    split_rows,
                                 multiply, add_row_product, exponentials};

}  // namespace
}  // namespace sw::cpu
