#include "eval/paired.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

PairedTask make_task(std::vector<double> dense, std::vector<double> sparse, bool binary = false) {
  return {"task", binary, std::move(dense), std::move(sparse)};
}

TEST(McNemar, IsTheExactBinomialTail) {
  EXPECT_EQ(mcnemar_exact(0, 0), 1.0);
  EXPECT_NEAR(mcnemar_exact(0, 5), 2.0 / 32.0, 1e-12);               // 2 * 1/2^5
  EXPECT_NEAR(mcnemar_exact(1, 9), 2.0 * (1 + 10) / 1024.0, 1e-12);  // 2 * (1 + 10) / 2^10
  EXPECT_NEAR(mcnemar_exact(2, 8), 2.0 * (1 + 10 + 45) / 1024.0, 1e-12);
  EXPECT_EQ(mcnemar_exact(5, 5), 1.0);
  EXPECT_EQ(mcnemar_exact(3, 12), mcnemar_exact(12, 3));
  EXPECT_GT(mcnemar_exact(500, 600), 0.0);
  EXPECT_LT(mcnemar_exact(500, 600), 0.01);
}

TEST(Holm, StepsDownAndNeverFalls) {
  const std::vector<double> p = {0.01, 0.04, 0.03, 0.005};
  const std::vector<double> adjusted = holm(p);  // by hand: x4, x3, x2, x1 in ascending order
  EXPECT_NEAR(adjusted[3], 0.02, 1e-15);
  EXPECT_NEAR(adjusted[0], 0.03, 1e-15);
  EXPECT_NEAR(adjusted[2], 0.06, 1e-15);
  EXPECT_NEAR(adjusted[1], 0.06, 1e-15);  // 0.04 would be below its predecessor
  EXPECT_EQ(holm(std::vector<double>{0.7, 0.9})[0], 1.0);
}

TEST(CompareTasks, MeansDifferenceAndDetectableEffect) {
  const auto result = compare_tasks(
      std::vector<PairedTask>{make_task({0.5, 0.7, 0.2, 0.6}, {0.4, 0.7, 0.1, 0.2})}, 0.02)[0];
  EXPECT_EQ(result.samples, 4);
  EXPECT_NEAR(result.dense_mean, 0.5, 1e-12);
  EXPECT_NEAR(result.sparse_mean, 0.35, 1e-12);
  EXPECT_NEAR(result.difference.mean, -0.15, 1e-12);
  EXPECT_GE(*result.difference.low, -0.4);
  EXPECT_LE(*result.difference.high, 0.0);
  // 4 samples: the rule of three allows 0.75, more than 2.8 standard errors.
  EXPECT_NEAR(result.minimum_detectable, 0.75, 1e-12);
  EXPECT_FALSE(result.mcnemar.has_value());
}

TEST(CompareTasks, IntervalAgreesWithTheNormalOneWhereThereAreManySamples) {
  std::vector<double> dense(2000), sparse(2000);
  for (std::size_t i = 0; i < dense.size(); ++i) {
    dense[i] = 0.5 + 0.4 * std::sin(static_cast<double>(i));
    sparse[i] = dense[i] - 0.01 + 0.1 * std::sin(3.7 * static_cast<double>(i));
  }
  double mean = 0.0, squares = 0.0;
  for (std::size_t i = 0; i < dense.size(); ++i) mean += (sparse[i] - dense[i]) / 2000.0;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    squares += std::pow(sparse[i] - dense[i] - mean, 2);
  }
  const double se = std::sqrt(squares / 1999.0 / 2000.0);
  const auto result = compare_tasks(std::vector<PairedTask>{make_task(dense, sparse)}, 0.02)[0];
  EXPECT_NEAR(*result.difference.low, mean - 1.96 * se, 0.1 * se);
  EXPECT_NEAR(*result.difference.high, mean + 1.96 * se, 0.1 * se);
  EXPECT_NEAR(result.minimum_detectable, 2.8016 * se, 1e-4 * se);
  EXPECT_EQ(result.verdict, ModelVerdict::kWorse);
}

TEST(CompareTasks, RandomisationTestIsThatOfAllSigns) {
  // All 2^5 signs by hand: the mean is most extreme with all signs alike, 2 of 32.
  const auto five = compare_tasks(
      std::vector<PairedTask>{make_task({0.5, 0.5, 0.5, 0.5, 0.5}, {0.4, 0.3, 0.2, 0.1, 0.45})},
      0.02)[0];
  EXPECT_NEAR(five.p_value, 2.0 / 32.0, 0.01);  // four standard errors of 10,000 draws
  // Two samples never prove anything.
  const auto two =
      compare_stratified(std::vector<PairedTask>{make_task({1.0, 1.0}, {0.0, 0.0})}, 0.02);
  EXPECT_NEAR(two.p_value, 0.5, 0.02);
  EXPECT_EQ(two.verdict, ModelVerdict::kUnderpowered);
}

TEST(CompareTasks, Verdicts) {
  // 400 samples: 40 got worse, none better.
  std::vector<double> dense(400, 1.0), sparse(400, 1.0);
  for (int i = 0; i < 40; ++i) sparse[i] = 0.0;
  const auto worse =
      compare_tasks(std::vector<PairedTask>{make_task(dense, sparse, true)}, 0.02)[0];
  EXPECT_EQ(worse.verdict, ModelVerdict::kWorse);
  EXPECT_NEAR(*worse.mcnemar, std::pow(2.0, -39.0), 1e-15);
  EXPECT_EQ(worse.p_value, *worse.mcnemar);
  const auto better =
      compare_tasks(std::vector<PairedTask>{make_task(sparse, dense, true)}, 0.02)[0];
  EXPECT_EQ(better.verdict, ModelVerdict::kBetter);
  EXPECT_TRUE(better.beats_dense);
  const auto tied = compare_tasks(std::vector<PairedTask>{make_task(dense, dense, true)}, 0.02)[0];
  EXPECT_EQ(tied.verdict, ModelVerdict::kTied);
  EXPECT_EQ(tied.p_value, 1.0);
  // The same answers on 10 samples prove nothing about two points.
  const std::vector<double> few(10, 1.0);
  const auto small = compare_tasks(std::vector<PairedTask>{make_task(few, few, true)}, 0.02)[0];
  EXPECT_EQ(small.verdict, ModelVerdict::kUnderpowered);
  const auto one = compare_tasks(std::vector<PairedTask>{make_task({1.0}, {0.0})}, 0.02)[0];
  EXPECT_EQ(one.verdict, ModelVerdict::kUnderpowered);
  EXPECT_FALSE(one.difference.low.has_value());
}

TEST(CompareTasks, HolmReachesAcrossTheTasks) {
  std::vector<double> dense(100, 1.0), sparse(100, 1.0);
  for (int i = 0; i < 6; ++i) sparse[i] = 0.0;  // p = 2/64 = 0.03125
  const PairedTask task = make_task(dense, sparse, true);
  EXPECT_EQ(compare_tasks(std::vector<PairedTask>{task}, 0.02)[0].verdict, ModelVerdict::kWorse);
  const auto both = compare_tasks(std::vector<PairedTask>{task, task}, 0.02);
  EXPECT_NEAR(both[0].p_holm, 0.0625, 1e-12);
  EXPECT_EQ(both[0].verdict, ModelVerdict::kUnderpowered);
}

TEST(CompareStratified, WeighsTasksAlike) {
  const PairedTask a = make_task(std::vector<double>(300, 1.0), std::vector<double>(300, 0.9));
  const PairedTask b = make_task(std::vector<double>(100, 0.5), std::vector<double>(100, 0.5));
  const PairedResult result = compare_stratified(std::vector<PairedTask>{a, b}, 0.02);
  EXPECT_EQ(result.samples, 400);
  EXPECT_NEAR(result.difference.mean, -0.05, 1e-12);
  EXPECT_NEAR(*result.difference.low, -0.05, 1e-12);  // no spread within either task
  EXPECT_EQ(result.verdict, ModelVerdict::kWorse);
}

TEST(CompareStratified, ManyTasksTogetherSeeWhatOneCannot) {
  // 16 tasks of 100 samples without a difference: 1,600 samples, rule of three 3 / 1600.
  const std::vector<double> same(100, 0.5);
  const std::vector<PairedTask> tasks(16, make_task(same, same));
  const PairedResult result = compare_stratified(tasks, 0.02);
  EXPECT_NEAR(result.minimum_detectable, 3.0 / 1600.0, 1e-15);
  EXPECT_EQ(result.verdict, ModelVerdict::kTied);
  EXPECT_EQ(compare_tasks(tasks, 0.02)[0].verdict, ModelVerdict::kUnderpowered);
}

TEST(CompareStratified, TasksOfOneSampleHaveNoInterval) {
  const std::vector<PairedTask> tasks(8, make_task({0.5}, {0.45}));
  const PairedResult result = compare_stratified(tasks, 0.1);
  EXPECT_NEAR(result.difference.mean, -0.05, 1e-12);
  EXPECT_FALSE(result.difference.low.has_value());
  EXPECT_EQ(result.minimum_detectable, 1.0);
  EXPECT_NEAR(result.p_value, 2.0 / 256.0, 0.0036);  // all signs alike; 4 standard errors
}

TEST(CompareTasks, LevelHoldsForFewSamples) {
  // No true difference: p < 0.05 in at most 5% of experiments, and never below 6 samples, where
  // even all signs alike have 2 / 2^5 > 0.05. 4 standard errors of 400 experiments: 0.044.
  SplitMix64 rng(11);
  for (const int n : {2, 3, 5, 8, 20}) {
    int found = 0;
    for (int experiment = 0; experiment < 400; ++experiment) {
      PairedTask task = make_task(std::vector<double>(n, 0.5), {});
      for (int i = 0; i < n; ++i) task.sparse.push_back(0.5 + 0.1 * rng.normal());
      const auto seed = static_cast<std::uint64_t>(experiment);
      found += compare_tasks(std::vector<PairedTask>{task}, 0.02, 1000, seed)[0].p_value < 0.05;
    }
    EXPECT_LE(found / 400.0, n < 6 ? 0.044 : 0.05 + 0.044) << n;
  }
}

TEST(CompareTasks, SameSeedSameNumbers) {
  const std::vector<PairedTask> tasks = {make_task({0.1, 0.9, 0.4, 0.3}, {0.3, 0.7, 0.4, 0.1})};
  const auto a = compare_tasks(tasks, 0.02)[0];
  const auto b = compare_tasks(tasks, 0.02)[0];
  EXPECT_EQ(a.p_value, b.p_value);
  EXPECT_EQ(a.difference.low, b.difference.low);
  EXPECT_EQ(a.difference.high, b.difference.high);
}

TEST(CompareTasks, RefusesWhatCannotBeCompared) {
  const auto compare = [](PairedTask task) {
    return compare_tasks(std::vector<PairedTask>{std::move(task)}, 0.02);
  };
  EXPECT_THROW(compare(make_task({}, {})), std::invalid_argument);
  EXPECT_THROW(compare(make_task({1.0}, {1.0, 0.0})), std::invalid_argument);
  EXPECT_THROW(compare(make_task({1.0}, {std::nan("")})), std::invalid_argument);
  EXPECT_THROW(compare(make_task({1.0}, {0.5}, true)), std::invalid_argument);
  EXPECT_THROW(compare_stratified({}, 0.02), std::invalid_argument);
  EXPECT_THROW(mcnemar_exact(-1, 3), std::invalid_argument);
}

}  // namespace
}  // namespace sw
