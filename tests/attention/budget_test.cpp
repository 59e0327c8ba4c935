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

// kTopP keeps the forced blocks and then the fewest best ones that reach the share.
TEST(Budget, TopPKeepsTheFewestBlocksThatReachTheShare) {
  const BlockGeometry g{8, 32, 40};  // one row of five candidates
  BlockScores scores{1, Matrix(1, 5)};
  const double values[] = {1, 4, 2, 8, 5};
  std::copy(std::begin(values), std::end(values), scores.values.row(0).begin());
  const auto kept = [&](double p, Budget::Forced forced, std::int64_t min_blocks = 1) {
    Budget budget;
    budget.kind = Budget::Kind::kTopP;
    budget.top_p = p;
    budget.forced = forced;
    budget.min_blocks = min_blocks;
    const BlockSelection s = select_blocks(scores, g, budget, 0.1, Phase::kPrefill);
    return std::vector<std::int32_t>(s.blocks(0, 0).begin(), s.blocks(0, 0).end());
  };
  using Blocks = std::vector<std::int32_t>;
  EXPECT_EQ(kept(0.25, Budget::Forced::kDiagonal), Blocks({4}));
  EXPECT_EQ(kept(0.3, Budget::Forced::kSinkBlock), Blocks({0, 4}));
  EXPECT_EQ(kept(0.64, Budget::Forced::kDiagonal), Blocks({3, 4}));
  EXPECT_EQ(kept(0.66, Budget::Forced::kDiagonal), Blocks({1, 3, 4}));
  EXPECT_EQ(kept(0.25, Budget::Forced::kDiagonal, 3), Blocks({1, 3, 4}));
  EXPECT_EQ(kept(1.0, Budget::Forced::kDiagonal), Blocks({0, 1, 2, 3, 4}));
}

TEST(Budget, MarkedKeepsWhatScoresAboveZero) {
  const BlockGeometry g{8, 32, 40};  // one row of five candidates
  BlockScores scores{1, Matrix(1, 5)};
  scores.values(0, 1) = 2.0;
  scores.values(0, 2) = 0.5;
  Budget budget;
  budget.kind = Budget::Kind::kMarked;
  const BlockSelection s = select_blocks(scores, g, budget, 0.1, Phase::kPrefill);
  EXPECT_EQ(std::vector<std::int32_t>(s.blocks(0, 0).begin(), s.blocks(0, 0).end()),
            std::vector<std::int32_t>({1, 2, 4}));
}

TEST(Budget, RecentHalfAndSinkBlock) {
  const BlockGeometry g{8, 72, 80};  // one row of ten candidates
  BlockScores scores{1, Matrix(1, 10)};
  for (int j = 0; j < 10; ++j) scores.values(0, j) = 10 - j;
  const auto kept = [&](Budget::Forced forced, double density) {
    Budget budget;
    budget.forced = forced;
    const BlockSelection s = select_blocks(scores, g, budget, density, Phase::kDecode);
    return std::vector<std::int32_t>(s.blocks(0, 0).begin(), s.blocks(0, 0).end());
  };
  using Blocks = std::vector<std::int32_t>;  // 0.4 gives four blocks
  EXPECT_EQ(kept(Budget::Forced::kRecentHalf, 0.4), Blocks({0, 1, 8, 9}));
  EXPECT_EQ(kept(Budget::Forced::kSinkBlock, 0.4), Blocks({0, 1, 2, 9}));
  EXPECT_EQ(kept(Budget::Forced::kSinkBlock, 0.1), Blocks({9}));
  EXPECT_EQ(kept(Budget::Forced::kRecentHalf, 0.1), Blocks({9}));
}

// The last rows attend densely, the others pay for it; a dense phase needs no scores.
TEST(Budget, DenseRowsAndPhases) {
  const BlockGeometry g{8, 0, 8 * 128};
  Budget budget;
  budget.forced = Budget::Forced::kSinkAndRecent;
  budget.dense_last_rows = 2;
  budget.dense_phase = Phase::kDecode;
  const BlockSelection s = select_blocks({}, g, budget, 0.2, Phase::kPrefill);
  EXPECT_NEAR(s.count().density(), 0.2, 0.005);
  EXPECT_EQ(s.count_row(0, 126).density(), 1.0);
  EXPECT_EQ(s.count_row(0, 127).density(), 1.0);
  EXPECT_LT(s.count_row(0, 125).density(), 0.2);
  // Two such rows hold 3.1% of the pairs and the own blocks of all 0.8%: 3% pays for one, 1% for
  // none.
  const BlockSelection one = select_blocks({}, g, budget, 0.03, Phase::kPrefill);
  EXPECT_NEAR(one.count().density(), 0.03, 0.005);
  EXPECT_LT(one.count_row(0, 126).density(), 0.1);
  EXPECT_EQ(one.count_row(0, 127).density(), 1.0);
  const BlockSelection least = select_blocks({}, g, budget, 0.01, Phase::kPrefill);
  EXPECT_NEAR(least.count().density(), 0.01, 0.005);
  EXPECT_LT(least.count_row(0, 127).density(), 0.1);
  // A last row of one query costs little.
  const BlockGeometry ragged{8, 0, 8 * 127 + 1};
  const BlockSelection cheap = select_blocks({}, ragged, budget, 0.2, Phase::kPrefill);
  EXPECT_NEAR(cheap.count().density(), 0.2, 0.005);
  const BlockGeometry step{8, 1023, 1024};
  EXPECT_EQ(select_blocks({}, step, budget, 0.2, Phase::kDecode).count().density(), 1.0);
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
      if (forced != Budget::Forced::kDiagonal) {
        EXPECT_EQ(floored.blocks(0, r).front(), 0);
      }
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

// Error diffusion: over the steps of a block the kept tokens follow density * context to within
// half a block, whereas each step alone is a whole number of blocks beside its own.
TEST(Budget, StepsTogetherKeepTheDensity) {
  constexpr std::int64_t kBlock = 16;
  for (const double rho : {0.07, 0.2, 0.33, 0.5, 1.0}) {
    double owed = 0.0;
    for (std::int64_t tokens = 50 * kBlock + 1; tokens <= 51 * kBlock; ++tokens) {
      const BlockGeometry g{kBlock, tokens - 1, tokens};
      const std::int64_t m = matched_step_blocks(rho, g);
      const std::int64_t own = tokens - 50 * kBlock;
      owed += rho * static_cast<double>(tokens) - static_cast<double>((m - 1) * kBlock + own);
      EXPECT_LE(std::abs(owed), 0.5 * kBlock + 1e-9) << rho << " at " << tokens;
      Budget budget;
      budget.rounding = Budget::Rounding::kSteps;
      const BlockScores scores{1, Matrix(1, g.key_blocks())};
      const BlockSelection s = select_blocks(scores, g, budget, rho, Phase::kDecode);
      EXPECT_EQ(std::ssize(s.blocks(0, 0)), m);
    }
  }
  EXPECT_EQ(matched_step_blocks(0.01, {kBlock, 31, 32}), 1);  // never less than its own
}

// One share for all rows: brute force over shares finds none that is nearer to the density.
TEST(Budget, CalibratedSharesKeepTheDensity) {
  SplitMix64 rng(17);
  const BlockGeometry g{8, 0, 8 * 40 + 3};
  const BlockScores scores = random_scores(rng, g, 2);
  for (const auto forced : {Budget::Forced::kSinkBlock, Budget::Forced::kDiagonal}) {
    for (const double rho : {0.05, 0.2, 0.6, 1.0}) {
      Budget budget{.kind = Budget::Kind::kCalibrated, .forced = forced};
      const BlockSelection s = select_blocks(scores, g, budget, rho, Phase::kPrefill);
      ASSERT_TRUE(s.calibrated_share());
      budget.kind = Budget::Kind::kTopP;
      budget.top_p = *s.calibrated_share();
      const double kept = s.count().density();
      EXPECT_EQ(select_blocks(scores, g, budget, rho, Phase::kPrefill).count().density(), kept);
      for (double share = 0.001; share <= 1.0; share += 0.001) {
        budget.top_p = share;
        const double other =
            select_blocks(scores, g, budget, rho, Phase::kPrefill).count().density();
        EXPECT_GE(std::abs(other - rho), std::abs(kept - rho) - 1e-12) << rho << " " << share;
      }
    }
  }
}

// Added to 1 one by one, 1.2e-16 counts almost twice; added up before, it does not: sums in the
// order of rank are above the total.
TEST(Budget, CalibratedSharesOfTinyScoresStayShares) {
  const BlockGeometry g{8, 0, 8 * 40};
  BlockScores scores{1, Matrix(40, 40, 1.2e-16)};
  for (std::int64_t i = 2; i < 40; ++i) scores.values(i, i - 1) = 1.0;
  Budget budget{.kind = Budget::Kind::kCalibrated, .forced = Budget::Forced::kDiagonal};
  for (const double rho : {0.05, 0.1, 0.2, 0.9}) {
    const BlockSelection s = select_blocks(scores, g, budget, rho, Phase::kPrefill);
    ASSERT_TRUE(s.calibrated_share());
    EXPECT_LE(*s.calibrated_share(), 1.0) << rho;
    // One block beside its own in each row, or all of them: nothing else is a share.
    const double kept = s.count().density();
    Budget one = budget;
    one.kind = Budget::Kind::kTopP;
    one.top_p = 0.5;
    const double few = select_blocks(scores, g, one, rho, Phase::kPrefill).count().density();
    EXPECT_LE(std::abs(kept - rho), std::min(std::abs(few - rho), 1.0 - rho) + 1e-12) << rho;
  }
}

TEST(Budget, NaNScoresAreErrors) {
  const BlockGeometry g{4, 0, 12};
  BlockScores scores{1, Matrix(3, 3, 1.0)};
  scores.values(0, 2) = std::nan("");  // beyond the causal part: never looked at
  EXPECT_NO_THROW(select_blocks(scores, g, {}, 0.5, Phase::kPrefill));
  scores.values(2, 0) = std::nan("");
  EXPECT_THROW(select_blocks(scores, g, {}, 0.5, Phase::kPrefill), Error);
}

/// Scores of the single keys of one decode step.
BlockScores key_scores(std::vector<double> values) {
  BlockScores scores;
  scores.keys = Matrix(1, std::ssize(values));
  std::copy(values.begin(), values.end(), scores.keys.row(0).begin());
  return scores;
}

std::vector<std::int32_t> kept_keys(const BlockScores& scores, const Budget& budget,
                                    double density) {
  const std::int64_t tokens = scores.keys.cols();
  const BlockSelection s =
      select_blocks(scores, {4, tokens - 1, tokens}, budget, density, Phase::kDecode);
  EXPECT_TRUE(s.blocks(0, 0).empty());
  return {s.tokens(0, 0).begin(), s.tokens(0, 0).end()};
}

TEST(Budget, SingleKeysAreChosenLikeBlocks) {
  using Keys = std::vector<std::int32_t>;
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const BlockScores scores = key_scores({5, 1, 7, 7, 0, 3, 2, 6, 1, 0});
  Budget budget;
  budget.forced = Budget::Forced::kDiagonal;
  EXPECT_EQ(kept_keys(scores, budget, 0.1), (Keys{9}));
  EXPECT_EQ(kept_keys(scores, budget, 0.24), (Keys{3, 9}));  // the more recent of equals
  EXPECT_EQ(kept_keys(scores, budget, 0.4), (Keys{2, 3, 7, 9}));
  budget.forced = Budget::Forced::kSinkBlock;
  EXPECT_EQ(kept_keys(scores, budget, 0.3), (Keys{0, 3, 9}));
  budget.forced = Budget::Forced::kRecentHalf;
  EXPECT_EQ(kept_keys(scores, budget, 0.6), (Keys{0, 2, 3, 7, 8, 9}));
  budget.min_blocks = 2;  // four keys, and its own
  EXPECT_EQ(kept_keys(scores, budget, 0.1).size(), 5u);
  budget = Budget{.kind = Budget::Kind::kTopP, .forced = Budget::Forced::kDiagonal, .top_p = 0.6};
  EXPECT_EQ(kept_keys(scores, budget, 1.0), (Keys{2, 3, 7, 9}));  // 20 of 32
  budget.min_blocks = 2;
  EXPECT_EQ(kept_keys(scores, budget, 1.0), (Keys{0, 2, 3, 7, 9}));
  budget.min_blocks = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(kept_keys(scores, budget, 1.0).size(), 10u);
  budget = Budget{.kind = Budget::Kind::kCalibrated, .forced = Budget::Forced::kDiagonal};
  EXPECT_EQ(kept_keys(scores, budget, 0.1), (Keys{9}));
  budget.min_blocks = 2;
  EXPECT_EQ(kept_keys(scores, budget, 0.1), (Keys{0, 2, 3, 7, 9}));
  budget.kind = Budget::Kind::kMarked;
  EXPECT_EQ(kept_keys(scores, budget, 1.0), (Keys{0, 1, 2, 3, 5, 6, 7, 8, 9}));

  // Keys that are gone never return, whatever is forced; keys that are always kept count as forced.
  budget = Budget{};
  const BlockScores evicted = key_scores({-kInf, kInf, -kInf, 1, -kInf, -kInf, 2, 3, -kInf, 0});
  EXPECT_EQ(kept_keys(evicted, budget, 1.0), (Keys{1, 3, 6, 7, 9}));
  const BlockSelection s = select_blocks(evicted, {4, 9, 10}, budget, 0.2, Phase::kDecode);
  EXPECT_EQ(s.tokens(0, 0)[0], 1);
  EXPECT_EQ(s.token_parts(0, 0)[0], Part::kForced);
  EXPECT_EQ(s.token_parts(0, 0)[1], Part::kWindow);
  EXPECT_THROW(kept_keys(key_scores({1, std::nan(""), 2}), budget, 1.0), Error);
}

// Rows that mix blocks and keys realise the density to half a key of a row, and leave no key out
// that scores more, per key, than what they keep.
TEST(Budget, BlocksAndSingleKeysCompeteByTheirScorePerKey) {
  SplitMix64 rng(13);
  for (const double rho : {0.05, 0.1, 0.3, 0.7, 1.0}) {
    const BlockGeometry g{8, 0, 8 * 60 + 3};
    BlockScores scores = random_scores(rng, g, 2);
    scores.keys = Matrix(2, g.tokens);
    for (std::int64_t i = 0; i < 2; ++i) {
      for (double& x : scores.keys.row(i)) x = static_cast<double>(rng.below(100)) / 16.0;
    }
    Budget budget;
    budget.forced = Budget::Forced::kDiagonal;
    const BlockSelection s = select_blocks(scores, g, budget, rho, Phase::kPrefill);
    EXPECT_EQ(s.has_tokens(), rho < 1.0);
    EXPECT_NEAR(s.count().density(), rho, 0.001);
    for (std::int64_t group = 0; group < 2; ++group) {
      for (std::int64_t r = 0; r < g.rows(); ++r) {
        const auto blocks = s.blocks(group, r);
        const auto tokens = s.tokens(group, r);
        const auto key_row = scores.keys.row(group);
        const auto has_block = [&](std::int64_t t) {
          return std::binary_search(blocks.begin(), blocks.end(), t / g.block);
        };
        double left_out = -1.0;
        for (std::int64_t t = 0; t < r * g.block; ++t) {
          if (has_block(t) || std::binary_search(tokens.begin(), tokens.end(), t)) continue;
          left_out = std::max(left_out, key_row[static_cast<std::size_t>(t)]);
        }
        for (const std::int32_t t : tokens) {
          EXPECT_GE(key_row[static_cast<std::size_t>(t)], left_out) << "row " << r << " key " << t;
        }
        for (const std::int32_t j : blocks) {
          if (j == r) continue;
          // A kept block scored as much per key, or all of its keys did.
          const auto keys = key_row.subspan(static_cast<std::size_t>(j * g.block), 8);
          EXPECT_TRUE(scores.row(group, r, g.rows())[static_cast<std::size_t>(j)] / 8.0 >=
                          left_out ||
                      *std::min_element(keys.begin(), keys.end()) >= left_out)
              << "row " << r << " block " << j;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sw
