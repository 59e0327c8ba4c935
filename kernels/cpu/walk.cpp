#include "kernels/cpu/walk.hpp"

#include <algorithm>
#include <numeric>

#include "core/parallel.hpp"

namespace sw::cpu {
namespace {

/// Rows that one thread takes at a time; a multiple of every kernel's register block.
constexpr std::int64_t kChunk = 48;

bool is_lower_triangular(const Matrix& x) {
  for (std::int64_t i = 0; i < x.rows(); ++i) {
    const auto row = x.row(i);
    if (std::any_of(row.begin() + i + 1, row.end(), [](double v) { return v != 0.0; })) {
      return false;
    }
  }
  return true;
}

/// body(first row, one past the last), in parallel, the last rows first.
template <class F>
void for_chunks(std::int64_t rows, F&& body) {
  const std::int64_t chunks = (rows + kChunk - 1) / kChunk;
  parallel_for(chunks, [&](std::int64_t index, int) {
    const std::int64_t begin = (chunks - 1 - index) * kChunk;
    body(begin, std::min(begin + kChunk, rows));
  });
}

/// Rows [begin, end) of x y into `product`: of the first `cols` columns, where only the first
/// `depth` columns of x are not zero.
void multiply_rows(const Matrix& x, const Matrix& y, std::int64_t begin, std::int64_t end,
                   std::int64_t depth, std::int64_t cols, Matrix& product,
                   const ScoreKernel& kernel) {
  kernel.multiply({x.row(begin).data(), x.cols()}, {y.row(0).data(), y.cols()}, end - begin, depth,
                  cols, product.row(begin).data(), product.cols());
}

}  // namespace

Matrix damped_walk(const Matrix& a, const Matrix* previous, double damping, std::int64_t degree,
                   const ScoreKernel& kernel) {
  if (damping == 0.0 || degree == 0) return a;
  const std::int64_t b = a.rows();
  Matrix state = previous != nullptr ? *previous : a;
  Matrix product(b, b);
  const bool lower = is_lower_triangular(a) && is_lower_triangular(state);
  for (std::int64_t step = 0; step < degree; ++step) {
    for_chunks(b, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t used = lower ? end : b;
      multiply_rows(state, a, begin, end, used, used, product, kernel);
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t j = 0; j < used; ++j) {
          product(i, j) = (1.0 - damping) * a(i, j) + damping * product(i, j);
        }
      }
    });
    std::swap(state, product);
  }
  return state;
}

Matrix product_walk(const Matrix& a, const Matrix* previous, const ScoreKernel& kernel) {
  const std::int64_t b = a.rows();
  Matrix state(b, b);
  const bool lower = previous != nullptr && is_lower_triangular(*previous);
  for_chunks(b, [&](std::int64_t begin, std::int64_t end) {
    if (previous != nullptr) {
      // Entries after the diagonal are dropped, so that they need not be computed.
      multiply_rows(*previous, a, begin, end, lower ? end : b, end, state, kernel);
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const std::span<double> row = state.row(i);
      if (previous == nullptr) std::copy_n(a.row(i).begin(), i + 1, row.begin());
      std::fill(row.begin() + i + 1, row.end(), 0.0);
      const double total = std::accumulate(row.begin(), row.begin() + i + 1, 0.0);
      if (total > 0.0) {
        for (double& x : row.first(static_cast<std::size_t>(i + 1))) x /= total;
      }
    }
  });
  return state;
}

}  // namespace sw::cpu
