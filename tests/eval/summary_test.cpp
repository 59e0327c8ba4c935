// Summaries of records that are made by hand.
#include "eval/summary.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace sw {
namespace {

/// Two layers (0 dense, 1 sparse), one head, two query blocks with the given recalls.
CellRecord cell_of(const std::string& method, std::optional<double> density, float first,
                   float second, std::size_t input = 0) {
  CellRecord cell;
  cell.method = cell.name = method;
  cell.density = density;
  cell.input = input;
  for (const MetricInfo& metric : list_metrics()) {
    cell.metric(metric.metric) = MetricArray(2, 1, 2, metric.dense_value);
  }
  cell.density_rows = MetricArray(2, 1, 2, 1.0f);
  cell.metric(Metric::kMassRecall)(1, 0, 0) = first;
  cell.metric(Metric::kMassRecall)(1, 0, 1) = second;
  cell.layers.resize(2);
  cell.layers[0].pairs = {100, {0, 0, 0, 100}};
  cell.layers[1].layer = 1;
  cell.layers[1].sparse = true;
  cell.layers[1].pairs = {100, {10, 5, 15, 0}};
  return cell;
}

TimeSample sample_of(std::int64_t layer, double select, double attention) {
  TimeSample sample;
  sample.layer = layer;
  sample.times[Stage::kSelect] = select;
  sample.times[Stage::kAttention] = attention;
  sample.attended = true;
  return sample;
}

TEST(Summary, MeansLeaveDenseLayersOut) {
  const std::vector<CellRecord> cells = {cell_of("m", 0.3, 0.5f, 0.7f)};
  const Summary summary = summarize_cells(cells).front();
  EXPECT_NEAR(summary.metric(Metric::kMassRecall)->overall.mean, 0.6, 1e-6);
  ASSERT_EQ(summary.metric(Metric::kMassRecall)->per_layer.size(), 2u);
  EXPECT_DOUBLE_EQ(summary.metric(Metric::kMassRecall)->per_layer[0], 1.0);
  EXPECT_NEAR(summary.metric(Metric::kMassRecall)->per_layer[1], 0.6, 1e-6);
  EXPECT_FALSE(summary.answer_recall.has_value());
}

TEST(Summary, DensitiesWeighPairs) {
  std::vector<CellRecord> cells = {cell_of("m", 0.3, 0.5f, 0.7f), cell_of("m", 0.3, 0.5f, 0.7f, 1)};
  cells[1].layers[1].pairs = {300, {300, 0, 0, 0}};
  const Summary one = summarize_cells(cells).front();
  EXPECT_DOUBLE_EQ(one.realised.sparse, 0.3);
  EXPECT_DOUBLE_EQ(one.realised.all, 0.65);
  EXPECT_DOUBLE_EQ(one.realised.parts[static_cast<int>(Part::kScored)], 0.15);
  EXPECT_FALSE(one.realised.decode.has_value());
  const auto inputs = summarize_inputs(cells);
  ASSERT_EQ(inputs.size(), 1u);
  EXPECT_EQ(inputs[0].inputs, 2);
  EXPECT_DOUBLE_EQ(inputs[0].realised.sparse, 330.0 / 400.0);
}

TEST(Summary, ComparesWithSinkWindowColumnByColumn) {
  // The columns differ much more than the methods: only a paired comparison sees the difference.
  std::vector<CellRecord> cells = {
      cell_of("sink_window", 0.3, 0.1f, 0.9f), cell_of("more", 0.3, 0.12f, 0.92f),
      cell_of("less", 0.3, 0.05f, 0.88f), cell_of("mixed", 0.3, 0.2f, 0.8f),
      cell_of("elsewhere", 0.2, 0.2f, 0.95f)};
  const auto summaries = summarize_cells(cells);
  EXPECT_FALSE(summaries[0].versus_sink_window.has_value());
  EXPECT_EQ(summaries[1].versus_sink_window->verdict, Verdict::kBetter);
  EXPECT_NEAR(summaries[1].versus_sink_window->difference.mean, 0.02, 1e-6);
  EXPECT_EQ(summaries[2].versus_sink_window->verdict, Verdict::kWorse);
  EXPECT_EQ(summaries[3].versus_sink_window->verdict, Verdict::kTied);
  EXPECT_FALSE(summaries[4].versus_sink_window.has_value());
}

TEST(Summary, LatencyComparesTheSameLayers) {
  std::vector<CellRecord> cells = {cell_of("dense", std::nullopt, 1.0f, 1.0f),
                                   cell_of("m", 0.3, 0.5f, 0.7f)};
  cells[0].times = {sample_of(0, 0.0, 100.0), sample_of(1, 0.0, 8.0)};
  cells[1].times = {sample_of(1, 1.0, 3.0)};
  const auto summaries = summarize_cells(cells);
  EXPECT_DOUBLE_EQ(summaries[1].latency->dense_attention->median, 8.0);
  EXPECT_DOUBLE_EQ(summaries[1].latency->total->median, 4.0);
  EXPECT_DOUBLE_EQ(*summaries[1].latency->speed_ratio, 2.0);
  cells[1].has_own_scores = false;
  EXPECT_FALSE(summarize_cells(cells)[1].latency->speed_ratio.has_value());
}

TEST(Summary, AttributionSumsToTheLoss) {
  std::vector<CellRecord> cells = {cell_of("sketchwalk", 0.3, 0.5f, 0.7f)};
  CellRecord& cell = cells.front();
  for (std::int64_t c = 0; c < 2; ++c) cell.metric(Metric::kOracleGap)(1, 0, c) = 0.25f;
  AttributionRecord& record = cell.attribution.emplace();
  const std::array<float, kNumVariants> recalls = {0.9f,  0.84f, 0.82f, 0.72f, 0.71f,
                                                   0.75f, 0.7f,  0.68f, 0.67f};
  for (std::size_t v = 0; v < kNumVariants; ++v) record.recall[v] = MetricArray(2, 1, 2, recalls[v]);
  const auto parts = summarize_cells(cells).front().attribution->mean;
  EXPECT_NEAR(parts.total, 0.25, 1e-6);  // the best shared selection keeps 0.85, the method 0.6
  EXPECT_NEAR(parts[LossPart::kSharing], 0.05, 1e-6);
  EXPECT_NEAR(parts[LossPart::kForced], 0.01, 1e-6);
  EXPECT_NEAR(parts[LossPart::kQueryPooling], 0.02, 1e-6);
  EXPECT_NEAR(parts[LossPart::kKeyPooling], 0.1, 1e-6);
  EXPECT_NEAR(parts[LossPart::kMask], 0.01, 1e-6);
  EXPECT_NEAR(parts[LossPart::kTemperature], -0.03, 1e-6);
  EXPECT_NEAR(parts[LossPart::kAggregation], 0.02, 1e-6);
  EXPECT_NEAR(parts[LossPart::kInteraction], 0.04, 1e-6);
  EXPECT_NEAR(parts[LossPart::kSketch], 0.01, 1e-6);
  EXPECT_NEAR(parts[LossPart::kWalk], 0.07, 1e-6);
  EXPECT_NEAR(parts.block_mean(), 0.17, 1e-6);
  const double sum = std::accumulate(parts.part.begin() + 1, parts.part.end(), 0.0);
  EXPECT_NEAR(sum, parts.total, 1e-12);
  EXPECT_EQ(loss_of_heads(cell).size(), 2u);
}

TEST(Summary, FailedCellsHaveNoValues) {
  std::vector<CellRecord> cells = {cell_of("m", 0.3, 0.5f, 0.7f), CellRecord{}};
  cells[1].method = "m";
  cells[1].density = 0.3;
  cells[1].input = 1;
  cells[1].status = CellStatus::kFailed;
  EXPECT_EQ(summarize_cells(cells)[1].inputs, 0);
  const auto inputs = summarize_inputs(cells);
  ASSERT_EQ(inputs.size(), 1u);
  EXPECT_EQ(inputs[0].inputs, 1);
}

}  // namespace
}  // namespace sw
