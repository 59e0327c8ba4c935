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
          continue;
        }
        const auto tokens = s.tokens(group, row);
        const auto single = std::find(tokens.begin(), tokens.end(), t);
        if (single != tokens.end()) {
          const auto part =
              s.token_parts(group, row)[static_cast<std::size_t>(single - tokens.begin())];
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
      std::vector<std::int32_t> tokens;
      std::vector<Part> token_parts;
      const bool singles = trial % 4 == 1;
      for (std::int64_t j = 0; j <= g.first_row() + row; ++j) {
        if (rng.below(2) == 0 && (singles || j < g.first_row() + row)) {
          for (std::int64_t t = j * g.block;
               singles && t < std::min((j + 1) * g.block, g.row_end(row)); ++t) {
            if (t < g.row_begin(row) && rng.below(3) > 0) continue;
            tokens.push_back(static_cast<std::int32_t>(t));
            token_parts.push_back(static_cast<Part>(rng.below(4)));
          }
          continue;
        }
        blocks.push_back(static_cast<std::int32_t>(j));
        parts.push_back(static_cast<Part>(rng.below(4)));
      }
      s.append_row(blocks, parts, tokens, token_parts);
    }
    if (trial % 2 == 0) {
      s.set_token_parts(static_cast<std::int64_t>(rng.below(30)),
                        static_cast<std::int64_t>(rng.below(30)));
    }
    const DensityCount want = count_by_definition(s);
    const DensityCount got = s.count();
    EXPECT_EQ(got.causal, want.causal);
    EXPECT_EQ(got.kept, want.kept);
    if (g.tokens - g.query_begin == 1) {
      const DensityCount in_keys = s.in_keys().count();
      EXPECT_EQ(in_keys.causal, want.causal);
      EXPECT_EQ(in_keys.kept, want.kept);
    }
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

TEST(BlockSelection, SingleKeysMustKeepTheInvariants) {
  using Keys = std::vector<std::int32_t>;
  // Queries at 9, 10 and 11, in block 2 of the keys 8 .. 11.
  const auto append = [](BlockSelection& s, const Keys& blocks, const Keys& tokens) {
    s.append_row(blocks, std::vector<Part>(blocks.size(), Part::kScored), tokens,
                 std::vector<Part>(tokens.size(), Part::kScored));
  };
  const auto rejected = [&](const Keys& blocks, const Keys& tokens) {
    BlockSelection s({4, 9, 12}, 1);
    EXPECT_THROW(append(s, blocks, tokens), std::logic_error);
  };
  rejected({2}, {5, 3});
  rejected({2}, {3, 3});
  rejected({2}, {-1});
  rejected({2}, {8});              // in a kept block
  rejected({1}, {9, 10});          // the last query does not see its own key
  rejected({1}, {9, 10, 11, 12});  // after the last query
  rejected({}, {8});
  BlockSelection s({4, 9, 12}, 1);
  append(s, {1}, {0, 9, 10, 11});
  EXPECT_TRUE(s.has_tokens());
  EXPECT_FALSE(s.only_blocks());
  EXPECT_THROW(s.set_token_parts(1, 0), std::logic_error);
  s.set_token_parts(0, 0);

  BlockSelection with_parts({4, 9, 12}, 1);
  with_parts.set_token_parts(1, 0);
  EXPECT_THROW(append(with_parts, {2}, {0}), std::logic_error);
  EXPECT_FALSE(with_parts.only_blocks());
}

TEST(BlockSelection, HeadsMapToRowSets) {
  EXPECT_EQ(BlockSelection({4, 0, 4}, 1).group_of_head(5, 8), 0);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 2).group_of_head(3, 8), 0);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 2).group_of_head(4, 8), 1);
  EXPECT_EQ(BlockSelection({4, 0, 4}, 8).group_of_head(5, 8), 5);
}

}  // namespace
}  // namespace sw
