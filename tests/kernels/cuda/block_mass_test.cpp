// Block masses on the GPU against the fp64 reference, and their identities.
#include "kernels/cuda/sm80/block_mass.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention_cases.hpp"
#include "kernels/cuda/device_problem.hpp"
#include "kernels/cuda/device_tensor.hpp"
#include "kernels/cuda/device_test.hpp"
#include "kernels/reference/backend.hpp"

namespace sw {
namespace {

using cuda::DeviceBuffer;

/// Masses on the GPU from the reference's log-sum-exp, into poisoned memory.
std::vector<float> masses(const AttentionProblem& problem, const BlockGeometry& geometry,
                          const std::vector<double>& lse, bool tokens_first) {
  const testing::DeviceHeads q(problem.q, tokens_first);
  const testing::DeviceHeads k(problem.k, tokens_first);
  const std::vector<float> rounded(lse.begin(), lse.end());
  const DeviceBuffer<float> device_lse{std::span<const float>(rounded)};
  const DeviceBuffer<float> mass(
      static_cast<std::size_t>(problem.num_heads() * geometry.rows() * geometry.key_blocks()));
  cuda::check(cudaMemset(mass.data(), 0xFF, mass.bytes()), "poison");
  cuda::sm80::BlockMasses params;
  params.q = q.pointer();
  params.k = k.pointer();
  params.element = cuda::element_of(problem.q.dtype);
  params.num_heads = static_cast<int>(problem.num_heads());
  params.num_kv_heads = static_cast<int>(problem.num_kv_heads());
  params.head_dim = static_cast<int>(problem.head_dim());
  params.tokens = problem.tokens();
  params.queries = problem.queries();
  params.scale = static_cast<float>(problem.scale());
  params.lse = device_lse.data();
  params.block = static_cast<int>(geometry.block);
  params.mass = mass.data();
  cuda::sm80::block_masses(params, nullptr);
  cuda::synchronize(nullptr, "masses under test");
  return mass.download();
}

class BlockMassTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { SW_REQUIRE_GPU(8); }

  void check_case(SplitMix64& rng, std::int64_t kv_heads, std::int64_t group, std::int64_t tokens,
                  std::int64_t begin, std::int64_t block, std::int64_t dim, double logits) {
    SCOPED_TRACE("dim " + std::to_string(dim) + ", heads " + std::to_string(kv_heads) + " x " +
                 std::to_string(group) + ", tokens " + std::to_string(begin) + " to " +
                 std::to_string(tokens) + ", block " + std::to_string(block) + ", logits " +
                 std::to_string(logits));
    const double each = std::sqrt(logits);
    const auto random = [&](std::int64_t heads, double scale) {
      return testing::random_tensor(rng, GetParam(), heads, tokens, dim, scale);
    };
    const HeadsTensor q = random(kv_heads * group, each);
    const HeadsTensor k = random(kv_heads, each);
    const HeadsTensor v = random(kv_heads, 1.0);
    const AttentionProblem problem{q.view().tokens_slice(begin, tokens), k.view(), v.view(), 0};
    const BlockGeometry geometry = problem.geometry(block);
    AttentionOutput output;
    BlockMass want;
    make_reference_backend()->attend_dense(problem, geometry, output, want);
    const bool tokens_first = rng.below(2) == 0;
    const std::vector<float> got = masses(problem, geometry, output.lse, tokens_first);
    ASSERT_EQ(got.size(), want.values.size());
    // A probability errs relatively as its logit and the log-sum-exp do absolutely: in single
    // precision, where the sums of tensor cores truncate and so may err twice as much; exp2 and
    // the rounded log-sum-exp add as much again. A mass is at most 1.
    const double tolerance =
        4.0 * testing::weight_error(testing::largest_logit_magnitude(problem), dim, tokens);
    for (std::int64_t h = 0; h < want.heads; ++h) {
      for (std::int64_t r = 0; r < want.rows; ++r) {
        double total = 0.0;
        for (std::int64_t j = 0; j < want.cols; ++j) {
          const float mass = got[static_cast<std::size_t>((h * want.rows + r) * want.cols + j)];
          ASSERT_NEAR(mass, want.row(h, r)[static_cast<std::size_t>(j)], tolerance)
              << "head " << h << ", row " << r << ", block " << j;
          if (j > geometry.first_row() + r) {
            ASSERT_EQ(mass, 0.0f);
          }
          total += mass;
        }
        ASSERT_NEAR(total, 1.0, tolerance);
      }
    }
    EXPECT_EQ(got, masses(problem, geometry, output.lse, tokens_first));
  }
};

TEST_P(BlockMassTest, AgreeWithTheReference) {
  SplitMix64 rng(21);
  static constexpr std::int64_t kTokens[] = {1, 63, 64, 65, 257};
  static constexpr std::int64_t kBlocks[] = {16, 32, 48, 64, 128, 192};
  static constexpr double kLogits[] = {0.0, 1.0, 1e4};
  for (std::int64_t dim = 8; dim <= 256; dim += 8) {
    const std::int64_t tokens = kTokens[rng.below(5)];
    const std::uint64_t phase = rng.below(4);
    const auto count = static_cast<std::uint64_t>(tokens);
    const std::int64_t begin = phase == 3   ? tokens - 1
                               : phase == 2 ? static_cast<std::int64_t>(rng.below(count))
                                            : 0;
    check_case(rng, 1 + static_cast<std::int64_t>(rng.below(3)),
               1 + static_cast<std::int64_t>(rng.below(5)), tokens, begin, kBlocks[rng.below(6)],
               dim, kLogits[rng.below(3)]);
    if (HasFatalFailure()) return;
  }
}

TEST_P(BlockMassTest, AgreeWithTheReferenceOverSeveralSpansOfKeys) {
  SplitMix64 rng(22);
  check_case(rng, 1, 2, 9001, 8990, 64, 64, 1.0);
  check_case(rng, 2, 1, 5000, 4700, 48, 128, 1.0);
  check_case(rng, 1, 3, 1300, 0, 256, 80, 1.0);
}

INSTANTIATE_TEST_SUITE_P(Types, BlockMassTest,
                         ::testing::Values(DType::kBf16, DType::kF16, DType::kF32),
                         [](const auto& dtype) { return std::string(dtype_name(dtype.param)); });

}  // namespace
}  // namespace sw
