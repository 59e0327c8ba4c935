#include "attention/pooled.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"

namespace sw {
namespace {

/// x^exponent, by multiplications where the exponent is a small integer.
double power(double x, double exponent) {
  if (exponent != std::floor(exponent) || exponent < 1.0 || exponent > 64.0) {
    return std::pow(x, exponent);
  }
  double result = 1.0;
  for (auto n = static_cast<unsigned>(exponent); n != 0; n >>= 1, x *= x) {
    if ((n & 1) != 0) result *= x;
  }
  return result;
}

}  // namespace

PooledVectors mean_over_heads(const PooledVectors& x) {
  PooledVectors mean{1, x.count, x.dim, {}};
  const auto size = static_cast<std::size_t>(x.count * x.dim);
  mean.values.assign(size, 0.0);
  for (std::size_t i = 0; i < x.values.size(); ++i) mean.values[i % size] += x.values[i];
  for (double& value : mean.values) value /= static_cast<double>(x.heads);
  return mean;
}

PooledVectors transform(const PooledVectors& x, const Sketch& sketch) {
  PooledVectors y{x.heads, x.count, sketch.dim(), {}};
  y.values.resize(static_cast<std::size_t>(y.heads * y.count * y.dim));
  parallel_for(x.heads * x.count, [&](std::int64_t index, int) {
    sketch.apply(x.row(index / x.count, index % x.count), y.row(index / x.count, index % x.count));
  });
  return y;
}

void finish_transition(Matrix& a, const SketchParams& params, std::int64_t heads,
                       std::int64_t count) {
  const std::int64_t queries_per_block = params.block / params.tokens_per_query();
  parallel_for(a.rows(), [&](std::int64_t i, int) {
    const std::int64_t queries =
        std::min((i + 1) * queries_per_block, count) - i * queries_per_block;
    const auto terms = static_cast<double>(heads * queries);
    double total = 0.0;
    for (double& x : a.row(i)) total += x = power(x / terms, params.sharpness);
    if (params.normalize) {
      for (double& x : a.row(i)) x /= total;
    }
  });
}

}  // namespace sw
