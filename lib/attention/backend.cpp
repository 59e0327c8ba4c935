#include "attention/backend.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "core/error.hpp"
#include "core/parallel.hpp"

namespace sw {
namespace {

/// x y, both square, fp64, rows in parallel.
Matrix multiply(const Matrix& x, const Matrix& y) {
  Matrix product(x.rows(), y.cols());
  parallel_for(x.rows(), [&](std::int64_t i, int) {
    const std::span<double> out = product.row(i);
    for (std::int64_t k = 0; k < x.cols(); ++k) {
      const double factor = x(i, k);
      if (factor == 0.0) continue;
      const double* row = y.row(k).data();
      for (std::size_t j = 0; j < out.size(); ++j) out[j] += factor * row[j];
    }
  });
  return product;
}

}  // namespace

void AttentionOutput::reserve(const AttentionProblem& problem) {
  kept.reset();
  if (out.heads() != problem.num_heads() || out.tokens() != problem.queries() ||
      out.dim() != problem.head_dim()) {
    out = HeadsTensor();  // the old storage goes before the new one is asked for
    out = HeadsTensor(DType::kF32, problem.num_heads(), problem.queries(), problem.head_dim());
  }
  lse.resize(static_cast<std::size_t>(problem.num_heads() * problem.queries()));
}

OutputComparison compare_outputs(const AttentionOutput& dense, const AttentionOutput& sparse,
                                 const BlockGeometry& geometry) {
  const std::int64_t dim = dense.out.dim();
  for (const HeadsTensor* x : {&dense.out, &sparse.out}) {
    if (x->heads() != dense.out.heads() || x->tokens() != geometry.tokens - geometry.query_begin ||
        x->dim() != dim) {
      throw std::invalid_argument("comparison of outputs of another shape");
    }
  }
  OutputComparison comparison(dense.out.heads(), geometry.rows());
  parallel_for(comparison.heads, [&](std::int64_t h, int) {
    for (std::int64_t r = 0; r < comparison.rows; ++r) {
      OutputSums& sums = comparison.values[static_cast<std::size_t>(h * comparison.rows + r)];
      for (std::int64_t p = geometry.row_begin(r); p < geometry.row_end(r); ++p) {
        const float* a = dense.out.row<float>(h, p - geometry.query_begin);
        const float* b = sparse.out.row<float>(h, p - geometry.query_begin);
        for (std::int64_t x = 0; x < dim; ++x) {
          const double da = a[x];
          const double db = b[x];
          sums.difference += (da - db) * (da - db);
          sums.dense += da * da;
          sums.sparse += db * db;
          sums.product += da * db;
        }
      }
    }
  });
  return comparison;
}

void BlockMass::reserve(std::int64_t num_heads, const BlockGeometry& geometry) {
  heads = num_heads;
  rows = geometry.rows();
  cols = geometry.key_blocks();
  values.assign(static_cast<std::size_t>(heads * rows * cols), 0.0f);
}

void TokenPools::append(const HeadsView& x) {
  const std::int64_t total = tokens_ + x.tokens;
  const std::int64_t count = (total + pool_ - 1) / pool_;
  parallel_for(heads_, [&](std::int64_t h, int) {
    auto& sums = sums_[static_cast<std::size_t>(h)];
    sums.resize(static_cast<std::size_t>(count * dim_), 0.0);
    std::vector<float> row(static_cast<std::size_t>(dim_));
    for (std::int64_t t = 0; t < x.tokens; ++t) {
      x.load_row(h, t, row.data());
      double* sum = sums.data() + (tokens_ + t) / pool_ * dim_;
      for (std::int64_t j = 0; j < dim_; ++j) sum[j] += row[j];
    }
  });
  tokens_ = total;
}

void TokenPools::mean(std::int64_t head, std::int64_t u, bool partial_mean, double* out) const {
  const double* sum = sums_[static_cast<std::size_t>(head)].data() + u * dim_;
  const std::int64_t present = std::min(pool_, tokens_ - u * pool_);
  const auto divisor = static_cast<double>(partial_mean ? present : pool_);
  for (std::int64_t j = 0; j < dim_; ++j) out[j] = sum[j] / divisor;
}

OutputComparison Backend::compare(const AttentionOutput& dense, const AttentionOutput& sparse,
                                  const BlockGeometry& geometry) const {
  return compare_outputs(dense, sparse, geometry);
}

Matrix Backend::damped_walk(const Matrix& a, const Matrix* previous, double damping,
                            std::int64_t degree) const {
  if (damping == 0.0 || degree == 0) return a;
  Matrix state = previous ? *previous : a;
  for (std::int64_t step = 0; step < degree; ++step) {
    state = multiply(state, a);
    for (std::int64_t i = 0; i < a.rows(); ++i) {
      for (std::int64_t j = 0; j < a.cols(); ++j) {
        state(i, j) = (1.0 - damping) * a(i, j) + damping * state(i, j);
      }
    }
  }
  return state;
}

Matrix Backend::product_walk(const Matrix& a, const Matrix* previous) const {
  Matrix state = previous ? multiply(*previous, a) : a;
  for (std::int64_t i = 0; i < a.rows(); ++i) {
    const std::span<double> row = state.row(i);
    std::fill(row.begin() + i + 1, row.end(), 0.0);
    const double total = std::accumulate(row.begin(), row.end(), 0.0);
    if (total > 0.0) {
      for (double& x : row) x /= total;
    }
  }
  return state;
}

void Backend::add_row_product(std::span<const double> x, const float* m, std::int64_t stride,
                              std::span<double> y) const {
  for (const double factor : x) {
    for (std::size_t j = 0; j < y.size(); ++j) y[j] += factor * double{m[j]};
    m += stride;
  }
}

double Backend::exponentials(std::span<double> x, double largest) const {
  double sum = 0.0;
  for (double& value : x) sum += value = std::exp(value - largest);
  return sum;
}

void require_supported(const Backend& backend, const AttentionProblem& problem) {
  if (const auto reason = backend.unsupported(problem)) {
    throw Error(ErrorKind::kUnsupported,
                "the backend '" + backend.name() + "' cannot compute this attention: " + *reason,
                "use another --backend");
  }
}

BlockScores scores_of_mass(const BlockMass& mass, std::int64_t groups) {
  BlockScores scores{groups, Matrix(groups * mass.rows, mass.cols)};
  const std::int64_t set_heads = mass.heads / groups;
  for (std::int64_t h = 0; h < mass.heads; ++h) {
    for (std::int64_t r = 0; r < mass.rows; ++r) {
      const auto row = mass.row(h, r);
      const auto sum = scores.values.row(h / set_heads * mass.rows + r);
      for (std::size_t j = 0; j < row.size(); ++j) sum[j] += row[j];
    }
  }
  return scores;
}

}  // namespace sw
