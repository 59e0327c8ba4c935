// The portable CUDA attention against the fp64 reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/attention_cases.hpp"
#include "kernels/cuda/device_problem.hpp"
#include "kernels/cuda/device_tensor.hpp"
#include "kernels/cuda/device_test.hpp"
#include "kernels/cuda/sm80/output_sums.hpp"
#include "kernels/cuda/sm80/prefill_attention.hpp"
#include "kernels/reference/backend.hpp"

namespace sw {
namespace {

using cuda::DeviceBuffer;
using cuda::Element;
using cuda::sm80::PrefillAttention;

struct DeviceOutput {
  HeadsTensor out;  ///< f32
  std::vector<float> lse;
};

/// Runs the kernel, into poisoned memory. `selection` null: dense, without a list of blocks.
DeviceOutput attend(const AttentionProblem& problem, const BlockGeometry& geometry,
                    const BlockSelection* selection, DType out_dtype, bool tokens_first) {
  const testing::DeviceHeads q(problem.q, tokens_first);
  const testing::DeviceHeads k(problem.k, tokens_first);
  const testing::DeviceHeads v(problem.v, tokens_first);
  PrefillAttention attention;
  attention.q = q.pointer();
  attention.k = k.pointer();
  attention.v = v.pointer();
  attention.element = cuda::element_of(problem.q.dtype);
  attention.num_heads = static_cast<int>(problem.num_heads());
  attention.num_kv_heads = static_cast<int>(problem.num_kv_heads());
  attention.head_dim = static_cast<int>(problem.head_dim());
  attention.tokens = problem.tokens();
  attention.queries = problem.queries();
  attention.scale = static_cast<float>(problem.scale());
  std::unique_ptr<testing::DeviceSelection> device_selection;
  if (selection != nullptr) {
    device_selection = std::make_unique<testing::DeviceSelection>(*selection);
    attention.selection = device_selection->view();
  } else {
    attention.selection.rows = static_cast<int>(geometry.rows());
    attention.selection.first_row = static_cast<int>(geometry.first_row());
    attention.selection.block = static_cast<int>(geometry.block);
  }
  EXPECT_EQ(cuda::sm80::unsupported(attention).value_or(""), "");
  const DeviceBuffer<std::byte> workspace(cuda::sm80::workspace_bytes(attention));
  attention.workspace = workspace.data();

  const std::int64_t rows = problem.num_heads() * problem.queries();
  HeadsTensor raw(out_dtype, problem.num_heads(), problem.queries(), problem.head_dim());
  const DeviceBuffer<std::byte> out(raw.bytes());
  const DeviceBuffer<float> lse(static_cast<std::size_t>(rows));
  cuda::check(cudaMemset(out.data(), 0xFF, out.bytes()), "poison");
  cuda::check(cudaMemset(lse.data(), 0xFF, lse.bytes()), "poison");
  attention.out = out.data();
  attention.out_head_stride = tokens_first ? problem.head_dim() : raw.tokens() * raw.dim();
  attention.out_token_stride = tokens_first ? raw.heads() * raw.dim() : raw.dim();
  attention.out_f32 = out_dtype == DType::kF32;
  attention.lse = lse.data();
  cuda::sm80::prefill_attention(attention, nullptr);
  cuda::synchronize(nullptr, "attention under test");

  DeviceOutput result{HeadsTensor(DType::kF32, raw.heads(), raw.tokens(), raw.dim()),
                      lse.download()};
  const std::vector<std::byte> bytes = out.download();
  for (std::int64_t h = 0; h < raw.heads(); ++h) {
    for (std::int64_t t = 0; t < raw.tokens(); ++t) {
      const std::int64_t at = h * attention.out_head_stride + t * attention.out_token_stride;
      convert_to_float(bytes.data() + static_cast<std::size_t>(at) * dtype_size(out_dtype),
                       out_dtype, raw.dim(), result.out.row<float>(h, t));
    }
  }
  return result;
}

/// Relative rounding of a type with so many significant bits.
double unit_roundoff(DType dtype) {
  return dtype == DType::kBf16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-24;
}

/// Errors of the kernel against exact arithmetic: those of single precision, where the sums of
/// tensor cores truncate and so may err twice as much as rounded ones; then weights are rounded to
/// the element type (and those below its normal range lose up to 2^-25 each, in f16).
void expect_close(const DeviceOutput& got, const AttentionOutput& want,
                  const AttentionProblem& problem, double largest_logit, DType out_dtype) {
  const DType dtype = problem.q.dtype;
  const double single =
      2.0 * testing::weight_error(largest_logit, problem.head_dim(), problem.tokens());
  double weights = dtype == DType::kF32 ? 0.0 : unit_roundoff(dtype);
  if (dtype == DType::kF16) weights += 0x1p-25 * static_cast<double>(problem.tokens());
  const double out_rounding = out_dtype == DType::kF32 ? 0.0 : unit_roundoff(out_dtype);
  for (std::size_t i = 0; i < want.lse.size(); ++i) ASSERT_NEAR(got.lse[i], want.lse[i], single);
  double difference = 0.0;
  double norm = 0.0;
  for (std::int64_t i = 0; i < want.out.elements(); ++i) {
    const double a = got.out.row<float>(0, 0)[i];
    const double b = want.out.row<float>(0, 0)[i];
    // |v| stays below 6 in samples of this size.
    ASSERT_NEAR(a, b, 12.0 * single + 6.0 * weights + std::fabs(b) * out_rounding);
    difference += (a - b) * (a - b);
    norm += b * b;
  }
  // Roundings of the weights are independent, so over random values they add up as the values do.
  EXPECT_LE(std::sqrt(difference / norm), 6.0 * single + weights + out_rounding);
}

struct Shape {
  std::int64_t kv_heads;
  std::int64_t group;
  std::int64_t tokens;
  std::int64_t begin;  ///< position of the first query
  std::int64_t block;
  int set_kind;  ///< row sets: 0 one, 1 a KV head, 2 a query head
  bool token_parts;
  double logits;
};

Shape random_shape(SplitMix64& rng) {
  static constexpr std::int64_t kTokens[] = {1, 63, 64, 65, 257};
  static constexpr std::int64_t kBlocks[] = {16, 32, 48, 64, 128, 192};
  static constexpr double kLogits[] = {0.0, 1.0, 1e4};
  Shape shape{};
  shape.kv_heads = 1 + static_cast<std::int64_t>(rng.below(3));
  shape.group = 1 + static_cast<std::int64_t>(rng.below(5));
  shape.tokens = kTokens[rng.below(5)];
  const std::uint64_t phase = rng.below(4);  // prefill (twice), a chunk of it, decode
  shape.begin = phase == 3 ? shape.tokens - 1
                : phase == 2
                    ? static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(shape.tokens)))
                    : 0;
  shape.block = kBlocks[rng.below(6)];
  shape.set_kind = static_cast<int>(rng.below(3));
  shape.token_parts = rng.below(2) == 0;
  shape.logits = kLogits[rng.below(3)];
  return shape;
}

void check_case(SplitMix64& rng, const Shape& shape, DType dtype, std::int64_t dim) {
  SCOPED_TRACE("dim " + std::to_string(dim) + ", " + std::string(dtype_name(dtype)) + ", heads " +
               std::to_string(shape.kv_heads) + " x " + std::to_string(shape.group) + ", tokens " +
               std::to_string(shape.begin) + " to " + std::to_string(shape.tokens) + ", block " +
               std::to_string(shape.block) + ", sets " + std::to_string(shape.set_kind) +
               ", logits " + std::to_string(shape.logits));
  const std::int64_t heads = shape.kv_heads * shape.group;
  const double each = std::sqrt(shape.logits);  // q.k / sqrt(d) has standard deviation s_q s_k
  const HeadsTensor q = testing::random_tensor(rng, dtype, heads, shape.tokens, dim, each);
  const HeadsTensor k = testing::random_tensor(rng, dtype, shape.kv_heads, shape.tokens, dim, each);
  const HeadsTensor v = testing::random_tensor(rng, dtype, shape.kv_heads, shape.tokens, dim, 1.0);
  const AttentionProblem problem{q.view().tokens_slice(shape.begin, shape.tokens), k.view(),
                                 v.view(), 0};
  const BlockGeometry geometry = problem.geometry(shape.block);
  const std::int64_t groups[] = {1, shape.kv_heads, heads};
  const BlockSelection selection =
      testing::random_selection(rng, geometry, groups[shape.set_kind], shape.token_parts);
  const bool tokens_first = rng.below(2) == 0;
  const DType out_dtype = rng.below(2) == 0 ? DType::kF32 : dtype;

  const double largest_logit = testing::largest_logit_magnitude(problem);
  const auto reference = make_reference_backend();
  AttentionOutput want;
  reference->attend(problem, selection, want);
  const DeviceOutput got = attend(problem, geometry, &selection, out_dtype, tokens_first);
  expect_close(got, want, problem, largest_logit, out_dtype);
  const DeviceOutput again = attend(problem, geometry, &selection, out_dtype, tokens_first);
  EXPECT_EQ(std::memcmp(got.out.data(), again.out.data(), got.out.bytes()), 0);
  EXPECT_EQ(got.lse, again.lse);

  // Dense, without a list and with the list of all blocks: the same sums in the same order.
  const BlockSelection all = BlockSelection::dense(geometry);
  reference->attend(problem, all, want);
  const DeviceOutput dense = attend(problem, geometry, nullptr, DType::kF32, tokens_first);
  expect_close(dense, want, problem, largest_logit, DType::kF32);
  const DeviceOutput listed = attend(problem, geometry, &all, DType::kF32, tokens_first);
  EXPECT_EQ(std::memcmp(dense.out.data(), listed.out.data(), dense.out.bytes()), 0);
}

class PortableAttention : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { SW_REQUIRE_GPU(8); }
};

TEST_P(PortableAttention, AgreesWithTheReferenceForEveryHeadDimension) {
  SplitMix64 rng(11);
  for (std::int64_t dim = 8; dim <= 256; dim += 8) {
    check_case(rng, random_shape(rng), GetParam(), dim);
    if (HasFatalFailure()) return;
  }
}

TEST_P(PortableAttention, AgreesWithTheReferenceOnRandomShapes) {
  SplitMix64 rng(12);
  static constexpr std::int64_t kDims[] = {64, 96, 128, 192, 256};
  for (int i = 0; i < 40; ++i) {
    check_case(rng, random_shape(rng), GetParam(), kDims[i % 5]);
    if (HasFatalFailure()) return;
  }
}

TEST_P(PortableAttention, AgreesWithTheReferenceOverManyTiles) {
  SplitMix64 rng(13);
  for (const std::int64_t block : {16, 64, 128, 256}) {
    check_case(rng,
               {2, 3, 701, block == 64 ? 301 : 0, block, block == 128 ? 2 : 0, block == 64, 1.0},
               GetParam(), 128);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PortableAttention,
                         ::testing::Values(DType::kBf16, DType::kF16, DType::kF32),
                         [](const auto& dtype) { return std::string(dtype_name(dtype.param)); });

TEST(PortableAttentionRefusals, SayWhy) {
  PrefillAttention attention;
  attention.head_dim = 64;
  attention.selection.block = 64;
  EXPECT_FALSE(cuda::sm80::unsupported(attention));
  attention.selection.block = 40;
  EXPECT_NE(cuda::sm80::unsupported(attention)->find("multiples of 16"), std::string::npos);
  attention.selection.block = 64;
  attention.head_dim = 100;
  EXPECT_NE(cuda::sm80::unsupported(attention)->find("head dimension 100"), std::string::npos);
  attention.head_dim = 264;
  EXPECT_TRUE(cuda::sm80::unsupported(attention));
  attention.head_dim = 64;
  attention.k.token_stride = 68;
  EXPECT_NE(cuda::sm80::unsupported(attention)->find("aligned"), std::string::npos);
}

TEST(OutputSums, AreThoseOfTheHost) {
  SW_REQUIRE_GPU(8);
  SplitMix64 rng(3);
  for (const std::int64_t queries : {1, 63, 150, 200}) {
    const std::int64_t tokens = 200;
    const BlockGeometry geometry{32, tokens - queries, tokens};
    const HeadsTensor a = testing::random_tensor(rng, DType::kF32, 3, queries, 80, 1.0);
    const HeadsTensor b = testing::random_tensor(rng, DType::kF32, 3, queries, 80, 1.0);
    const auto upload = [](const HeadsTensor& x) {
      return DeviceBuffer<float>(
          std::span(x.row<float>(0, 0), static_cast<std::size_t>(x.elements())));
    };
    const DeviceBuffer<float> dense = upload(a);
    const DeviceBuffer<float> sparse = upload(b);
    const DeviceBuffer<double> sums(static_cast<std::size_t>(3 * geometry.rows() * 4));
    cuda::check(cudaMemset(sums.data(), 0xFF, sums.bytes()), "poison");
    cuda::sm80::output_sums({dense.data(), sparse.data(), 3, 80, tokens, queries, 32, sums.data()},
                            nullptr);
    const std::vector<double> got = sums.download();
    for (std::int64_t h = 0; h < 3; ++h) {
      for (std::int64_t r = 0; r < geometry.rows(); ++r) {
        double want[4] = {};
        for (std::int64_t p = geometry.row_begin(r); p < geometry.row_end(r); ++p) {
          for (int j = 0; j < 80; ++j) {
            const double x = a.row<float>(h, p - geometry.query_begin)[j];
            const double y = b.row<float>(h, p - geometry.query_begin)[j];
            want[0] += (x - y) * (x - y);
            want[1] += x * x;
            want[2] += y * y;
            want[3] += x * y;
          }
        }
        for (int i = 0; i < 4; ++i) {
          // Sums of at most 2,560 terms in double, in another order.
          const double got_i = got[static_cast<std::size_t>((h * geometry.rows() + r) * 4 + i)];
          ASSERT_NEAR(got_i, want[i], 2560 * 0x1p-53 * (want[1] + want[2]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace sw
