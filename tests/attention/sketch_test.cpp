#include "attention/sketch.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "support/golden_file.hpp"

namespace sw {
namespace {

TEST(Sketch, SignsAndPermutationMatchTheGoldens) {
  const auto file = testing::golden_file("rng.json");
  ASSERT_EQ(file.at("srht").size(), 12u);
  for (const auto& c : file.at("srht")) {
    SketchParams params;
    params.seed = c.at("seed");
    const Sketch sketch(params, c.at("layer"), c.at("dim"));
    EXPECT_EQ(std::vector<double>(sketch.signs().begin(), sketch.signs().end()),
              c.at("signs").get<std::vector<double>>());
    EXPECT_EQ(std::vector<std::int64_t>(sketch.permutation().begin(), sketch.permutation().end()),
              c.at("perm").get<std::vector<std::int64_t>>());
  }
}

TEST(Sketch, GoldenInputsAreReproduced) {
  const auto file = testing::golden_file("rng.json");
  ASSERT_FALSE(file.at("inputs").empty());
  for (const auto& c : file.at("inputs")) {
    const HeadsTensor x = testing::golden_tensor(c.at("input_seed"), c.at("layer"), c.at("tensor"),
                                                 c.at("heads"), c.at("tokens"), c.at("dim"),
                                                 c.at("offset_scale"), c.at("noise_scale"));
    for (std::size_t i = 0; i < c.at("at").size(); ++i) {
      const auto& at = c.at("at")[i];
      EXPECT_EQ(x.row<float>(at[0], at[1])[at[2].get<int>()], c.at("values")[i].get<float>());
    }
  }
}

// y_q . y_k = d' (q . k) when r = d': section 1.
TEST(Sketch, FullTransformKeepsInnerProducts) {
  SplitMix64 rng(1);
  for (const std::int64_t dim : {1, 3, 64, 80, 128}) {
    const Sketch sketch({}, 5, dim);
    std::vector<double> q(static_cast<std::size_t>(dim));
    std::vector<double> k(q.size());
    for (double& x : q) x = rng.normal();
    for (double& x : k) x = rng.normal();
    std::vector<double> yq(static_cast<std::size_t>(sketch.dim()));
    std::vector<double> yk(yq.size());
    sketch.apply(q.data(), yq.data());
    sketch.apply(k.data(), yk.data());
    const double qk = std::inner_product(q.begin(), q.end(), k.begin(), 0.0);
    const double sketched = std::inner_product(yq.begin(), yq.end(), yk.begin(), 0.0);
    EXPECT_NEAR(sketched, static_cast<double>(sketch.padded_dim()) * qk, 1e-9);
  }
}

TEST(Sketch, NextPowerOfTwo) {
  EXPECT_EQ(next_power_of_two(1), 1);
  EXPECT_EQ(next_power_of_two(64), 64);
  EXPECT_EQ(next_power_of_two(80), 128);
}

}  // namespace
}  // namespace sw
