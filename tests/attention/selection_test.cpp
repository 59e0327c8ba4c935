#include "attention/selection.hpp"

#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

#include "core/rng.hpp"

namespace sw {
namespace {

/// Kept pairs by part, counted one (query, key) pair at a time.
DensityCount count_by_definition(const BlockSelection& s) {
  const BlockGeometry& g = s.geometry();
  DensityCount count;
  for (std::int64_t group = 0; group < s.groups(); ++group) {
    for (std::int64_t p = g.query_begin; p < g.tokens; ++p) {
      const std::int64_t row = p / g.block - g.first_row();
      for (std::int64_t t = 0; t <= p; ++t) {
        ++count.causal;
        const auto blocks = s.blocks(group, row);
        const auto found = std::find(blocks.begin(), blocks.end(), t / g.block);
        if (found != blocks.end()) {
          const auto part = s.parts(group, row)[static_cast<std::size_t>(found - blocks.begin())];
          ++count.kept[static_cast<int>(part)];
        } else if (p - s.token_window() < t) {
          ++count.kept[static_cast<int>(Part::kWindow)];
        } else if (t < s.token_sink()) {
          ++count.kept[static_cast<int>(Part::kSink)];
        }
      }
    }
  }
  return count;
}

TEST(BlockSelection, CountsPairsAsDefined) {
  SplitMix64 rng(3);
  for (int trial = 0; trial < 200; ++trial) {
    BlockGeometry g;
    g.block = 1 + static_cast<std::int64_t>(rng.below(12));
    g.tokens = 1 + static_cast<std::int64_t>(rng.below(70));
    g.query_begin = static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(g.tokens)));
    BlockSelection s(g, 1 + static_cast<std::int64_t>(rng.below(3)));
    while (!s.complete()) {
      const auto row = (static_cast<std::int64_t>(s.row_ptr().size()) - 1) % g.rows();
      std::vector<std::int32_t> blocks;
      std::vector<Part> parts;
      for (std::int64_t j = 0; j <= g.first_row() + row; ++j) {
        if (j < g.first_row() + row && rng.below(2) == 0) continue;
        blocks.push_back(static_cast<std::int32_t>(j));
        parts.push_back(static_cast<Part>(rng.below(4)));
      }
      s.append_row(blocks, parts);
    }
    if (trial % 2 == 0) {
      s.set_token_parts(static_cast<std::int64_t>(rng.below(30)),
                        static_cast<std::int64_t>(rng.below(30)));
    }
    const DensityCount want = count_by_definition(s);
    const DensityCount got = s.count();
    EXPECT_EQ(got.causal, want.causal);
    EXPECT_EQ(got.kept, want.kept);
    // Touched blocks: those with a visible pair.
    for (std::int64_t group = 0; group < s.groups(); ++group) {
      for (std::int64_t r = 0; r < g.rows(); ++r) {
        std::set<std::int32_t> visible;
        const auto kept = s.blocks(group, r);
        visible.insert(kept.begin(), kept.end());
        for (std::int64_t p = g.row_begin(r); p < g.row_end(r); ++p) {
          for (std::int64_t t = 0; t <= p; ++t) {
            if (s.token_visible(p, t)) visible.insert(static_cast<std::int32_t>(t / g.block));
          }
        }
        const auto touched = s.touched_blocks(group, r);
        EXPECT_EQ(std::set<std::int32_t>(touched.begin(), touched.end()), visible);
      }
    }
  }
}

TEST(BlockSelection, DenseKeepsEveryPair) {
  for (const std::int64_t begin : {0, 5, 99}) {
    const BlockSelection s = BlockSelection::dense({16, begin, 100});
    EXPECT_TRUE(s.complete());
    EXPECT_EQ(s.count().density(), 1.0);
  }
}

TEST(BlockSelection, RowsMustKeepTheInvariants) {
  const std::vector<Part> two(2, Part::kScored);
  BlockSelection s({4, 0, 12}, 1);
  EXPECT_THROW(s.append_row({}, {}), std::logic_error);
  EXPECT_THROW(s.append_row(std::vector<std::int32_t>{1}, std::vector<Part>{Part::kSink}),
               std::logic_error);  // later than the row's own block
  s.append_row(std::vector<std::int32_t>{0}, std::vector<Part>{Part::kWindow});
  EXPECT_THROW(s.append_row(std::vector<std::int32_t>{1, 1}, two), std::logic_error);
  EXPECT_THROW(s.append_row(std::vector<std::int32_t>{1, 0}, two), std::logic_error);
  EXPECT_THROW(s.append_row(std::vector<std::int32_t>{0}, std::vector<Part>{Part::kSink}),
               std::logic_error);  // own block missing
  s.append_row(std::vector<std::int32_t>{0, 1}, two);
  EXPECT_FALSE(s.complete());
  s.append_row(std::vector<std::int32_t>{0, 2}, two);
  EXPECT_TRUE(s.complete());
  EXPECT_THROW(s.append_row(std::vector<std::int32_t>{0, 2}, two), std::logic_error);
}

TEST(BlockSelection, HeadsMapToRowSets) {
  EXPECT_EQ(BlockSelection({4, 0, 4}, 1).group_of_head(5, 8), 0);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 2).group_of_head(3, 8), 0);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 2).group_of_head(4, 8), 1);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 8).group_of_head(5, 8), 5);
}

}  // namespace
}  // namespace sw
