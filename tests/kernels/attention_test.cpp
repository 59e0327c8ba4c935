// The reference backend against the goldens of an independent implementation, and every CPU path
// against the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "kernels/attention_cases.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/reference/backend.hpp"
#include "support/golden_file.hpp"

namespace sw {
namespace {

using nlohmann::json;

using testing::largest_logit_magnitude;
using testing::random_mixed_selection;
using testing::random_selection;
using testing::random_tensor;
using testing::weight_error;

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

// A block is the list of its keys: the same attention, whichever way a row says it.
TEST(ReferenceAttention, SingleKeysAreTheBlocksTheyFill) {
  SplitMix64 rng(47);
  const auto backend = make_reference_backend();
  for (int trial = 0; trial < 20; ++trial) {
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(60));
    const std::int64_t begin =
        static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(tokens)));
    const HeadsTensor q = random_tensor(rng, DType::kF32, 2, tokens - begin, 16, 1.0);
    const HeadsTensor k = random_tensor(rng, DType::kF32, 1, tokens, 16, 1.0);
    const HeadsTensor v = random_tensor(rng, DType::kF32, 1, tokens, 16, 1.0);
    const AttentionProblem problem{q.view(), k.view(), v.view(), 0};
    const BlockGeometry geometry = problem.geometry(8);
    const BlockSelection blocks = random_selection(rng, geometry, 2, false);
    BlockSelection singles(geometry, 2);
    for (std::int64_t g = 0; g < 2; ++g) {
      for (std::int64_t r = 0; r < geometry.rows(); ++r) {
        std::vector<std::int32_t> keys;
        for (const std::int32_t j : blocks.blocks(g, r)) {
          const std::int64_t end = std::min((j + 1) * geometry.block, geometry.row_end(r));
          for (std::int64_t t = j * geometry.block; t < end; ++t) {
            keys.push_back(static_cast<std::int32_t>(t));
          }
        }
        singles.append_row({}, {}, keys, std::vector<Part>(keys.size(), Part::kScored));
      }
    }
    EXPECT_EQ(singles.count().kept, blocks.count().kept);
    AttentionOutput want;
    AttentionOutput got;
    backend->attend(problem, blocks, want);
    backend->attend(problem, singles, got);
    EXPECT_EQ(got.lse, want.lse);
    for (std::int64_t i = 0; i < want.out.elements(); ++i) {
      ASSERT_EQ(got.out.row<float>(0, 0)[i], want.out.row<float>(0, 0)[i]);
    }
  }
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

/// What bf16 arithmetic adds (tile.hpp): exponentials wrong by 3.1e-6, and weights rounded to 8
/// bits for the product with V only.
constexpr double kBf16Exponential = 3.1e-6;
constexpr double kBf16Weight = 0x1p-9;

/// Relative error of a softmax weight where only outputs are asked for: AMX weights are rounded for
/// their sums too (strip_amx_bf16.cpp), those of AVX512-BF16 once for the product with V.
double largest_weight_error(const cpu::Isa& isa, DType dtype) {
  if (!isa.has_bf16() || dtype != DType::kBf16) return 1e-5;
  return isa.bf16_strip != nullptr ? 0.0059 : 0x1p-8;
}

/// A random problem and selection, computed by the path under test and by the reference.
struct Comparison {
  const Backend& backend;
  const Backend& reference;
  const cpu::Isa& isa;
  SplitMix64& rng;

  void run(DType dtype, std::int64_t dim, double logit_scale) {
    const std::int64_t kv_heads = 1 + static_cast<std::int64_t>(rng.below(2));
    const std::int64_t heads = kv_heads * (1 + static_cast<std::int64_t>(rng.below(6)));
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(150));
    // A whole prefill, a decode step, or a chunk of a prefill.
    const std::uint64_t kind = rng.below(3);
    const std::int64_t begin =
        kind == 0   ? 0
        : kind == 1 ? tokens - 1
                    : static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(tokens)));
    const std::int64_t block = std::int64_t{8} << rng.below(5);
    // q.k / sqrt(d) has standard deviation s_q s_k.
    const double each = std::sqrt(logit_scale);
    const HeadsTensor q = random_tensor(rng, dtype, heads, tokens, dim, each);
    const HeadsTensor k = random_tensor(rng, dtype, kv_heads, tokens, dim, each);
    const HeadsTensor v = random_tensor(rng, dtype, kv_heads, tokens, dim, 1.0);
    const AttentionProblem problem{q.view().tokens_slice(begin, tokens), k.view(), v.view(), 0};
    const std::int64_t groups[] = {1, kv_heads, heads};
    const BlockSelection selection =
        random_selection(rng, problem.geometry(block), groups[rng.below(3)], rng.below(2) == 0);
    compare(problem, selection);
    compare(problem, random_mixed_selection(rng, problem.geometry(block), groups[rng.below(3)]));
  }

  void compare(const AttentionProblem& problem, const BlockSelection& selection) const {
    const std::int64_t dim = problem.head_dim();
    const bool bf16 = problem.k.dtype == DType::kBf16 && isa.has_bf16();
    const double tolerance = weight_error(largest_logit_magnitude(problem), dim, problem.tokens()) +
                             (bf16 ? kBf16Exponential : 0.0);
    // |v| stays below 6 in samples of this size.
    const double out_tolerance = 12.0 * tolerance + (bf16 ? 6.0 * kBf16Weight : 0.0);
    AttentionOutput want;
    AttentionOutput got;
    const auto compare_outputs = [&] {
      for (std::size_t i = 0; i < want.lse.size(); ++i) {
        ASSERT_NEAR(got.lse[i], want.lse[i], tolerance);
      }
      for (std::int64_t i = 0; i < want.out.elements(); ++i) {
        ASSERT_NEAR(got.out.row<float>(0, 0)[i], want.out.row<float>(0, 0)[i], out_tolerance);
      }
    };
    reference.attend(problem, selection, want);
    got.reserve(problem);
    std::fill_n(got.out.row<float>(0, 0), got.out.elements(), std::nanf(""));
    backend.attend(problem, selection, got);
    compare_outputs();
    // Without sums of exact weights: an output is a convex combination of values whose weights are
    // wrong by a relative e at most, and differs by sum p e (v - out) / (1 - e) <= 12 e / (1 - e).
    AttentionOutput quick;
    quick.out_only = true;
    quick.reserve(problem);
    std::fill_n(quick.out.row<float>(0, 0), quick.out.elements(), std::nanf(""));
    backend.attend(problem, selection, quick);
    const double weight = bf16 ? largest_weight_error(isa, DType::kBf16) : 0.0;
    for (std::int64_t i = 0; i < want.out.elements(); ++i) {
      ASSERT_NEAR(quick.out.row<float>(0, 0)[i], want.out.row<float>(0, 0)[i],
                  12.0 * (tolerance + weight / (1.0 - weight)));
    }
    BlockMass want_mass;
    BlockMass got_mass;
    reference.attend_dense(problem, selection.geometry(), want, want_mass);
    backend.attend_dense(problem, selection.geometry(), got, got_mass);
    compare_outputs();
    for (std::size_t i = 0; i < want_mass.values.size(); ++i) {
      ASSERT_NEAR(got_mass.values[i], want_mass.values[i], 2.0 * tolerance);
    }
  }
};

constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

TEST_P(CpuPathTest, AgreesWithTheReference) {
  SplitMix64 rng(42);
  Comparison comparison{*backend_, *reference_, cpu::find_isa(GetParam()), rng};
  static constexpr double kLogitScales[] = {0.0, 1.0, 1e4};
  for (std::int64_t dim = 8; dim <= 256; dim += 8) {
    for (int type = 0; type < 3; ++type) {
      const double logit_scale = kLogitScales[(dim / 8 + type) % 3];
      SCOPED_TRACE(std::string(dtype_name(kTypes[type])) + ", dim " + std::to_string(dim) +
                   ", logits " + std::to_string(logit_scale));
      comparison.run(kTypes[type], dim, logit_scale);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(CpuPathTest, AgreesWithTheReferenceAtDimsThatFillNoVector) {
  SplitMix64 rng(43);
  Comparison comparison{*backend_, *reference_, cpu::find_isa(GetParam()), rng};
  for (const std::int64_t dim : {1, 2, 7, 20, 33, 65, 79}) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(std::string(dtype_name(dtype)) + ", dim " + std::to_string(dim));
      comparison.run(dtype, dim, 1.0);
      if (HasFatalFailure()) return;
    }
  }
}

/// Tensors as [tokens, heads, dim], with not-a-number in the gaps between the rows of a head.
TEST_P(CpuPathTest, ReadsNothingBetweenTheRowsOfAStridedTensor) {
  SplitMix64 rng(44);
  const Comparison comparison{*backend_, *reference_, cpu::find_isa(GetParam()), rng};
  constexpr std::int64_t kTokens = 77;
  constexpr std::int64_t kHeads = 2;
  constexpr std::int64_t kDim = 40;
  for (const DType dtype : kTypes) {
    const HeadsTensor dense = random_tensor(rng, dtype, kHeads, kTokens, kDim, 1.0);
    const std::size_t row_bytes = kDim * dtype_size(dtype);
    std::vector<std::byte> storage(kTokens * kHeads * 2 * row_bytes, std::byte{0xff});
    HeadsView strided = dense.view();
    strided.data = storage.data();
    strided.head_stride = 2 * kDim;
    strided.token_stride = kHeads * 2 * kDim;
    for (std::int64_t h = 0; h < kHeads; ++h) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        std::copy_n(static_cast<const std::byte*>(dense.view().row(h, t)), row_bytes,
                    const_cast<std::byte*>(static_cast<const std::byte*>(strided.row(h, t))));
      }
    }
    for (const std::int64_t begin : {std::int64_t{0}, kTokens - 1}) {
      const AttentionProblem problem{strided.tokens_slice(begin, kTokens), strided, strided, 0};
      comparison.compare(problem, random_selection(rng, problem.geometry(16), 1, false));
      comparison.compare(problem, random_mixed_selection(rng, problem.geometry(16), 1));
    }
  }
}

/// bf16 arithmetic shows itself by the rounded weights, and is for bf16 tensors alone.
TEST_P(CpuPathTest, UsesBf16ArithmeticForBf16TensorsOnly) {
  const bool has_bf16 = std::string(GetParam()).ends_with("_bf16");
  ASSERT_EQ(cpu::find_isa(GetParam()).has_bf16(), has_bf16);
  for (const std::int64_t queries : {1, 90}) {
    for (const DType dtype : kTypes) {
      SplitMix64 rng(45);
      const HeadsTensor q = random_tensor(rng, dtype, 2, queries, 64, 1.0);
      const HeadsTensor k = random_tensor(rng, dtype, 1, 90, 64, 1.0);
      const HeadsTensor v = random_tensor(rng, dtype, 1, 90, 64, 1.0);
      const AttentionProblem problem{q.view(), k.view(), v.view(), 0};
      AttentionOutput want;
      AttentionOutput got;
      reference_->attend(problem, BlockSelection::dense(problem.geometry(64)), want);
      backend_->attend(problem, BlockSelection::dense(problem.geometry(64)), got);
      double error = 0.0;
      for (std::int64_t i = 0; i < want.out.elements(); ++i) {
        error = std::max(error, std::fabs(double{got.out.row<float>(0, 0)[i]} -
                                          double{want.out.row<float>(0, 0)[i]}));
      }
      EXPECT_EQ(error > 1e-5, has_bf16 && dtype == DType::kBf16)
          << dtype_name(dtype) << ", " << queries << " queries: " << error;
    }
  }
}

/// Values that are unit vectors show each weight: out[j] / out[0] is the weight of key j over that
/// of key 0, whose logit 0 is the largest, so that its weight is exactly 1.
TEST_P(CpuPathTest, WeightsAreWithinTheirBound) {
  constexpr std::int64_t kDim = 64;
  constexpr std::int64_t kQueries = 200;
  constexpr std::int64_t kTokens = kDim + kQueries;
  for (const DType dtype : kTypes) {
    SplitMix64 rng(50);
    const bool rounded = cpu::find_isa(GetParam()).bf16_strip != nullptr && dtype == DType::kBf16;
    double largest = 0.0;
    double squares = 0.0;
    double sum = 0.0;
    std::int64_t count = 0;
    for (int trial = 0; trial < 8; ++trial) {
      HeadsTensor q(dtype, 1, kQueries, kDim);
      HeadsTensor k(dtype, 1, kTokens, kDim);
      HeadsTensor v(dtype, 1, kTokens, kDim);
      const auto set = [&](HeadsTensor& x, std::int64_t token, std::int64_t element, float value) {
        convert_from_float(
            &value, dtype, 1,
            x.data() + static_cast<std::size_t>(token * kDim + element) * dtype_size(dtype));
      };
      std::fill_n(q.data(), q.bytes(), std::byte{0});
      std::fill_n(k.data(), k.bytes(), std::byte{0});
      std::fill_n(v.data(), v.bytes(), std::byte{0});
      for (std::int64_t t = 0; t < kQueries; ++t) {
        set(q, t, 0, static_cast<float>(1.0 + 7.0 * rng.uniform()));
      }
      for (std::int64_t t = 1; t < kTokens; ++t) {
        // Keys behind the first ones weigh nothing.
        set(k, t, 0, t < kDim ? static_cast<float>(-20.0 * rng.uniform()) : -1e3f);
      }
      for (std::int64_t t = 0; t < kDim; ++t) set(v, t, t, 1.0f);
      const AttentionProblem problem{q.view(), k.view(), v.view(), 0};
      AttentionOutput output;
      output.out_only = true;
      backend_->attend(problem, BlockSelection::dense(problem.geometry(64)), output);
      std::vector<float> query(kDim);
      std::vector<float> key(kDim);
      for (std::int64_t i = 0; i < kQueries; ++i) {
        q.view().load_row(0, i, query.data());
        for (std::int64_t j = 1; j < kDim; ++j) {
          k.view().load_row(0, j, key.data());
          const double want = std::exp(double{query[0]} * double{key[0]} * problem.scale());
          const float* out = output.out.row<float>(0, i);
          const double error = double{out[j]} / double{out[0]} / want - 1.0;
          largest = std::max(largest, std::fabs(error));
          squares += error * error;
          sum += error;
          ++count;
        }
      }
    }
    const double n = static_cast<double>(count);
    EXPECT_LE(largest, largest_weight_error(cpu::find_isa(GetParam()), dtype) + 2e-5);
    EXPECT_LE(std::fabs(sum / n), 2e-4) << dtype_name(dtype);
    // Close to the bound, or the weights are not those that it is stated for.
    if (rounded) {
      EXPECT_GT(largest, 0.0055);
      EXPECT_NEAR(std::sqrt(squares / n), 0.0020, 1e-4);
    }
  }
}

/// Where logits lie far apart, an output is the value of the largest.
TEST_P(CpuPathTest, OutputsFollowTheLargestLogitOfAnyMagnitude) {
  constexpr std::int64_t kTokens = 200;
  constexpr std::int64_t kDim = 32;
  for (const DType dtype : kTypes) {
    // The weight of the one key that counts is rounded for the product with V, not for the sum.
    const bool bf16 = cpu::find_isa(GetParam()).has_bf16() && dtype == DType::kBf16;
    const double error = bf16 ? 0x1p-8 : 4e-7;
    for (const int exponent : {5, 8, 10}) {
      if (dtype == DType::kF16 && exponent > 8) continue;
      SplitMix64 rng(51);
      HeadsTensor q(dtype, 1, kTokens, kDim);
      HeadsTensor k(dtype, 1, kTokens, kDim);
      const HeadsTensor v = random_tensor(rng, dtype, 1, kTokens, kDim, 1.0);
      std::fill_n(q.data(), q.bytes(), std::byte{0});
      std::fill_n(k.data(), k.bytes(), std::byte{0});
      const auto rank = [](std::int64_t t) { return 77 * t % kTokens - 120; };  // each once
      for (std::int64_t t = 0; t < kTokens; ++t) {
        const auto put = [&](HeadsTensor& x, double value) {
          const auto element = static_cast<float>(std::ldexp(value, exponent));
          convert_from_float(&element, dtype, 1,
                             x.data() + static_cast<std::size_t>(t * kDim) * dtype_size(dtype));
        };
        put(q, 1.0);
        put(k, static_cast<double>(rank(t)));
      }
      const AttentionProblem problem{q.view(), k.view(), v.view(), 0};
      for (const bool out_only : {false, true}) {
        AttentionOutput output;
        output.out_only = out_only;
        backend_->attend(problem, BlockSelection::dense(problem.geometry(64)), output);
        std::int64_t best = 0;
        std::vector<float> want(kDim);
        for (std::int64_t t = 0; t < kTokens; ++t) {
          if (rank(t) > rank(best)) best = t;
          v.view().load_row(0, best, want.data());
          for (std::int64_t j = 0; j < kDim; ++j) {
            ASSERT_NEAR(output.out.row<float>(0, t)[j], want[j], error * std::fabs(want[j]) + 1e-30)
                << dtype_name(dtype) << ", 2^" << exponent << ", token " << t;
          }
        }
      }
    }
  }
}

TEST_P(CpuPathTest, TransitionAgreesWithTheReference) {
  SplitMix64 rng(46);
  for (int i = 0; i < 24; ++i) {
    const DType dtype = kTypes[i % 3];
    const std::int64_t kv_heads = 1 + static_cast<std::int64_t>(rng.below(2));
    const std::int64_t heads = kv_heads * (1 + static_cast<std::int64_t>(rng.below(4)));
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(700));
    const std::int64_t dim = 8 * (1 + static_cast<std::int64_t>(rng.below(16)));
    const HeadsTensor q = random_tensor(rng, dtype, heads, tokens, dim, 3.0);
    const HeadsTensor k = random_tensor(rng, dtype, kv_heads, tokens, dim, 3.0);
    const AttentionProblem problem{q.view(), k.view(), k.view(), i};
    SketchParams params;
    params.block = 16;
    params.unbiased = true;
    params.temperature = 1.0;
    params.causal = rng.below(2) == 0;
    params.partial_mean = rng.below(2) == 0;
    params.sharpness = rng.below(2) == 0 ? 1.0 : 8.0;
    params.sketch_dim = rng.below(2) == 0 ? 0 : 8;
    params.query_pool = rng.below(2) == 0 ? 0 : 4;
    params.key_pool = i % 4 == 3 ? 4 : 0;
    if (rng.below(2) == 0) params.aggregation = SketchParams::Aggregation::kHeadMean;
    SCOPED_TRACE("case " + std::to_string(i));
    const Matrix want = reference_->transition(problem, params, nullptr);
    const Matrix got = backend_->transition(problem, params, nullptr);
    // Pools and scores are fp64, but finer pools of keys go through f32 tiles; a power of 8
    // multiplies relative errors by 8.
    const double tolerance = params.key_pool > 0 ? 1e-4 : 1e-10;
    for (std::int64_t r = 0; r < want.rows(); ++r) {
      for (std::int64_t c = 0; c < want.cols(); ++c) {
        ASSERT_NEAR(got(r, c), want(r, c), tolerance * std::fabs(want(r, c)) + 1e-30);
      }
    }
  }
}

/// Keys as they are: with bf16 the mean queries are rounded to bf16 too, so each logit is off by at
/// most 2^-9 of the sum of its absolute products, and each probability by twice that, relatively.
TEST_P(CpuPathTest, TransitionOverEveryKeyAgreesWithTheReference) {
  SplitMix64 rng(48);
  for (int i = 0; i < 12; ++i) {
    const DType dtype = kTypes[i % 3];
    const std::int64_t heads = 2 * (1 + static_cast<std::int64_t>(rng.below(4)));
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(700));
    const HeadsTensor q = random_tensor(rng, dtype, heads, tokens, 64, 1.0);
    const HeadsTensor k = random_tensor(rng, dtype, 2, tokens, 64, 1.0);
    const AttentionProblem problem{q.view(), k.view(), k.view(), i};
    SketchParams params;
    params.exact = true;
    params.block = 16;
    params.unbiased = true;
    params.temperature = 1.2;
    params.causal = i % 2 == 0;
    params.partial_mean = true;
    params.query_pool = i % 4 == 3 ? 4 : 0;
    params.key_pool = 1;
    params.split_heads = i % 4 == 1 ? 0.5 : i % 4 == 2 ? 1.0 : 0.0;
    SCOPED_TRACE("case " + std::to_string(i));
    const Matrix want = reference_->transition(problem, params, nullptr);
    const Matrix got = backend_->transition(problem, params, nullptr);
    const bool bf16 = std::string(GetParam()).ends_with("_bf16") && dtype == DType::kBf16;
    // Elements lie in [-1, 1] and mean queries in as little: at most 64 / 8 / 1.2 a logit.
    const double tolerance = bf16 ? 2 * 64.0 / 8.0 / 1.2 * 0x1p-9 : 1e-4;
    for (std::int64_t r = 0; r < want.rows(); ++r) {
      for (std::int64_t c = 0; c < want.cols(); ++c) {
        ASSERT_NEAR(got(r, c), want(r, c), tolerance * std::fabs(want(r, c)) + 1e-30);
      }
    }
  }
}

TEST_P(CpuPathTest, WalksAgreeWithTheirDefinition) {
  SplitMix64 rng(47);
  for (const std::int64_t b : {1, 5, 31, 64, 97, 300}) {
    for (int kind = 0; kind < 4; ++kind) {
      const auto random_matrix = [&](bool lower) {
        Matrix x(b, b);
        for (std::int64_t i = 0; i < b; ++i) {
          for (std::int64_t j = 0; j < (lower ? i + 1 : b); ++j)
            x(i, j) = rng.uniform() / double(b);
        }
        return x;
      };
      const Matrix a = random_matrix((kind & 1) != 0);
      const Matrix state = random_matrix((kind & 2) != 0);
      const auto compare = [&](const Matrix& got, const Matrix& want) {
        for (std::int64_t i = 0; i < b; ++i) {
          for (std::int64_t j = 0; j < b; ++j) {
            // Sums of b non-negative products, in another order.
            ASSERT_NEAR(got(i, j), want(i, j), double(b + 8) * 0x1p-52 * want(i, j))
                << i << " " << j;
          }
        }
      };
      for (const Matrix* previous : {static_cast<const Matrix*>(nullptr), &state}) {
        compare(backend_->damped_walk(a, previous, 0.25, 3),
                reference_->damped_walk(a, previous, 0.25, 3));
        compare(backend_->product_walk(a, previous), reference_->product_walk(a, previous));
      }
    }
  }
}

TEST_P(CpuPathTest, ExponentialsAreExactToTheirBound) {
  const cpu::ScoreKernel& kernel = *cpu::find_isa(GetParam()).scores;
  SplitMix64 rng(48);
  std::vector<double> x(10007);
  for (double& value : x) value = 3.0 - std::exp(12.0 * rng.uniform() - 5.0);
  x[0] = 3.0;
  x[1] = -705.5;
  x[2] = -800.0;
  std::vector<double> y = x;
  const double total = kernel.exponentials(y.data(), std::ssize(y), 3.0);
  double want_total = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = x[i] - 3.0 < -708.0 ? 0.0 : std::exp(x[i] - 3.0);
    ASSERT_NEAR(y[i], want, 1e-15 * want) << x[i];
    want_total += want;
  }
  EXPECT_NEAR(total, want_total, 1e-12 * want_total);
}

TEST_P(CpuPathTest, ResultsDoNotDependOnTheThreadCount) {
  SplitMix64 rng(7);
  const int before = num_threads();
  for (const DType dtype : kTypes) {
    const HeadsTensor q = random_tensor(rng, dtype, 6, 1333, 64, 1.0);
    const HeadsTensor k = random_tensor(rng, dtype, 2, 1333, 64, 1.0);
    const HeadsTensor v = random_tensor(rng, dtype, 2, 1333, 64, 1.0);
    const AttentionProblem problem{q.view().tokens_slice(1000, 1333), k.view(), v.view(), 3};
    const AttentionProblem step{q.view().tokens_slice(1332, 1333), k.view(), v.view(), 3};
    const AttentionProblem whole{q.view(), k.view(), v.view(), 3};
    std::vector<AttentionOutput> outputs(6);
    std::vector<BlockMass> masses(6);
    std::vector<Matrix> matrices[4];
    for (int i = 0; i < 3; ++i) {
      set_num_threads(i == 2 ? 5 : i + 1);
      backend_->attend_dense(problem, problem.geometry(32), outputs[i], masses[i]);
      backend_->attend_dense(step, step.geometry(32), outputs[3 + i], masses[3 + i]);
      SketchParams params;
      params.block = 8;
      matrices[0].push_back(backend_->transition(whole, params, nullptr));
      params.key_pool = 2;
      matrices[1].push_back(backend_->transition(whole, params, nullptr));
      const Matrix& a = matrices[0].back();
      matrices[2].push_back(backend_->damped_walk(a, nullptr, 0.25, 3));
      matrices[3].push_back(backend_->product_walk(a, &a));
    }
    for (const int first : {0, 3}) {
      for (int i = first + 1; i < first + 3; ++i) {
        EXPECT_EQ(outputs[i].lse, outputs[first].lse);
        EXPECT_EQ(masses[i].values, masses[first].values);
        EXPECT_TRUE(std::equal(outputs[first].out.data(),
                               outputs[first].out.data() + outputs[first].out.bytes(),
                               outputs[i].out.data()));
      }
    }
    for (const auto& same : matrices) {
      for (int i = 1; i < 3; ++i) {
        EXPECT_TRUE(
            std::equal(same[0].values().begin(), same[0].values().end(), same[i].values().begin()));
      }
    }
  }
  set_num_threads(before);
}

TEST(CpuBackend, SumsPoolsAlikeInEveryInstructionSet) {
  SplitMix64 rng(49);
  for (const DType dtype : kTypes) {
    for (const std::int64_t dim : {1, 40, 129}) {
      const HeadsTensor x = random_tensor(rng, dtype, 1, 64, dim, 1.0);
      std::vector<double> want(static_cast<std::size_t>(dim), 0.0);
      std::vector<float> row(want.size());
      for (std::int64_t t = 0; t < 64; ++t) {
        x.view().load_row(0, t, row.data());
        for (std::size_t j = 0; j < row.size(); ++j) want[j] += double{row[j]};
      }
      for (const cpu::Isa& isa : cpu::available_isas()) {
        std::vector<double> sum(want.size(), 0.0);
        isa.scores->add_rows({x.data(), dtype, dim, 64, static_cast<std::int32_t>(dim)},
                             sum.data());
        EXPECT_EQ(sum, want) << isa.name;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuPathTest,
                         ::testing::Values("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16"),
                         [](const auto& isa) { return std::string(isa.param); });

TEST(CpuBackend, RefusesUnknownInstructionSets) {
  EXPECT_THROW(make_cpu_backend("avx1024"), Error);
}

TEST(Backends, GiveUpAnOutputThatAnotherOneKept) {
  SplitMix64 rng(3);
  const HeadsTensor x = random_tensor(rng, DType::kF32, 1, 20, 16, 1.0);
  const AttentionProblem problem{x.view(), x.view(), x.view(), 0};
  const BlockGeometry geometry = problem.geometry(8);
  for (const auto& backend : {make_reference_backend(), make_cpu_backend()}) {
    AttentionOutput output;
    output.keep = true;
    BlockMass mass;
    output.kept = std::make_unique<KeptOutput>();
    backend->attend_dense(problem, geometry, output, mass);
    EXPECT_EQ(output.kept, nullptr);
    output.kept = std::make_unique<KeptOutput>();
    backend->attend(problem, BlockSelection::dense(geometry), output);
    EXPECT_EQ(output.kept, nullptr);
  }
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
