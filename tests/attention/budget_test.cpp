#include "attention/budget.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/rng.hpp"

namespace sw {
namespace {

BlockScores random_scores(SplitMix64& rng, const BlockGeometry& g, std::int64_t groups) {
  BlockScores scores{groups, Matrix(groups * g.rows(), g.key_blocks())};
  for (std::int64_t i = 0; i < scores.values.rows(); ++i) {
    for (double& x : scores.values.row(i)) x = static_cast<double>(rng.below(50));
  }
  return scores;
}

// Section 3: over all rows the realised density of `matched` is rho to within rounding: a row keeps
// m - 1/2 of its area c - 1/2 (diagonal counted half), |m - 1/2 - rho (c - 1/2)| <= 1/2 but where
// m is clamped to 1.
TEST(Budget, MatchedRealisesTheRequestedDensity) {
  SplitMix64 rng(11);
  for (const double rho : {0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0}) {
    for (const std::int64_t b : {40, 128, 301}) {
      const BlockGeometry g{8, 0, 8 * b};
      for (const auto forced : {Budget::Forced::kSinkAndWindow, Budget::Forced::kDiagonal,
                                Budget::Forced::kSinkAndRecent}) {
        Budget budget;
        budget.forced = forced;
        const BlockSelection s =
            select_blocks(random_scores(rng, g, 1), g, budget, rho, Phase::kPrefill);
        double excess = 0.0;
        for (std::int64_t c = 1; c <= b; ++c) {
          const double m = static_cast<double>(s.blocks(0, c - 1).size()) - 0.5;
          const double difference = m - rho * (static_cast<double>(c) - 0.5);
          EXPECT_LE(std::fabs(difference), 0.5 + 1e-9);
          excess += difference;
        }
        const double area = static_cast<double>(b) * static_cast<double>(b) / 2;
        EXPECT_NEAR(s.count().density(), rho, std::fabs(excess) / area + 1.0 / (8.0 * b));
        EXPECT_NEAR(s.count().density(), rho, 0.01);
      }
    }
  }
}

// With a floor, a row keeps max(m, floor) of its blocks; at three or more a sink is among them.
TEST(Budget, MinBlocksHoldsTheFloorOfEarlyRows) {
  SplitMix64 rng(13);
  const BlockGeometry g{8, 0, 8 * 60};
  for (const auto forced : {Budget::Forced::kSinkAndWindow, Budget::Forced::kDiagonal,
                            Budget::Forced::kSinkAndRecent}) {
    Budget budget;
    budget.forced = forced;
    const BlockScores scores = random_scores(rng, g, 1);
    const BlockSelection plain = select_blocks(scores, g, budget, 0.1, Phase::kPrefill);
    budget.min_blocks = 4;
    const BlockSelection floored = select_blocks(scores, g, budget, 0.1, Phase::kPrefill);
    for (std::int64_t r = 0; r < 60; ++r) {
      const std::size_t m = plain.blocks(0, r).size();
      EXPECT_EQ(
          floored.blocks(0, r).size(),
          std::max<std::size_t>(m, static_cast<std::size_t>(std::min<std::int64_t>(4, r + 1))));
      if (forced != Budget::Forced::kDiagonal) EXPECT_EQ(floored.blocks(0, r).front(), 0);
    }
  }
}

TEST(Budget, EqualScoresTakeTheMoreRecentBlock) {
  const BlockGeometry g{4, 0, 40};
  Budget budget;
  budget.forced = Budget::Forced::kDiagonal;
  const BlockSelection s = select_blocks({1, Matrix(10, 10, 1.0)}, g, budget, 0.3, Phase::kPrefill);
  for (std::int64_t r = 0; r < 10; ++r) {
    const auto blocks = s.blocks(0, r);
    EXPECT_EQ(blocks.front(), r + 1 - static_cast<std::int64_t>(blocks.size()));
  }
}

// What a row keeps depends on the scores of its blocks only, not on the order of candidates.
TEST(Budget, RaisingAKeptBlockChangesNothing) {
  SplitMix64 rng(5);
  const BlockGeometry g{4, 0, 100};
  for (int trial = 0; trial < 50; ++trial) {
    BlockScores scores = random_scores(rng, g, 1);
    const BlockSelection before = select_blocks(scores, g, {}, 0.4, Phase::kPrefill);
    for (std::int64_t r = 0; r < g.rows(); ++r) {
      for (std::size_t i = 0; i < before.blocks(0, r).size(); ++i) {
        if (before.parts(0, r)[i] == Part::kScored) {
          scores.values(r, before.blocks(0, r)[i]) += 100.0;
        }
      }
    }
    const BlockSelection after = select_blocks(scores, g, {}, 0.4, Phase::kPrefill);
    EXPECT_TRUE(std::equal(before.all_blocks().begin(), before.all_blocks().end(),
                           after.all_blocks().begin(), after.all_blocks().end()));
  }
}

TEST(Budget, MatchedCounts) {
  EXPECT_EQ(matched_blocks(0.2, 1), 1);
  EXPECT_EQ(matched_blocks(0.2, 6), 2);     // floor(0.2 * 5.5 + 1)
  EXPECT_EQ(matched_blocks(0.2, 128), 26);  // floor(25.5 + 1)
  EXPECT_EQ(matched_blocks(1.0, 77), 77);
  EXPECT_EQ(matched_blocks(1e-9, 77), 1);
}

TEST(Budget, NaNScoresAreErrors) {
  const BlockGeometry g{4, 0, 12};
  BlockScores scores{1, Matrix(3, 3, 1.0)};
  scores.values(0, 2) = std::nan("");  // beyond the causal part: never looked at
  EXPECT_NO_THROW(select_blocks(scores, g, {}, 0.5, Phase::kPrefill));
  scores.values(2, 0) = std::nan("");
  EXPECT_THROW(select_blocks(scores, g, {}, 0.5, Phase::kPrefill), Error);
}

}  // namespace
}  // namespace sw
