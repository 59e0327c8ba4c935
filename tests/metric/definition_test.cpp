// Small cases of the metrics that can be worked out by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "metric/answer_recall.hpp"
#include "metric/cosine.hpp"
#include "metric/density.hpp"
#include "metric/list.hpp"
#include "metric/mass_recall.hpp"
#include "metric/oracle_gap.hpp"
#include "metric/output_error.hpp"
#include "metric/topk_recall.hpp"

namespace sw {
namespace {

/// One head, the last row of three blocks of 2 tokens: masses 0.5, 0.3, 0.2.
BlockMass last_row_mass(std::int64_t heads) {
  BlockMass mass;
  mass.reserve(heads, {2, 5, 6});
  for (std::int64_t h = 0; h < heads; ++h) {
    mass.row(h, 0)[0] = h == 0 ? 0.5f : 0.1f;
    mass.row(h, 0)[1] = h == 0 ? 0.3f : 0.8f;
    mass.row(h, 0)[2] = h == 0 ? 0.2f : 0.1f;
  }
  return mass;
}

BlockSelection last_row(std::int64_t groups, std::vector<std::vector<std::int32_t>> rows) {
  BlockSelection selection({2, 5, 6}, groups);
  for (const auto& row : rows) {
    selection.append_row(row, std::vector<Part>(row.size(), Part::kScored));
  }
  return selection;
}

AttentionOutput output_of(std::vector<float> values) {
  AttentionOutput output;
  output.out = HeadsTensor(DType::kF32, 1, 1, static_cast<std::int64_t>(values.size()));
  std::copy(values.begin(), values.end(), output.out.row<float>(0, 0));
  return output;
}

TEST(MassRecall, SumsKeptBlocks) {
  const BlockGrid recall = mass_recall(last_row_mass(2), last_row(1, {{0, 2}}));
  EXPECT_FLOAT_EQ(recall(0, 0), 0.7f);
  EXPECT_FLOAT_EQ(recall(1, 0), 0.2f);
}

TEST(MassRecall, ByLseIsTheMeanOverQueries) {
  const std::vector<double> dense = {0.0, 0.0, 0.0};
  const std::vector<double> sparse = {std::log(0.5), std::log(0.25), std::log(0.9)};
  const BlockGrid recall = mass_recall(dense, sparse, {2, 0, 3});
  EXPECT_FLOAT_EQ(recall(0, 0), 0.375f);
  EXPECT_FLOAT_EQ(recall(0, 1), 0.9f);
}

TEST(MassRecall, AQueryThatSeesNothingKeepsNothing) {
  const std::vector<double> dense = {0.0};
  const std::vector<double> sparse = {-INFINITY};
  EXPECT_EQ(mass_recall(dense, sparse, {2, 0, 1})(0, 0), 0.0f);
}

TEST(OracleGap, SharedSelectionMayHelpOneHeadAndHurtTheSet) {
  const BlockMass mass = last_row_mass(2);
  const BlockSelection selection = last_row(1, {{0, 2}});
  const BlockSelection best = best_selection(mass, selection);
  EXPECT_EQ(best.blocks(0, 0)[0], 1);  // 0.3 + 0.8 > 0.5 + 0.1
  const BlockGrid gap = oracle_gap(mass, best, mass_recall(mass, selection));
  EXPECT_NEAR(gap(0, 0), -0.2, 1e-6);
  EXPECT_NEAR(gap(1, 0), 0.7, 1e-6);
  EXPECT_NEAR(oracle_gap_of_sets(gap, 1)(0, 0), 0.25, 1e-6);
  EXPECT_FLOAT_EQ(topk_recall(selection, best)(0, 0), 0.5f);
}

TEST(OracleGap, IsZeroForTheBestAndForEverything) {
  const BlockMass mass = last_row_mass(2);
  for (const auto& selection : {last_row(2, {{0, 2}, {1, 2}}), last_row(1, {{0, 1, 2}})}) {
    const BlockSelection best = best_selection(mass, selection);
    const BlockGrid gap = oracle_gap(mass, best, mass_recall(mass, selection));
    for (float value : gap.values) EXPECT_EQ(value, 0.0f);
    for (float value : topk_recall(selection, best).values) EXPECT_EQ(value, 1.0f);
  }
}

/// Of outputs of one query.
OutputComparison compared(std::vector<float> dense, std::vector<float> sparse) {
  return compare_outputs(output_of(std::move(dense)), output_of(std::move(sparse)), {2, 0, 1});
}

TEST(OutputError, RelativeFrobeniusNorm) {
  EXPECT_FLOAT_EQ(output_error(compared({3, 4}, {3, 1}))(0, 0), 0.6f);
  EXPECT_FLOAT_EQ(output_cosine(compared({3, 4}, {4, -3}))(0, 0), 0.0f);
  EXPECT_FLOAT_EQ(output_cosine(compared({3, 4}, {-6, -8}))(0, 0), -1.0f);
}

TEST(OutputError, ZeroOutputs) {
  const OutputComparison zeros = compared({0, 0}, {0, 0});
  EXPECT_EQ(output_error(zeros)(0, 0), 0.0f);
  EXPECT_EQ(output_cosine(zeros)(0, 0), 1.0f);
  EXPECT_TRUE(std::isinf(output_error(compared({0, 0}, {1, 0}))(0, 0)));
  EXPECT_EQ(output_cosine(compared({0, 0}, {1, 0}))(0, 0), 0.0f);
}

TEST(OutputError, RefusesOutputsOfOtherShapes) {
  EXPECT_THROW(compared({0, 0}, {0, 0, 0}), std::invalid_argument);
  EXPECT_THROW(compare_outputs(output_of({1}), output_of({1}), {2, 0, 2}), std::invalid_argument);
}

TEST(AnswerRecall, SpansOutsideTheContextDoNotCount) {
  const BlockSelection selection = last_row(1, {{0, 2}});
  using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_FALSE(answer_recall(selection, Spans{}).has_value());
  EXPECT_FALSE(answer_recall(selection, Spans{{6, 8}, {5, 7}, {3, 3}, {-1, 2}}).has_value());
  EXPECT_DOUBLE_EQ(*answer_recall(selection, Spans{{0, 2}, {6, 8}}), 1.0);
  EXPECT_DOUBLE_EQ(*answer_recall(selection, Spans{{0, 2}, {1, 3}}), 0.5);
}

/// The last row of three blocks of 2 tokens: block 1 and the keys 0 and 5.
BlockSelection mixed_row() {
  BlockSelection selection({2, 5, 6}, 1);
  selection.append_row(std::vector<std::int32_t>{1}, std::vector<Part>{Part::kScored},
                       std::vector<std::int32_t>{0, 5},
                       std::vector<Part>{Part::kSink, Part::kWindow});
  return selection;
}

TEST(AnswerRecall, ASpanIsKeptBySingleKeysWhenAllOfThemAre) {
  using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;
  EXPECT_DOUBLE_EQ(*answer_recall(mixed_row(), Spans{{0, 1}}), 1.0);
  EXPECT_DOUBLE_EQ(*answer_recall(mixed_row(), Spans{{0, 2}}), 0.0);
  EXPECT_DOUBLE_EQ(*answer_recall(mixed_row(), Spans{{0, 1}, {2, 4}, {5, 6}, {3, 5}}), 0.75);
}

TEST(OracleGap, OfSingleKeysIsTakenInKeys) {
  BlockMass mass;
  mass.reserve(1, {1, 5, 6});
  const float values[] = {0.1f, 0.3f, 0.05f, 0.15f, 0.2f, 0.2f};
  std::copy(std::begin(values), std::end(values), mass.row(0, 0).begin());
  const BlockSelection keys = mixed_row().in_keys();  // 0, 2, 3 and 5
  const BlockGrid recall = mass_recall(mass, keys);
  EXPECT_FLOAT_EQ(recall(0, 0), 0.5f);
  const BlockSelection best = best_selection(mass, keys);  // 1, 3, 4 and 5
  EXPECT_NEAR(oracle_gap(mass, best, recall)(0, 0), 0.35, 1e-6);
  EXPECT_FLOAT_EQ(topk_recall(keys, best)(0, 0), 0.5f);
}

TEST(Density, KvTokensReadCountSingleKeys) {
  EXPECT_EQ(kv_tokens_read(mixed_row(), 2, 1), (std::vector<std::int64_t>{4}));
}

TEST(Density, RowSetsAddUpAsHeads) {
  const DensityCount shared = count_per_head(BlockSelection::dense({2, 0, 3}), 4);
  EXPECT_EQ(shared.causal, 4 * 6);
  EXPECT_EQ(shared.kept_total(), 4 * 6);
  EXPECT_EQ(add(shared, shared).causal, 48);
  const BlockGrid rows = row_density(last_row(2, {{2}, {0, 1, 2}}), 4);
  EXPECT_FLOAT_EQ(rows(0, 0), 2.0f / 6.0f);
  EXPECT_FLOAT_EQ(rows(1, 0), 2.0f / 6.0f);
  EXPECT_FLOAT_EQ(rows(3, 0), 1.0f);
}

TEST(Density, KvTokensAreCountedOnceForTheHeadsOfAGroup) {
  const BlockSelection selection = last_row(4, {{0, 2}, {1, 2}, {2}, {2}});
  EXPECT_EQ(kv_tokens_read(selection, 4, 2), (std::vector<std::int64_t>{6, 2}));
}

TEST(MetricList, IsInTheOrderOfItsEnumeration) {
  for (int m = 0; m < kNumMetrics; ++m) {
    EXPECT_EQ(static_cast<int>(list_metrics()[m].metric), m);
  }
}

}  // namespace
}  // namespace sw
