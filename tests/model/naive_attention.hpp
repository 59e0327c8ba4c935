#pragma once

#include <cmath>
#include <vector>

#include "attention/backend.hpp"

namespace sw::test {

/// Dense causal attention straight from its definition, in double.
inline void naive_attention(const AttentionProblem& p, AttentionOutput& output) {
  output.reserve(p);
  const auto dim = static_cast<std::size_t>(p.head_dim());
  std::vector<float> q(dim), k(dim), v(dim);
  for (std::int64_t h = 0; h < p.num_heads(); ++h) {
    for (std::int64_t t = 0; t < p.queries(); ++t) {
      p.q.load_row(h, t, q.data());
      double total = 0.0;
      std::vector<double> sum(dim, 0.0);
      for (std::int64_t j = 0; j <= p.query_begin() + t; ++j) {
        p.k.load_row(h / p.group(), j, k.data());
        p.v.load_row(h / p.group(), j, v.data());
        double logit = 0.0;
        for (std::size_t i = 0; i < dim; ++i) logit += double{q[i]} * k[i];
        const double weight = std::exp(logit * p.scale());
        total += weight;
        for (std::size_t i = 0; i < dim; ++i) sum[i] += weight * v[i];
      }
      for (std::size_t i = 0; i < dim; ++i) {
        output.out.row<float>(h, t)[i] = static_cast<float>(sum[i] / total);
      }
    }
  }
}

}  // namespace sw::test
