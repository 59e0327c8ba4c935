#include "report/profile_report.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sw {
namespace {

Measurement total(const std::string& implementation, std::int64_t tokens,
                  std::optional<double> density, std::vector<double> seconds, bool peer = false) {
  Measurement m;
  m.phase = "prefill";
  m.part = "total";
  m.implementation = implementation;
  m.peer = peer;
  m.shape = {tokens, 4, 2, 64, 64, 1, "bf16"};
  m.method = density ? "sketchwalk" : "dense";
  m.density = density;
  m.seconds = std::move(seconds);
  return m;
}

TEST(ProfileReport, RatiosAreOfMediansAndOfTheSameShapeOnly) {
  ProfileReport report;
  report.measurements = {total("theirs", 512, {}, {8, 8, 8}, true),
                         total("ours", 512, {}, {4, 100, 4}),
                         total("other", 512, {}, {1, 1, 1}),  // not the code of the sparse total
                         total("ours", 1024, {}, {9, 9, 9}), total("ours", 512, 0.2, {2, 1, 50})};
  const std::vector<ProfileComparison> comparisons = compare_with_dense(report);
  ASSERT_EQ(comparisons.size(), 1u);
  EXPECT_EQ(comparisons[0].total.median, 2.0);
  EXPECT_EQ(comparisons[0].total.mad, 1.0);
  ASSERT_EQ(comparisons[0].dense.size(), 2u);
  EXPECT_EQ(comparisons[0].dense[0].implementation, "ours");
  EXPECT_EQ(comparisons[0].dense[0].times, 2.0);
  EXPECT_EQ(comparisons[0].dense[1].implementation, "theirs");
  EXPECT_EQ(comparisons[0].dense[1].times, 4.0);
}

TEST(ProfileReport, CrossoverNeedsEveryLongerLengthToBeQuicker) {
  const auto crossover = [](std::vector<double> sparse) {
    ProfileReport report;
    const std::vector<std::int64_t> lengths{256, 512, 1024, 2048};
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      report.measurements.push_back(total("ours", lengths[i], {}, {1.0}));
      report.measurements.push_back(total("ours", lengths[i], 0.1, {sparse[i]}));
    }
    const std::vector<Crossover> all = crossovers(report);
    EXPECT_EQ(all.size(), 1u);
    return all.at(0).tokens;
  };
  EXPECT_EQ(crossover({2.0, 2.0, 0.5, 0.5}), 1024);
  EXPECT_EQ(crossover({0.5, 2.0, 2.0, 0.5}), 2048);
  EXPECT_EQ(crossover({0.5, 0.5, 0.5, 0.5}), 256);
  EXPECT_EQ(crossover({0.5, 0.5, 0.5, 1.0}), std::nullopt);
}

TEST(ProfileReport, SharesOfTheRooflineComeFromTheMedian) {
  ProfileReport report;
  report.roofline = {"product", 100.0, "copy", 10.0};
  Measurement m = total("ours", 512, 0.2, {1.0, 2.0, 4.0});
  m.flops = 50.0;
  m.bytes = 5.0;
  report.measurements = {m};
  m.flops = m.bytes = 0.0;
  report.measurements.push_back(m);
  const auto json = nlohmann::json::parse(profile_json_text(report));
  EXPECT_EQ(json["measurements"][0]["of_product"], 0.25);
  EXPECT_EQ(json["measurements"][0]["of_copy"], 0.25);
  EXPECT_TRUE(json["measurements"][1]["of_product"].is_null());
}

}  // namespace
}  // namespace sw
