// The identities of sketchwalk.md section 7 as properties over random shapes.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/sketch.hpp"
#include "core/error.hpp"
#include "core/rng.hpp"
#include "core/text.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"
#include "policy/list.hpp"
#include "support/golden_inputs.hpp"

namespace sw {
namespace {

struct RandomProblem {
  HeadsTensor q, k, v;
  std::int64_t block;
  std::int64_t layer;

  explicit RandomProblem(SplitMix64& rng) {
    static constexpr std::int64_t kDims[] = {16, 64, 80, 128};
    const std::int64_t kv_heads = 1 + static_cast<std::int64_t>(rng.below(3));
    const std::int64_t heads = kv_heads * (1 + static_cast<std::int64_t>(rng.below(4)));
    const std::int64_t dim = kDims[rng.below(4)];
    const std::int64_t tokens = 1 + static_cast<std::int64_t>(rng.below(300));
    block = std::int64_t{8} << rng.below(4);
    layer = 2 + static_cast<std::int64_t>(rng.below(10));
    const std::uint64_t seed = rng.next();
    q = testing::golden_tensor(seed, layer, 0, heads, tokens, dim, 1.0, 1.0);
    k = testing::golden_tensor(seed, layer, 1, kv_heads, tokens, dim, 1.0, 1.0);
    v = testing::golden_tensor(seed, layer, 2, kv_heads, tokens, dim, 1.0, 1.0);
  }

  AttentionProblem prefill(std::int64_t tokens) const {
    return {q.view().tokens_slice(0, tokens), k.view().tokens_slice(0, tokens),
            v.view().tokens_slice(0, tokens), layer};
  }
  AttentionProblem all() const { return prefill(q.tokens()); }
};

Matrix score(const std::string& spec, const AttentionProblem& problem, std::int64_t block,
             const Backend& backend, WalkState walk = {}) {
  return make_policy(spec, 7)
      ->score_prefill({problem, backend, problem.geometry(block)}, walk, nullptr)
      .values;
}

void expect_near(const Matrix& a, const Matrix& b, double relative) {
  ASSERT_EQ(a.rows(), b.rows());
  for (std::int64_t i = 0; i < a.rows(); ++i) {
    for (std::int64_t j = 0; j < a.cols(); ++j) {
      EXPECT_NEAR(a(i, j), b(i, j), relative * std::fabs(b(i, j)) + 1e-280) << i << ", " << j;
    }
  }
}

class IdentityTest : public ::testing::Test {
 protected:
  SplitMix64 rng_{20260207};
  std::unique_ptr<Backend> reference_ = make_reference_backend();
  std::unique_ptr<Backend> cpu_ = make_cpu_backend();
};

TEST_F(IdentityTest, FullSketchEqualsExact) {
  for (int trial = 0; trial < 12; ++trial) {
    const RandomProblem p(rng_);
    for (const std::string preset : {"release", "preprint"}) {
      const std::string spec = "sketchwalk:preset=" + preset + ",sketch_dim=0,sketch=";
      // The reference transforms; `exact` does not: 2^7 fp64 additions and a power of 8.
      expect_near(score(spec + "srht", p.all(), p.block, *reference_),
                  score(spec + "exact", p.all(), p.block, *reference_), 1e-11);
    }
  }
}

TEST_F(IdentityTest, NoDampingAndNoDegreeAreSketchOnly) {
  for (int trial = 0; trial < 12; ++trial) {
    const RandomProblem p(rng_);
    const std::int64_t b = p.all().geometry(p.block).key_blocks();
    WalkState before;
    before.matrix = Matrix(b, b, 1.0 / static_cast<double>(b));
    const Matrix only = score("sketchwalk:walk=none", p.all(), p.block, *cpu_, before);
    expect_near(score("sketchwalk:damping=0", p.all(), p.block, *cpu_, before), only, 0.0);
    expect_near(score("sketchwalk:degree=0", p.all(), p.block, *cpu_, before), only, 0.0);
  }
}

TEST_F(IdentityTest, DensityOneAndOneBlockAreDense) {
  for (int trial = 0; trial < 12; ++trial) {
    const RandomProblem p(rng_);
    for (const char* spec : {"sketchwalk", "sketchwalk:preset=preprint", "sketchwalk:preset=tuned",
                             "sink_window", "random"}) {
      const auto policy = make_policy(spec, 7);
      for (const bool one_block : {false, true}) {
        const std::int64_t tokens = one_block ? std::min(p.block, p.q.tokens()) : p.q.tokens();
        const AttentionProblem problem = p.prefill(tokens);
        const BlockGeometry geometry = problem.geometry(p.block);
        WalkState walk;
        const BlockSelection selection =
            select_blocks(policy->score_prefill({problem, *cpu_, geometry}, walk, nullptr),
                          geometry, policy->budget(), one_block ? 0.05 : 1.0, Phase::kPrefill);
        EXPECT_EQ(selection.count().density(), 1.0);
        AttentionOutput sparse;
        AttentionOutput dense;
        cpu_->attend(problem, selection, sparse);
        cpu_->attend(problem, BlockSelection::dense(geometry), dense);
        for (std::int64_t i = 0; i < dense.out.elements(); ++i) {
          ASSERT_EQ(sparse.out.row<float>(0, 0)[i], dense.out.row<float>(0, 0)[i]);
        }
      }
    }
  }
}

TEST_F(IdentityTest, RowsOfTheTransitionMatrixSumToOne) {
  for (int trial = 0; trial < 12; ++trial) {
    const RandomProblem p(rng_);
    for (const char* spec :
         {"sketchwalk:walk=none", "sketchwalk", "sketchwalk:causal_sketch=true,walk=none",
          "sketchwalk:key_pool=4,walk=none", "sketchwalk:preset=preprint,normalize_walk=true",
          "sketchwalk:preset=preprint", "sketchwalk:preset=tuned"}) {
      const Matrix s = score(spec, p.all(), p.block, *cpu_);
      for (std::int64_t i = 0; i < s.rows(); ++i) {
        double total = 0.0;
        for (double x : s.row(i)) total += x;
        EXPECT_NEAR(total, 1.0, 1e-12) << spec;
      }
    }
  }
}

// Decode with one query in the window, a causal partial-mean cache and no walk scores the same
// numbers as a prefill whose last block row holds that one query.
TEST_F(IdentityTest, DecodeStepEqualsPrefillOfOneTokenMore) {
  const auto policy =
      make_policy("sketchwalk:walk=none,query_window=1,causal_sketch=true,partial_mean=true", 7);
  int compared = 0;
  while (compared < 12) {
    const RandomProblem p(rng_);
    const std::int64_t n = (p.q.tokens() - 1) / p.block * p.block + 1;  // first token of a block
    if (n == 1) continue;
    const AttentionProblem before = p.prefill(n - 1);
    WalkState walk;
    DecodeCache cache;
    policy->score_prefill({before, *reference_, before.geometry(p.block)}, walk, &cache);
    AttentionProblem step = p.prefill(n);
    step.q = step.q.tokens_slice(n - 1, n);
    WalkState step_walk;
    const Matrix row =
        policy->score_decode({step, *reference_, step.geometry(p.block)}, step_walk, cache).values;
    const AttentionProblem whole = p.prefill(n);
    const Matrix all =
        policy->score_prefill({whole, *reference_, whole.geometry(p.block)}, walk, nullptr).values;
    for (std::int64_t j = 0; j < row.cols(); ++j) {
      // Decode keeps the factors of logits and the exponentials in f32; terms of a logit add up to
      // about 4 here.
      EXPECT_NEAR(row(0, j), all(all.rows() - 1, j), 17 * 0x1p-24);
    }
    ++compared;
  }
}

// With queries and keys of one token each, at the scale of attention, the scores of a row with one
// query are its head's dense block masses.
TEST_F(IdentityTest, TunedWithoutPoolingScoresByDenseMass) {
  for (const std::int64_t dim : {64, 80}) {
    constexpr std::int64_t kTokens = 5 * 16 + 1;
    const HeadsTensor q = testing::golden_tensor(3, 2, 0, 1, kTokens, dim, 1.0, 1.0);
    const HeadsTensor k = testing::golden_tensor(3, 2, 1, 1, kTokens, dim, 1.0, 1.0);
    const AttentionProblem problem{q.view(), k.view(), k.view(), 2};
    AttentionOutput dense;
    BlockMass mass;
    reference_->attend_dense(problem, problem.geometry(16), dense, mass);
    const double natural =
        std::sqrt(static_cast<double>(dim) / static_cast<double>(next_power_of_two(dim)));
    const std::string spec =
        "sketchwalk:preset=tuned,query_pool=1,temperature=" + format_double(natural);
    const Matrix scores = score(spec, problem, 16, *reference_);
    const auto want = mass.row(0, 5);
    for (std::int64_t j = 0; j <= 5; ++j) {
      EXPECT_NEAR(scores(5, j), want[static_cast<std::size_t>(j)], 1e-6);
    }
  }
}

// A token appended in decode, with every query joining a window of one, equals the prefill that
// ends with it.
TEST_F(IdentityTest, TunedDecodeStepEqualsPrefillOfOneTokenMore) {
  const auto policy = make_policy("sketchwalk:preset=tuned,query_window=1,query_stride=1", 7);
  const RandomProblem p(rng_);
  const std::int64_t n = (p.q.tokens() - 1) / p.block * p.block + 1;
  ASSERT_GT(n, 1);
  const AttentionProblem before = p.prefill(n - 1);
  const AttentionProblem whole = p.prefill(n);
  AttentionProblem step = whole;
  step.q = step.q.tokens_slice(n - 1, n);
  WalkState walk;
  DecodeCache cache;
  policy->score_prefill({before, *reference_, before.geometry(p.block)}, walk, &cache);
  const Matrix row =
      policy->score_decode({step, *reference_, step.geometry(p.block)}, walk, cache).values;
  const Matrix all =
      policy->score_prefill({whole, *reference_, whole.geometry(p.block)}, walk, nullptr).values;
  for (std::int64_t j = 0; j < row.cols(); ++j) {
    // Decode keeps the factors of logits and the exponentials in f32, as above.
    EXPECT_NEAR(row(0, j), all(all.rows() - 1, j), 17 * 0x1p-24);
  }
}

// Each row set scores, walks and decodes as a layer that has its heads alone.
TEST_F(IdentityTest, RowSetsAreLayersOfTheirOwn) {
  constexpr std::int64_t kHeads = 6, kKvHeads = 2, kTokens = 90, kBlock = 16;
  for (const std::string options : {"", ",preset=preprint", ",preset=tuned,query_stride=1"}) {
    for (const std::int64_t sets : {kKvHeads, kHeads}) {
      SCOPED_TRACE(options + ", " + std::to_string(sets) + " sets");
      const std::string granularity = sets == kHeads ? "head" : "kv_head";
      const auto policy = make_policy("sketchwalk:granularity=" + granularity + options, 7);
      const auto alone = make_policy("sketchwalk:granularity=layer" + options, 7);
      WalkState walk, step_walk;
      std::vector<WalkState> alone_walk(sets), alone_step_walk(sets);
      for (const std::int64_t layer : {2, 3}) {
        const HeadsTensor q = testing::golden_tensor(5, layer, 0, kHeads, kTokens, 64, 1.0, 1.0);
        const HeadsTensor k = testing::golden_tensor(5, layer, 1, kKvHeads, kTokens, 64, 1.0, 1.0);
        const auto problem = [&](std::int64_t begin, std::int64_t end, std::int64_t g,
                                 std::int64_t of) {
          const std::int64_t heads = kHeads / of;
          const std::int64_t kv = std::max<std::int64_t>(1, kKvHeads / of);
          const HeadsView keys =
              k.view().heads_slice(g * kKvHeads / of, g * kKvHeads / of + kv).tokens_slice(0, end);
          return AttentionProblem{
              q.view().heads_slice(g * heads, (g + 1) * heads).tokens_slice(begin, end), keys, keys,
              layer};
        };
        DecodeCache cache;
        const AttentionProblem all = problem(0, kTokens - 1, 0, 1);
        const AttentionProblem step = problem(kTokens - 1, kTokens, 0, 1);
        const BlockScores prefill =
            policy->score_prefill({all, *cpu_, all.geometry(kBlock)}, walk, &cache);
        const BlockScores decode =
            policy->score_decode({step, *cpu_, step.geometry(kBlock)}, step_walk, cache);
        ASSERT_EQ(prefill.groups, sets);
        ASSERT_EQ(decode.groups, sets);
        for (std::int64_t g = 0; g < sets; ++g) {
          const AttentionProblem part = problem(0, kTokens - 1, g, sets);
          const AttentionProblem part_step = problem(kTokens - 1, kTokens, g, sets);
          DecodeCache own;
          const Matrix a =
              alone->score_prefill({part, *cpu_, part.geometry(kBlock)}, alone_walk[g], &own)
                  .values;
          const Matrix c = alone
                               ->score_decode({part_step, *cpu_, part_step.geometry(kBlock)},
                                              alone_step_walk[g], own)
                               .values;
          const std::int64_t rows = a.rows();
          for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0; j < a.cols(); ++j) {
              ASSERT_EQ(prefill.row(g, i, rows)[j], a(i, j));
            }
          }
          for (std::int64_t j = 0; j < c.cols(); ++j) ASSERT_EQ(decode.row(g, 0, 1)[j], c(0, j));
        }
      }
    }
  }
}

TEST_F(IdentityTest, BackendsScoreAlike) {
  for (int trial = 0; trial < 12; ++trial) {
    const RandomProblem p(rng_);
    for (const char* spec : {"sketchwalk", "sketchwalk:preset=preprint", "sketchwalk:sketch_dim=8",
                             "sketchwalk:preset=preprint,walk=damped"}) {
      expect_near(score(spec, p.all(), p.block, *cpu_), score(spec, p.all(), p.block, *reference_),
                  1e-10);
    }
  }
}

TEST_F(IdentityTest, RandomDrawsDependOnTheSeedOnly) {
  const RandomProblem p(rng_);
  WalkState walk;
  const ScoreContext context{p.all(), *cpu_, p.all().geometry(8)};
  const Matrix a = make_policy("random", 1)->score_prefill(context, walk, nullptr).values;
  const Matrix b = make_policy("random", 1)->score_prefill(context, walk, nullptr).values;
  const Matrix c = make_policy("random", 2)->score_prefill(context, walk, nullptr).values;
  EXPECT_TRUE(std::equal(a.values().begin(), a.values().end(), b.values().begin()));
  EXPECT_FALSE(std::equal(a.values().begin(), a.values().end(), c.values().begin()));
}

// Two parts of which one holds all queries, or whose means are the same, are one.
TEST_F(IdentityTest, EqualQueriesOfABlockAreNotSplit) {
  RandomProblem p(rng_);
  HeadsTensor& q = p.q;
  for (std::int64_t h = 0; h < q.heads(); ++h) {
    for (std::int64_t t = 0; t < q.tokens(); ++t) {
      std::copy_n(q.row<float>(h, t / p.block * p.block), q.dim(), q.row<float>(h, t));
    }
  }
  const AttentionProblem problem = p.all();
  for (const Backend* backend : {reference_.get(), cpu_.get()}) {
    // The mean of equal f32 rows is the row, to rounding; so is that of the parts they fall into.
    expect_near(score("sketchwalk:preset=tuned,split_heads=1", problem, p.block, *backend),
                score("sketchwalk:preset=tuned", problem, p.block, *backend), 1e-4);
  }
}

TEST_F(IdentityTest, SplitsNeedPooledQueriesAndFinerKeys) {
  const RandomProblem p(rng_);
  for (const char* spec : {"sketchwalk:split_heads=0.5", "sketchwalk:preset=preprint,split_heads=1",
                           "sketchwalk:preset=tuned,split_heads=0.5,query_pool=4",
                           "sketchwalk:preset=tuned,split_heads=0.5,sketch=srht"}) {
    EXPECT_THROW(score(spec, p.all(), p.block, *cpu_), Error) << spec;
  }
}

TEST_F(IdentityTest, PoolsMustDivideTheBlock) {
  const RandomProblem p(rng_);
  EXPECT_THROW(score("sketchwalk:key_pool=3", p.all(), p.block, *cpu_), std::runtime_error);
}

}  // namespace
}  // namespace sw
