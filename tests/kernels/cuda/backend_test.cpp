// The CUDA backend in the evaluation loop, against the reference.
#include "kernels/cuda/backend.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "core/error.hpp"
#include "eval/evaluate.hpp"
#include "kernels/attention_cases.hpp"
#include "kernels/cuda/device_test.hpp"
#include "kernels/reference/backend.hpp"
#include "metric/cosine.hpp"
#include "metric/output_error.hpp"
#include "policy/list.hpp"
#include "support/tiny_trace.hpp"
#include "trace/synthetic.hpp"

namespace sw {
namespace {

TEST(CudaBackend, RefusesMachinesWithoutAGpuAndSaysWhy) {
  std::string why;
  if (const auto devices = cuda::list_devices(why); !devices.empty() && devices[0].major >= 8) {
    EXPECT_EQ(make_cuda_backend()->name(), "cuda");
    EXPECT_NE(make_cuda_backend()->detail().find(devices[0].name), std::string::npos);
    return;
  }
  try {
    make_cuda_backend();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(CudaBackend, RefusesWhatItCannotComputeAndSaysWhy) {
  SW_REQUIRE_GPU(8);
  const auto backend = make_cuda_backend();
  const HeadsTensor q(DType::kF32, 2, 20, 20);
  const AttentionProblem odd{q.view(), q.view(), q.view(), 0};
  EXPECT_NE(backend->unsupported(odd).value_or("").find("head dimension 20"), std::string::npos);
  SplitMix64 rng(1);
  const HeadsTensor x = testing::random_tensor(rng, DType::kF32, 2, 20, 16, 1.0);
  const AttentionProblem problem{x.view(), x.view(), x.view(), 0};
  EXPECT_FALSE(backend->unsupported(problem));
  AttentionOutput output;
  EXPECT_THROW(backend->attend(problem, BlockSelection::dense(problem.geometry(24)), output),
               Error);
  const AttentionProblem step{x.view().tokens_slice(19, 20), x.view(), x.view(), 0};
  BlockSelection singles(step.geometry(16), 1);
  singles.append_row({}, {}, std::vector<std::int32_t>{3, 19}, std::vector<Part>(2));
  try {
    backend->attend(step, singles, output);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_NE(std::string(error.what()).find("single keys"), std::string::npos);
    EXPECT_NE(error.hint().find("unit=block"), std::string::npos);
  }
}

TEST(CudaBackend, SeesThatATensorChangedInPlace) {
  SW_REQUIRE_GPU(8);
  const auto backend = make_cuda_backend();
  const auto reference = make_reference_backend();
  SplitMix64 rng(2);
  HeadsTensor x = testing::random_tensor(rng, DType::kF32, 2, 100, 32, 1.0);
  const AttentionProblem problem{x.view(), x.view(), x.view(), 0};
  const BlockSelection all = BlockSelection::dense(problem.geometry(32));
  for (int change = 0; change < 3; ++change) {
    x.row<float>(1, 99)[31] = 3.0f + static_cast<float>(change);
    AttentionOutput want;
    AttentionOutput got;
    reference->attend(problem, all, want);
    backend->attend(problem, all, got);
    for (std::int64_t i = 0; i < want.out.elements(); ++i) {
      ASSERT_NEAR(got.out.row<float>(0, 0)[i], want.out.row<float>(0, 0)[i], 1e-5);
    }
  }
}

TEST(CudaBackend, ComparesKeptOutputsLikeTheHost) {
  SW_REQUIRE_GPU(8);
  const auto backend = make_cuda_backend();
  SplitMix64 rng(7);
  for (const std::int64_t queries : {1, 77, 300}) {
    const std::int64_t tokens = 300;
    const HeadsTensor q = testing::random_tensor(rng, DType::kBf16, 4, queries, 64, 2.0);
    const HeadsTensor k = testing::random_tensor(rng, DType::kBf16, 2, tokens, 64, 2.0);
    const AttentionProblem problem{q.view(), k.view(), k.view(), 0};
    const BlockGeometry geometry = problem.geometry(32);
    BlockSelection own(geometry, 1);  // every row keeps its own block alone
    for (std::int64_t r = 0; r < geometry.rows(); ++r) {
      own.append_row(std::vector<std::int32_t>{static_cast<std::int32_t>(geometry.first_row() + r)},
                     std::vector<Part>(1));
    }
    AttentionOutput dense[2];  // kept there, and copied
    AttentionOutput sparse[2];
    BlockMass mass;
    for (const int copied : {0, 1}) {
      dense[copied].keep = sparse[copied].keep = copied == 0;
      backend->attend_dense(problem, geometry, dense[copied], mass);
      backend->attend(problem, own, sparse[copied]);
      EXPECT_EQ(dense[copied].out.elements(), copied * q.elements());
      EXPECT_EQ(sparse[copied].out.elements(), copied * q.elements());
    }
    EXPECT_EQ(dense[0].lse, dense[1].lse);
    EXPECT_EQ(sparse[0].lse, sparse[1].lse);
    const OutputComparison got = backend->compare(dense[0], sparse[0], geometry);
    const OutputComparison want = compare_outputs(dense[1], sparse[1], geometry);
    ASSERT_EQ(got.values.size(), want.values.size());
    for (std::size_t i = 0; i < want.values.size(); ++i) {
      const OutputSums& a = got.values[i];
      const OutputSums& b = want.values[i];
      EXPECT_NEAR(a.difference, b.difference, 1e-6 * b.difference);
      EXPECT_NEAR(a.dense, b.dense, 1e-6 * b.dense);
      EXPECT_NEAR(a.sparse, b.sparse, 1e-6 * b.sparse);
      // Terms of both signs.
      EXPECT_NEAR(a.product, b.product, 1e-6 * std::sqrt(b.dense * b.sparse));
    }
    const BlockGrid errors[] = {output_error(got), output_error(want)};
    const BlockGrid cosines[] = {output_cosine(got), output_cosine(want)};
    for (std::size_t i = 0; i < want.values.size(); ++i) {
      EXPECT_NEAR(errors[0].values[i], errors[1].values[i], 1e-6 * errors[1].values[i]);
      EXPECT_NEAR(cosines[0].values[i], cosines[1].values[i], 1e-6);
    }
    EXPECT_THROW(backend->compare(dense[0], sparse[1], geometry), std::invalid_argument);
    EXPECT_THROW(backend->compare(dense[0], sparse[0], {32, 0, tokens + 1}), std::invalid_argument);
  }
}

TEST(CudaBackend, TransitionsAndWalksAreThoseOfTheReference) {
  SW_REQUIRE_GPU(8);
  const auto backend = make_cuda_backend();
  const auto reference = make_reference_backend();
  SplitMix64 rng(5);
  for (int i = 0; i < 24; ++i) {
    SCOPED_TRACE(i);
    const DType dtype = std::array{DType::kBf16, DType::kF16, DType::kF32}[i % 3];
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(700));
    const std::int64_t dim = 8 * (1 + static_cast<std::int64_t>(rng.below(20)));
    const HeadsTensor q = testing::random_tensor(rng, dtype, 4, tokens, dim, 2.0);
    const HeadsTensor k = testing::random_tensor(rng, dtype, 2, tokens, dim, 2.0);
    const AttentionProblem problem{q.view(), k.view(), k.view(), i};
    SketchParams params;
    params.block = 32;
    params.exact = rng.below(3) == 0;
    params.sketch_dim = rng.below(2) == 0 ? 0 : 5;
    params.unbiased = rng.below(2) == 0;
    params.temperature = rng.below(2) == 0 ? 1.0 : 100.0;
    params.causal = rng.below(2) == 0;
    params.partial_mean = rng.below(2) == 0;
    params.aggregation = static_cast<SketchParams::Aggregation>(rng.below(2));
    params.sharpness = rng.below(2) == 0 ? 1.0 : 8.0;
    params.normalize = rng.below(2) == 0;
    params.query_pool = rng.below(2) == 0 ? 0 : 8;
    params.key_pool = rng.below(2) == 0 ? 0 : 1;
    const Matrix want = reference->transition(problem, params, nullptr);
    const Matrix got = backend->transition(problem, params, nullptr);
    // Double throughout: logits of magnitude up to 1e3 d err by 1e-13 d, and the power by 8 times.
    const auto expect_equal = [](const Matrix& a, const Matrix& b) {
      ASSERT_EQ(a.values().size(), b.values().size());
      for (std::size_t j = 0; j < a.values().size(); ++j) {
        ASSERT_NEAR(a.values()[j], b.values()[j], 1e-9 * std::fabs(b.values()[j]) + 1e-12);
      }
    };
    expect_equal(got, want);
    const Matrix walked = reference->damped_walk(want, nullptr, 0.25, 3);
    expect_equal(backend->damped_walk(want, nullptr, 0.25, 3), walked);
    expect_equal(backend->damped_walk(want, &walked, 0.25, 2),
                 reference->damped_walk(want, &walked, 0.25, 2));
    const Matrix product = reference->product_walk(want, nullptr);
    expect_equal(backend->product_walk(want, nullptr), product);
    expect_equal(backend->product_walk(want, &product), reference->product_walk(want, &product));
  }
}

/// Mean of |a - b| and the largest.
struct Gap {
  double mean = 0.0;
  double largest = 0.0;
};

Gap gap(const MetricArray& a, const MetricArray& b) {
  EXPECT_EQ(a.values.size(), b.values.size());
  Gap gap;
  for (std::size_t i = 0; i < std::min(a.values.size(), b.values.size()); ++i) {
    const double x = std::fabs(double{a.values[i]} - b.values[i]);
    gap.mean += x / static_cast<double>(a.values.size());
    gap.largest = std::max(gap.largest, x);
  }
  return gap;
}

/// Evaluates a trace with both backends: the same selections where these do not rest on masses, and
/// metrics within `tolerance` on the mean, ten times that in a single value.
void expect_same_evaluation(const TraceReader& trace, std::int64_t block, double tolerance) {
  std::vector<std::unique_ptr<Policy>> policies;
  for (const char* spec :
       {"dense", "sketchwalk", "sketchwalk:preset=preprint", "sketchwalk:budget=release", "oracle",
        "oracle:granularity=head", "sink_window", "random"}) {
    policies.push_back(make_policy(spec, 0));
  }
  EvalOptions options;
  options.block = block;
  options.densities = {0.2, 0.5};
  options.save_selection = true;
  const auto want = evaluate_trace(trace, 0, policies, options, *make_reference_backend());
  const auto got = evaluate_trace(trace, 0, policies, options, *make_cuda_backend());
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(got[i].method + ", " + phase_name(got[i].phase));
    ASSERT_EQ(got[i].status, want[i].status) << got[i].reason;
    if (got[i].status != CellStatus::kOk) continue;
    for (const MetricInfo& info : list_metrics()) {
      SCOPED_TRACE(info.name);
      const Gap found = gap(got[i].metric(info.metric), want[i].metric(info.metric));
      EXPECT_LE(found.mean, tolerance);
      EXPECT_LE(found.largest, info.metric == Metric::kTopkRecall ? 1.0 : 10.0 * tolerance);
    }
    if (got[i].name == "oracle") continue;  // ranked by masses of single precision: ties apart
    ASSERT_EQ(got[i].saved.size(), want[i].saved.size());
    for (std::size_t l = 0; l < got[i].saved.size(); ++l) {
      for (std::size_t s = 0; s < got[i].saved[l].selections.size(); ++s) {
        const auto a = got[i].saved[l].selections[s].all_blocks();
        const auto b = want[i].saved[l].selections[s].all_blocks();
        EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
      }
    }
  }
}

TEST(CudaBackend, EvaluatesATraceInF32LikeTheReference) {
  SW_REQUIRE_GPU(8);
  const testing::TemporaryFolder folder;
  const testing::TinyTrace tiny;
  const TraceReader trace(tiny.write(folder.file("tiny.h5")));
  expect_same_evaluation(trace, 16, 1e-5);
}

TEST(CudaBackend, EvaluatesATraceInBf16LikeTheReference) {
  SW_REQUIRE_GPU(8);
  SyntheticOptions synthetic;
  synthetic.num_layers = 2;
  synthetic.first_layer = 2;
  synthetic.prefill_tokens = 600;
  synthetic.decode_tokens = 3;
  synthetic.block = 32;
  const TraceInfo info = plan_synthetic_trace(synthetic);
  const testing::TemporaryFolder folder;
  TraceWriter writer(folder.file("synthetic.h5"), info);
  for (std::int64_t layer = 2; layer < 4; ++layer) {
    for (const TraceTensor tensor : kTraceTensors) {
      writer.append(layer, tensor,
                    synthetic_tokens(synthetic, info, layer, tensor, 0, info.total_tokens).view());
    }
  }
  writer.commit();
  const TraceReader trace(folder.file("synthetic.h5"));
  expect_same_evaluation(trace, 32, 1e-3);
}

}  // namespace
}  // namespace sw
