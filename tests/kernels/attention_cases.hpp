#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention/problem.hpp"
#include "attention/selection.hpp"
#include "core/rng.hpp"
#include "core/tensor.hpp"

/// Random attention problems and selections, and the rounding error that single precision may make
/// on them: for the tests of every backend.
namespace sw::testing {

inline HeadsTensor random_tensor(SplitMix64& rng, DType dtype, std::int64_t heads,
                                 std::int64_t tokens, std::int64_t dim, double scale) {
  HeadsTensor x(dtype, heads, tokens, dim);
  std::vector<float> row(static_cast<std::size_t>(dim));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (float& value : row) value = static_cast<float>(scale * rng.normal());
      if (t % 17 == 3) row[0] = -0.0f;
      if (t % 19 == 5) row[1] = 1e-40f;  // denormal in f32
      convert_from_float(
          row.data(), dtype, dim,
          x.data() + (h * tokens + t) * dim * static_cast<std::int64_t>(dtype_size(dtype)));
    }
  }
  return x;
}

inline BlockSelection random_selection(SplitMix64& rng, const BlockGeometry& geometry,
                                       std::int64_t groups, bool token_parts) {
  BlockSelection selection(geometry, groups);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < geometry.rows(); ++r) {
      std::vector<std::int32_t> blocks;
      const std::uint64_t style = rng.below(4);  // only the diagonal, full, or a random share
      for (std::int64_t j = 0; j < geometry.first_row() + r; ++j) {
        if (style == 1 || (style > 1 && rng.below(3) == 0)) {
          blocks.push_back(static_cast<std::int32_t>(j));
        }
      }
      blocks.push_back(static_cast<std::int32_t>(geometry.first_row() + r));
      selection.append_row(blocks, std::vector<Part>(blocks.size(), Part::kScored));
    }
  }
  if (token_parts) {
    selection.set_token_parts(static_cast<std::int64_t>(rng.below(70)),
                              static_cast<std::int64_t>(rng.below(40)));
  }
  return selection;
}

/// Rows of blocks and single keys, with and without their own block.
inline BlockSelection random_mixed_selection(SplitMix64& rng, const BlockGeometry& geometry,
                                             std::int64_t groups) {
  BlockSelection selection(geometry, groups);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < geometry.rows(); ++r) {
      std::vector<std::int32_t> blocks;
      std::vector<std::int32_t> tokens;
      const std::int64_t own = geometry.first_row() + r;
      const std::uint64_t spacing = 1 + rng.below(8);  // of single keys; 1 keeps all
      for (std::int64_t j = 0; j <= own; ++j) {
        if (rng.below(3) == 0) {
          blocks.push_back(static_cast<std::int32_t>(j));
          continue;
        }
        const std::int64_t end = std::min((j + 1) * geometry.block, geometry.row_end(r));
        for (std::int64_t t = j * geometry.block; t < end; ++t) {
          if (t >= geometry.row_begin(r) || rng.below(spacing) == 0) {
            tokens.push_back(static_cast<std::int32_t>(t));
          }
        }
      }
      std::vector<Part> parts(blocks.size(), Part::kScored);
      std::vector<Part> token_parts;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        token_parts.push_back(static_cast<Part>(rng.below(4)));
      }
      selection.append_row(blocks, parts, tokens, token_parts);
    }
  }
  return selection;
}

/// Error bound of one output element and of the log-sum-exp, for logits of magnitude at most x:
/// a logit is a sum of `dim` f32 products, wrong by at most (dim + 2) u sum|q_i k_i| <= (dim + 2) u
/// x' with x' = the sum of magnitudes; typical rounding is the square root of that. Exponentials
/// carry the logit's absolute error plus 2e-7; sums over n keys add log2(n) + n/64 roundings.
/// Weights are relative errors of a convex combination of values, so that an output is wrong by at
/// most twice the weight error times max|v|.
inline double weight_error(double sum_of_magnitudes, std::int64_t dim, std::int64_t tokens) {
  const double u = 0x1p-24;
  return std::sqrt(static_cast<double>(dim) + 2.0) * 4.0 * u * sum_of_magnitudes + 4e-7 +
         (64.0 + static_cast<double>(tokens) / 64.0) * u;
}

inline double largest_logit_magnitude(const AttentionProblem& p) {
  double largest = 0.0;
  std::vector<float> q(static_cast<std::size_t>(p.head_dim()));
  std::vector<float> k(q.size());
  for (std::int64_t h = 0; h < p.num_heads(); ++h) {
    for (std::int64_t i = 0; i < p.queries(); ++i) {
      p.q.load_row(h, i, q.data());
      for (std::int64_t t = 0; t < p.tokens(); ++t) {
        p.k.load_row(h / p.group(), t, k.data());
        double sum = 0.0;
        for (std::size_t j = 0; j < q.size(); ++j) sum += std::fabs(double{q[j]} * k[j]);
        largest = std::max(largest, sum * p.scale());
      }
    }
  }
  return largest;
}

}  // namespace sw::testing
