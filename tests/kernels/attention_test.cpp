// The reference backend against the goldens of an independent implementation, and every CPU path
// against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/reference/backend.hpp"
#include "support/golden_file.hpp"

namespace sw {
namespace {

using nlohmann::json;

BlockSelection selection_of(const json& given, const BlockGeometry& geometry) {
  BlockSelection selection(geometry, given.at("groups"));
  for (std::size_t g = 0; g < given.at("rows").size(); ++g) {
    for (std::size_t r = 0; r < given.at("rows")[g].size(); ++r) {
      const auto blocks = given.at("rows")[g][r].get<std::vector<std::int32_t>>();
      std::vector<Part> parts;
      for (char tag : given.at("parts")[g][r].get<std::string>()) {
        parts.push_back(static_cast<Part>(std::string("wskf").find(tag)));
      }
      selection.append_row(blocks, parts);
    }
  }
  selection.set_token_parts(given.at("token_window"), given.at("token_sink"));
  return selection;
}

TEST(ReferenceAttention, MatchesTheGoldens) {
  const auto backend = make_reference_backend();
  const json file = testing::golden_file("metrics.json");
  ASSERT_GE(file.at("cases").size(), 10u);
  for (const json& c : file.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const std::int64_t n = c.at("shape").at("tokens");
    const std::int64_t begin = c.at("decode").get<bool>() ? n - 1 : 0;
    const testing::GoldenLayer data(c, c.at("layer"), n);
    const AttentionProblem problem = data.problem(c.at("layer"), begin, n);
    const BlockGeometry geometry = problem.geometry(c.at("shape").at("block"));
    AttentionOutput dense;
    AttentionOutput sparse;
    BlockMass mass;
    backend->attend_dense(problem, geometry, dense, mass);
    backend->attend(problem, selection_of(c.at("selection"), geometry), sparse);
    const json& expected = c.at("expected");
    for (std::int64_t h = 0; h < problem.num_heads(); ++h) {
      for (std::int64_t t = 0; t < problem.queries(); ++t) {
        const double want = begin > 0 ? expected.at("lse")[h] : expected.at("lse")[h][t];
        EXPECT_NEAR(dense.lse[h * problem.queries() + t], want, 1e-10);
      }
    }
    for (const json& row : expected.at("outputs")) {
      const std::int64_t t = row.at("token").get<std::int64_t>() - begin;
      for (int j = 0; j < 4; ++j) {
        // Outputs are stored as f32, of magnitude up to 2.
        EXPECT_NEAR(dense.out.row<float>(row.at("head"), t)[j], row.at("dense")[j].get<double>(),
                    2.0 * 0x1p-24);
        EXPECT_NEAR(sparse.out.row<float>(row.at("head"), t)[j], row.at("sparse")[j].get<double>(),
                    2.0 * 0x1p-24);
      }
    }
    if (!expected.contains("block_mass")) continue;
    for (std::int64_t h = 0; h < problem.num_heads(); ++h) {
      for (std::int64_t i = 0; i < geometry.rows(); ++i) {
        for (std::int64_t j = 0; j < geometry.key_blocks(); ++j) {
          // f32 sums of at most B^2 = 256 terms that total at most 1.
          EXPECT_NEAR(mass.row(h, i)[j], expected.at("block_mass")[h][i][j].get<double>(),
                      256 * 0x1p-24);
        }
      }
    }
  }
}

HeadsTensor random_tensor(SplitMix64& rng, DType dtype, std::int64_t heads, std::int64_t tokens,
                          std::int64_t dim, double scale) {
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

BlockSelection random_selection(SplitMix64& rng, const BlockGeometry& geometry, std::int64_t groups,
                                bool token_parts) {
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

class CpuPathTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    try {
      backend_ = make_cpu_backend(GetParam());
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::kUnsupported);
      GTEST_SKIP() << error.what();
    }
  }
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_ = make_reference_backend();
};

TEST_P(CpuPathTest, IsTheOneThatRuns) {
  EXPECT_EQ(backend_->detail().rfind(std::string(GetParam()) + ",", 0), 0u) << backend_->detail();
}

/// Error bound of one output element and of the log-sum-exp, for logits of magnitude at most x:
/// a logit is a sum of `dim` f32 products, wrong by at most (dim + 2) u sum|q_i k_i| <= (dim + 2) u
/// x' with x' = the sum of magnitudes; typical rounding is the square root of that. Exponentials
/// carry the logit's absolute error plus 2e-7; sums over n keys add log2(n) + n/64 roundings.
/// Weights are relative errors of a convex combination of values, so that an output is wrong by at
/// most twice the weight error times max|v|.
double weight_error(double sum_of_magnitudes, std::int64_t dim, std::int64_t tokens) {
  const double u = 0x1p-24;
  return std::sqrt(static_cast<double>(dim) + 2.0) * 4.0 * u * sum_of_magnitudes + 4e-7 +
         (64.0 + static_cast<double>(tokens) / 64.0) * u;
}

/// What bf16 arithmetic adds (tile.hpp): exponentials wrong by 3.1e-6, and weights rounded to 8 bits
/// for the product with V only.
constexpr double kBf16Exponential = 3.1e-6;
constexpr double kBf16Weight = 0x1p-9;

double largest_logit_magnitude(const AttentionProblem& p) {
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

TEST_P(CpuPathTest, AgreesWithTheReference) {
  SplitMix64 rng(42);
  for (std::int64_t dim = 8; dim <= 256; dim += 8) {
    for (const double logit_scale : {0.0, 1.0, 1e4}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", logits " + std::to_string(logit_scale));
      static constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};
      const DType dtype = kTypes[rng.below(3)];
      const std::int64_t kv_heads = 1 + static_cast<std::int64_t>(rng.below(2));
      const std::int64_t heads = kv_heads * (1 + static_cast<std::int64_t>(rng.below(5)));
      const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(150));
      const bool decode = rng.below(3) == 0;
      const std::int64_t begin = decode ? tokens - 1 : 0;
      const std::int64_t block = std::int64_t{8} << rng.below(5);
      // q.k / sqrt(d) has standard deviation s_q s_k.
      const double each = std::sqrt(logit_scale);
      const HeadsTensor q = random_tensor(rng, dtype, heads, tokens, dim, each);
      const HeadsTensor k = random_tensor(rng, dtype, kv_heads, tokens, dim, each);
      const HeadsTensor v = random_tensor(rng, dtype, kv_heads, tokens, dim, 1.0);
      const AttentionProblem problem{q.view().tokens_slice(begin, tokens), k.view(), v.view(), 0};
      const BlockGeometry geometry = problem.geometry(block);
      const std::int64_t groups[] = {1, kv_heads, heads};
      const BlockSelection selection =
          random_selection(rng, geometry, groups[rng.below(3)], rng.below(2) == 0);

      AttentionOutput want;
      AttentionOutput got;
      const bool bf16 =
          dtype == DType::kBf16 && cpu::find_isa(GetParam()).bf16_tile != nullptr;
      const double tolerance = weight_error(largest_logit_magnitude(problem), dim, tokens) +
                               (bf16 ? kBf16Exponential : 0.0);
      // |v| stays below 6 in samples of this size.
      const double out_tolerance = 12.0 * tolerance + (bf16 ? 6.0 * kBf16Weight : 0.0);
      const auto compare = [&] {
        for (std::size_t i = 0; i < want.lse.size(); ++i) {
          ASSERT_NEAR(got.lse[i], want.lse[i], tolerance);
        }
        for (std::int64_t i = 0; i < want.out.elements(); ++i) {
          ASSERT_NEAR(got.out.row<float>(0, 0)[i], want.out.row<float>(0, 0)[i], out_tolerance);
        }
      };
      reference_->attend(problem, selection, want);
      std::fill_n(got.out.row<float>(0, 0), got.out.elements(), std::nanf(""));
      backend_->attend(problem, selection, got);
      compare();
      BlockMass want_mass;
      BlockMass got_mass;
      reference_->attend_dense(problem, geometry, want, want_mass);
      backend_->attend_dense(problem, geometry, got, got_mass);
      compare();
      for (std::size_t i = 0; i < want_mass.values.size(); ++i) {
        ASSERT_NEAR(got_mass.values[i], want_mass.values[i], 2.0 * tolerance);
      }
    }
  }
}

TEST_P(CpuPathTest, ResultsDoNotDependOnTheThreadCount) {
  SplitMix64 rng(7);
  const HeadsTensor q = random_tensor(rng, DType::kBf16, 6, 333, 64, 1.0);
  const HeadsTensor k = random_tensor(rng, DType::kBf16, 2, 333, 64, 1.0);
  const HeadsTensor v = random_tensor(rng, DType::kBf16, 2, 333, 64, 1.0);
  const AttentionProblem problem{q.view(), k.view(), v.view(), 3};
  const BlockGeometry geometry = problem.geometry(32);
  const int before = num_threads();
  std::vector<AttentionOutput> outputs(3);
  std::vector<BlockMass> masses(3);
  std::vector<Matrix> transitions;
  for (int i = 0; i < 3; ++i) {
    set_num_threads(i == 2 ? 5 : i + 1);
    backend_->attend_dense(problem, geometry, outputs[i], masses[i]);
    SketchParams params;
    params.block = 32;
    params.key_pool = 8;
    transitions.push_back(backend_->transition(problem, params, nullptr));
  }
  set_num_threads(before);
  for (int i = 1; i < 3; ++i) {
    EXPECT_EQ(outputs[i].lse, outputs[0].lse);
    EXPECT_EQ(masses[i].values, masses[0].values);
    EXPECT_TRUE(std::equal(outputs[0].out.data(), outputs[0].out.data() + outputs[0].out.bytes(),
                           outputs[i].out.data()));
    EXPECT_TRUE(std::equal(transitions[0].values().begin(), transitions[0].values().end(),
                           transitions[i].values().begin()));
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuPathTest, ::testing::Values("portable", "avx2", "avx512", "avx512_bf16"),
                         [](const auto& isa) { return std::string(isa.param); });

TEST(CpuBackend, RefusesUnknownInstructionSets) {
  EXPECT_THROW(make_cpu_backend("avx1024"), Error);
}

TEST(Backends, RefuseShapesThatDoNotBelongTogether) {
  const HeadsTensor q(DType::kF32, 3, 4, 8);
  const HeadsTensor k(DType::kF32, 2, 4, 8);
  const AttentionProblem problem{q.view(), k.view(), k.view(), 0};
  AttentionOutput output;
  for (const auto& backend : {make_reference_backend(), make_cpu_backend()}) {
    EXPECT_THROW(backend->attend(problem, BlockSelection::dense({64, 0, 4}), output), Error);
  }
}

}  // namespace
}  // namespace sw
