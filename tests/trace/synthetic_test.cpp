#include "trace/synthetic.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/parallel.hpp"
#include "trace_files.hpp"

namespace sw {
namespace {

using namespace sw::testing;

SyntheticOptions options_for_test() {
  SyntheticOptions options;
  options.num_layers = 4;
  options.first_layer = 2;
  options.head_dim = 256;
  options.prefill_tokens = 1024;
  options.dtype = DType::kF32;
  options.hops = 2;
  options.seed = 3;
  return options;
}

struct Layer {
  HeadsTensor q, k;
  std::int64_t group;

  Layer(const SyntheticOptions& options, const TraceInfo& plan, std::int64_t layer)
      : q(synthetic_tokens(options, plan, layer, TraceTensor::kQ, 0, plan.total_tokens)),
        k(synthetic_tokens(options, plan, layer, TraceTensor::kK, 0, plan.total_tokens)),
        group(plan.num_heads / plan.num_kv_heads) {}

  double logit(std::int64_t head, std::int64_t t, std::int64_t s) const {
    const float* a = q.row<float>(head, t);
    const float* b = k.row<float>(head / group, s);
    double sum = 0;
    for (std::int64_t c = 0; c < q.dim(); ++c) sum += double{a[c]} * b[c];
    return sum / std::sqrt(static_cast<double>(q.dim()));
  }

  /// Softmax mass of the whole block `key_block` for the last query of block i.
  double mass(std::int64_t head, std::int64_t i, std::int64_t key_block, std::int64_t block) const {
    const std::int64_t t = std::min((i + 1) * block, q.tokens()) - 1;
    double total = 0, part = 0;
    for (std::int64_t s = 0; s <= t; ++s) {
      const double weight = std::exp(logit(head, t, s));
      total += weight;
      if (s / block == key_block) part += weight;
    }
    return part / total;
  }

  /// q.k / sqrt(d) of the block means.
  double mean_logit(std::int64_t head, std::int64_t i, std::int64_t j, std::int64_t block) const {
    double sum = 0;
    for (std::int64_t c = 0; c < q.dim(); ++c) {
      double a = 0, b = 0;
      for (std::int64_t n = 0; n < block; ++n) {
        a += q.row<float>(head, i * block + n)[c];
        b += k.row<float>(head / group, j * block + n)[c];
      }
      sum += a / static_cast<double>(block) * b / static_cast<double>(block);
    }
    return sum / std::sqrt(static_cast<double>(q.dim()));
  }
};

std::vector<std::int32_t> planted_row(const TraceInfo& plan, std::int64_t layer, std::int64_t i) {
  const PlantedBlocks& p = *plan.planted;
  const auto begin = p.blocks.begin() + ((layer - plan.first_layer) * p.rows + i) * p.width;
  return {begin, begin + p.width};
}

TEST(Synthetic, PlannedBlocksAreCausalAndDifferent) {
  const SyntheticOptions options = options_for_test();
  const TraceInfo plan = plan_synthetic_trace(options);
  ASSERT_EQ(plan.planted->width, 3);
  ASSERT_EQ(plan.planted->rows, 17);
  for (std::int64_t layer = 2; layer <= 5; ++layer) {
    for (std::int64_t i = 0; i < plan.planted->rows; ++i) {
      const auto row = planted_row(plan, layer, i);
      std::set<std::int32_t> seen;
      for (const std::int32_t block : row) {
        if (block < 0) continue;
        EXPECT_GE(block, 1);
        EXPECT_LE(block, i - 2);
        EXPECT_TRUE(seen.insert(block).second);
      }
      EXPECT_GE(seen.size(), i >= 5 ? 2u : 0u);
      const bool second = layer % 2 == 1;  // chains are layers 2 -> 3 and 4 -> 5
      const std::int32_t through = second ? planted_row(plan, layer - 1, i)[0] : -1;
      EXPECT_EQ(row[2], through < 0 ? -1 : planted_row(plan, layer, through)[0]);
    }
  }
}

TEST(Synthetic, LogitsAreThePlantedStrengths) {
  const SyntheticOptions options = options_for_test();
  const TraceInfo plan = plan_synthetic_trace(options);
  const Layer layer(options, plan, 3);
  double heavy = 0, other = 0, own = 0, previous = 0, sink = 0, hidden = 0;
  std::int64_t heavies = 0, others = 0, rows = 0, hiddens = 0;
  for (std::int64_t i = 6; i < 16; ++i) {
    const auto row = planted_row(plan, 3, i);
    const std::int64_t t = i * 64 + 63;
    for (std::int64_t head = 0; head < 4; ++head) {
      for (std::int64_t s = 64; s < (i - 1) * 64; s += 4) {
        const auto j = static_cast<std::int32_t>(s / 64);
        const auto at = std::ranges::find(row, j) - row.begin();
        // s + 1 has the same parity as t.
        (at == 3 ? other : at == 2 ? hidden : heavy) += layer.logit(head, t, s + 1);
        ++(at == 3 ? others : at == 2 ? hiddens : heavies);
      }
      own += layer.logit(head, t, i * 64 + 10);
      previous += layer.logit(head, t, i * 64 - 10);
      sink += layer.logit(head, t, 2);
      ++rows;
    }
  }
  EXPECT_NEAR(heavy / static_cast<double>(heavies), 8, 0.5);
  EXPECT_NEAR(hidden / static_cast<double>(hiddens), 8 + std::log(2), 0.5);
  EXPECT_NEAR(other / static_cast<double>(others), 0, 0.5);
  EXPECT_NEAR(own / static_cast<double>(rows), 7, 1);
  EXPECT_NEAR(previous / static_cast<double>(rows), 7 - std::log(2), 1);
  EXPECT_NEAR(sink / static_cast<double>(rows), 8, 1);
}

TEST(Synthetic, HiddenBlocksMatterButMeansDoNotShowThem) {
  const SyntheticOptions options = options_for_test();
  const TraceInfo plan = plan_synthetic_trace(options);
  const Layer layer(options, plan, 5);
  // Means over rows and heads, for the hidden block, the first heavy one and one that is neither.
  double mass[3] = {}, mean_logit[3] = {};
  int count = 0;
  for (std::int64_t i = 8; i < 16; ++i) {
    const auto row = planted_row(plan, 5, i);
    if (row[2] < 0) continue;
    std::int32_t other = 1;
    while (std::ranges::find(row, other) != row.end()) ++other;
    for (std::int64_t head = 0; head < 4; ++head, ++count) {
      int n = 0;
      for (const std::int32_t block : {row[2], row[0], other}) {
        mass[n] += layer.mass(head, i, block, 64);
        mean_logit[n++] += layer.mean_logit(head, i, block, 64);
      }
    }
  }
  ASSERT_GE(count, 12);
  EXPECT_GT(mass[0] / count, 0.15);
  EXPECT_GT(mass[1] / count, 0.15);
  EXPECT_LT(mass[2] / count, 0.01);
  EXPECT_NEAR(mean_logit[0] / count, 0, 1);
  EXPECT_NEAR(mean_logit[1] / count, 8, 1);
  EXPECT_NEAR(mean_logit[2] / count, 0, 1);
}

TEST(Synthetic, DependsOnSeedAndLayerOnly) {
  const SyntheticOptions options = options_for_test();
  const TraceInfo plan = plan_synthetic_trace(options);
  const auto make = [&](std::int64_t begin, std::int64_t end) {
    return synthetic_tokens(options, plan, 4, TraceTensor::kQ, begin, end);
  };
  const HeadsTensor all = make(0, plan.total_tokens);
  const int threads = num_threads();
  set_num_threads(1);
  EXPECT_TRUE(same(all, make(0, plan.total_tokens)));
  set_num_threads(threads);
  const HeadsTensor part = make(100, 301);
  for (std::int64_t head = 0; head < 4; ++head) {
    EXPECT_EQ(0, std::memcmp(part.row<float>(head, 0), all.row<float>(head, 100),
                             201 * 256 * sizeof(float)));
  }
  SyntheticOptions other = options;
  other.seed = 4;
  EXPECT_FALSE(same(all, synthetic_tokens(other, plan_synthetic_trace(other), 4, TraceTensor::kQ, 0,
                                          plan.total_tokens)));
  EXPECT_FALSE(
      same(all, synthetic_tokens(options, plan, 3, TraceTensor::kQ, 0, plan.total_tokens)));
}

TEST(Synthetic, ImpossibleOptionsAreUsageErrors) {
  const auto expect_usage = [](auto&& change) {
    SyntheticOptions options;
    change(options);
    try {
      plan_synthetic_trace(options);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    }
  };
  expect_usage([](auto& o) { o.num_heads = 0; });
  expect_usage([](auto& o) { o.num_kv_heads = 3; });
  expect_usage([](auto& o) { o.prefill_tokens = 0; });
  expect_usage([](auto& o) { o.prefill_tokens = std::int64_t{1} << 62; });
  expect_usage([](auto& o) { o.decode_tokens = -1; });
  expect_usage([](auto& o) { o.block = 0; });
  expect_usage([](auto& o) { o.hops = 0; });
  expect_usage([](auto& o) { o.hops = 2, o.heavy_blocks = 0; });
  expect_usage([](auto& o) { o.noise = -1; });
  expect_usage([](auto& o) { o.heavy_strength = std::nan(""); });
  EXPECT_THROW(synthetic_preset("smal"), Error);
  for (const std::string& name : synthetic_presets()) {
    EXPECT_NO_THROW(plan_synthetic_trace(synthetic_preset(name)));
  }
}

TEST(Synthetic, NothingNeedBePlanted) {
  SyntheticOptions options;
  options.heavy_blocks = 0;
  options.prefill_tokens = 1;
  options.decode_tokens = 0;
  options.head_dim = 1;
  const TraceInfo plan = plan_synthetic_trace(options);
  EXPECT_FALSE(find_non_finite(synthetic_tokens(options, plan, 0, TraceTensor::kQ, 0, 1).view()));
}

}  // namespace
}  // namespace sw
