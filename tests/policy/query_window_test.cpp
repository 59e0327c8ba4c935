#include "policy/query_window.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rng.hpp"
#include "gtest/gtest.h"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"

// The window, advanced token by token, against the definition computed anew from all keys and
// queries (sketchwalk.md section 5, steps 1 and 2).

namespace sw {
namespace {

constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kKvHeads = 2;
constexpr std::int64_t kDim = 16;

HeadsTensor random_tensor(std::int64_t heads, std::int64_t tokens, std::uint64_t seed,
                          double size) {
  SplitMix64 rng(seed);
  HeadsTensor x(DType::kF32, heads, tokens, kDim);
  for (std::int64_t i = 0; i < x.elements(); ++i) {
    x.row<float>(0, 0)[i] = static_cast<float>(size * rng.normal());
  }
  return x;
}

struct Expected {
  std::vector<double> row;
  double largest_terms;  // of a logit: the sum of the magnitudes that are added up
};

/// Step 2 for the queries [begin, end) over the first `tokens` keys.
Expected definition(const HeadsTensor& q, const HeadsTensor& k, std::int64_t begin,
                    std::int64_t end, std::int64_t tokens, const SketchParams& params) {
  const Sketch sketch(params, 0, kDim);
  const std::int64_t pool = params.tokens_per_key();
  const std::int64_t pools = (tokens + pool - 1) / pool;
  std::vector<double> row(static_cast<std::size_t>((tokens + params.block - 1) / params.block));
  double largest_terms = 0.0;
  for (std::int64_t h = 0; h < kHeads; ++h) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::vector<double> query(q.row<float>(h, t), q.row<float>(h, t) + kDim);
      std::vector<double> yq(static_cast<std::size_t>(sketch.dim()));
      sketch.apply(query.data(), yq.data());
      std::vector<double> logits;
      for (std::int64_t u = 0; u < pools; ++u) {
        const std::int64_t last = std::min(tokens, (u + 1) * pool);
        std::vector<double> mean(kDim, 0.0), yk(yq.size());
        for (std::int64_t s = u * pool; s < last; ++s) {
          for (std::int64_t j = 0; j < kDim; ++j) {
            mean[j] += k.row<float>(h / (kHeads / kKvHeads), s)[j];
          }
        }
        for (double& x : mean) {
          x /= static_cast<double>(params.partial_mean ? last - u * pool : pool);
        }
        sketch.apply(mean.data(), yk.data());
        double dot = 0.0;
        double terms = 0.0;
        for (std::size_t i = 0; i < yq.size(); ++i) {
          dot += yq[i] * yk[i];
          terms += std::fabs(yq[i] * yk[i]);
        }
        largest_terms = std::max(largest_terms, terms * sketch.logit_scale() / params.temperature);
        logits.push_back(dot * sketch.logit_scale() / params.temperature);
      }
      const double largest = *std::max_element(logits.begin(), logits.end());
      double total = 0.0;
      for (const double x : logits) total += std::exp(x - largest);
      for (std::int64_t u = 0; u < pools; ++u) {
        row[u * pool / params.block] += std::exp(logits[u] - largest) / total;
      }
    }
  }
  double total = 0.0;
  for (const double x : row) total += x;
  for (double& x : row) x /= total;
  return {row, largest_terms};
}

/// A prefill of `first` tokens, then one token at a time, or `stride` keys at once.
void check(const SketchParams& params, double size, std::int64_t first, std::int64_t stride,
           const Backend& backend) {
  constexpr std::int64_t kTokens = 161;
  constexpr std::int64_t kWindow = 5;
  const HeadsTensor q = random_tensor(kHeads, kTokens, 1, 1.0);
  const HeadsTensor k = random_tensor(kKvHeads, kTokens, 2, size);
  QueryWindow window(params, 0, kHeads, kKvHeads, kDim, kWindow);
  window.add_keys(k.view().tokens_slice(0, first), backend);
  window.add_queries(q.view().tokens_slice(0, first), backend);
  std::int64_t queries = first;
  for (std::int64_t n = first;; n = std::min(kTokens, n + stride)) {
    if (n > first) {
      window.add_keys(k.view().tokens_slice(window.tokens(), n), backend);
      window.add_queries(q.view().tokens_slice(queries, n), backend);
      queries = n;
    }
    ASSERT_EQ(window.tokens(), n);
    const std::vector<double> got = window.block_row(backend);
    const auto [expected, largest_terms] =
        definition(q, k, std::max<std::int64_t>(0, queries - kWindow), queries, n, params);
    ASSERT_EQ(got.size(), expected.size());
    // Both factors of a logit and each exponential are stored with a relative error of 2^-24; an
    // error of all logits by e at most changes a share of the softmax by the factor e^(2 e). Shares
    // below the range of f32 count as zero.
    const double tolerance = std::expm1(4.0 * 0x1p-24 * largest_terms) + 0x1p-24 + 1e-12;
    for (std::size_t j = 0; j < got.size(); ++j) {
      ASSERT_NEAR(got[j], expected[j], tolerance * expected[j] + 0x1p-120)
          << "block " << j << " of " << n;
    }
    if (n == kTokens) return;
  }
}

/// With the plain loops of the base class, and with those of this CPU.
void check(const SketchParams& params, double size, std::int64_t first, std::int64_t stride = 1) {
  check(params, size, first, stride, *make_reference_backend());
  check(params, size, first, stride, *make_cpu_backend());
}

SketchParams small_blocks() {
  SketchParams params;
  params.block = 8;
  params.temperature = 4.0;
  return params;
}

TEST(QueryWindow, EqualsTheDefinition) {
  for (const std::int64_t first : {1, 3, 7, 8, 9, 16, 40}) check(small_blocks(), 1.0, first);
}

TEST(QueryWindow, EqualsTheDefinitionWithItsOptions) {
  SketchParams params = small_blocks();
  params.partial_mean = true;
  check(params, 1.0, 5);
  for (const std::int64_t pool : {1, 2, 4}) {
    params.key_pool = pool;
    check(params, 1.0, 6);
  }
  params = small_blocks();
  params.exact = true;
  check(params, 1.0, 3);
  params = small_blocks();
  params.sketch_dim = 5;
  check(params, 1.0, 3);
}

TEST(QueryWindow, SeveralTokensAtOnceFinishSeveralPools) {
  SketchParams params = small_blocks();
  params.key_pool = 2;
  check(params, 1.0, 3, 7);
  check(small_blocks(), 1.0, 3, 20);
}

TEST(QueryWindow, HugeLogitsNeitherOverflowNorGetLost) {
  SketchParams params = small_blocks();
  params.temperature = 0.05;
  params.partial_mean = true;  // the newest pool's logit swings from step to step
  check(params, 100.0, 2);
}

}  // namespace
}  // namespace sw
