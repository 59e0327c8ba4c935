// The baseline policies against tests/golden/baseline_policies.json, which an independent numpy
// script wrote from the papers' definitions (make_baseline_goldens.py); their limits, and whether
// they find blocks that a synthetic trace makes important.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "core/error.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"
#include "metric/oracle_gap.hpp"
#include "policy/list.hpp"
#include "support/golden_file.hpp"
#include "trace/synthetic.hpp"

namespace sw {
namespace {

using nlohmann::json;

constexpr const char* kPrefillMethods[] = {"block_mean",     "block_max",   "minmax_bound",
                                           "vertical_slash", "flexprefill", "xattention",
                                           "tri_shape"};
constexpr const char* kDecodeMethods[] = {
    "quest", "twilight", "twilight:budget=matched", "adamas", "magicpig", "snapkv", "h2o", "tova"};

std::string spec_of(const std::string& name, const json& options) {
  std::string spec = name;
  char separator = ':';
  for (const auto& [key, value] : options.items()) {
    spec += separator + key + "=" + (value.is_string() ? value.get<std::string>() : value.dump());
    separator = ',';
  }
  return spec;
}

// Scores come from f32 inner products: of magnitude up to 20 over at most 16 d = 384 terms, hence
// 20 * 384/16 * 2^-24 = 3e-5 absolute in a logit, and that relative error of its exponential; and
// from the backends' f32 block masses.
constexpr double kTolerance = 3e-5;

json listed(std::span<const std::int32_t> x) {
  return std::vector<std::int32_t>(x.begin(), x.end());
}

/// Scores of single keys; null stands for one that is gone and "inf" for one that always stays.
void expect_keys(std::span<const double> actual, const json& want) {
  ASSERT_EQ(actual.size(), want.size());
  for (std::size_t t = 0; t < actual.size(); ++t) {
    if (want[t].is_number()) {
      const double value = want[t];
      EXPECT_NEAR(actual[t], value, kTolerance * value + 1e-12) << "key " << t;
    } else {
      EXPECT_EQ(actual[t], want[t].is_null() ? -INFINITY : INFINITY) << "key " << t;
    }
  }
}

void expect_outcome(const BlockSelection& selection, const BlockScores& scores, const json& want) {
  const std::int64_t rows = selection.rows();
  ASSERT_EQ(static_cast<std::size_t>(selection.groups()),
            want.at(want.contains("rows") ? "rows" : "tokens").size());
  for (std::int64_t g = 0; g < selection.groups(); ++g) {
    const auto set = static_cast<std::size_t>(g);
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto row = static_cast<std::size_t>(r);
      EXPECT_EQ(listed(selection.blocks(g, r)),
                want.contains("rows") ? want.at("rows")[set][row] : json::array())
          << "set " << g << " row " << r;
      EXPECT_EQ(listed(selection.tokens(g, r)),
                want.contains("tokens") ? want.at("tokens")[set][row] : json::array())
          << "set " << g << " row " << r;
    }
    if (want.contains("keys")) expect_keys(scores.keys.row(g), want.at("keys")[set]);
    if (!want.contains("scores")) continue;
    const json& expected = want.at("scores")[set];
    const auto actual = scores.row(g, rows - 1, rows);
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t j = 0; j < actual.size(); ++j) {
      const double value = expected[j];
      EXPECT_NEAR(actual[j], value, kTolerance * value + 1e-12) << "set " << g << " block " << j;
    }
  }
}

/// What `policy` selects for one phase; scores are empty where it attends densely.
struct Outcome {
  BlockScores scores;
  BlockSelection selection;
};

Outcome run(const Policy& policy, const AttentionProblem& problem, std::int64_t block,
            const Backend& backend, DecodeCache& cache, double density, Phase phase) {
  const BlockGeometry geometry = problem.geometry(block);
  const ScoreContext context{problem, backend, geometry, nullptr, nullptr, density};
  WalkState walk;
  Outcome outcome;
  outcome.scores = phase == Phase::kPrefill ? policy.score_prefill(context, walk, &cache)
                                            : policy.score_decode(context, walk, cache);
  outcome.selection = select_blocks(outcome.scores, geometry, policy.budget(), density, phase);
  return outcome;
}

struct BackendCase {
  std::string name;
  std::unique_ptr<Backend> (*make)();
};

class BaselineGoldenTest : public ::testing::TestWithParam<BackendCase> {};

TEST_P(BaselineGoldenTest, SelectionsAndScores) {
  const auto backend = GetParam().make();
  const json file = testing::golden_file("baseline_policies.json");
  ASSERT_GE(file.at("cases").size(), 75u);
  for (const json& c : file.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const auto policy = make_policy(spec_of(c.at("policy"), c.at("options")), 0);
    const std::int64_t n = c.at("shape").at("tokens");
    const std::int64_t block = c.at("shape").at("block");
    const std::int64_t layer = c.at("layer");
    const std::int64_t steps = c.at("steps");
    const testing::GoldenLayer data(c, layer, n + steps);
    DecodeCache cache;
    const auto check = [&](const AttentionProblem& problem, Phase phase, const json& want) {
      const Outcome outcome = run(*policy, problem, block, *backend, cache, c.at("density"), phase);
      if (want.is_null()) {
        EXPECT_EQ(outcome.selection.count().density(), 1.0);
        EXPECT_TRUE(outcome.scores.values.empty());
        EXPECT_TRUE(outcome.scores.keys.empty());
      } else {
        expect_outcome(outcome.selection, outcome.scores, want);
      }
    };
    {
      SCOPED_TRACE("prefill");
      check(data.problem(layer, 0, n), Phase::kPrefill, c.at("prefill"));
    }
    for (std::int64_t step = 0; step < steps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      check(data.problem(layer, n + step, n + step + 1), Phase::kDecode,
            c.at("decode")[static_cast<std::size_t>(step)]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, BaselineGoldenTest,
                         ::testing::Values(BackendCase{"reference", make_reference_backend},
                                           BackendCase{"cpu", [] { return make_cpu_backend(); }}),
                         [](const auto& backend) { return backend.param.name; });

/// A layer of a synthetic trace: 15 whole blocks and one of 40 tokens, and decode steps in the same
/// block. Every block row has two heavy blocks.
class PlantedLayer {
 public:
  PlantedLayer() {
    options_.num_layers = 1;
    options_.first_layer = 2;
    options_.prefill_tokens = 1000;
    options_.decode_tokens = 8;
    options_.dtype = DType::kF32;
    options_.seed = 3;
    plan_ = plan_synthetic_trace(options_);
    q_ = synthetic_tokens(options_, plan_, 2, TraceTensor::kQ, 0, plan_.total_tokens);
    k_ = synthetic_tokens(options_, plan_, 2, TraceTensor::kK, 0, plan_.total_tokens);
    v_ = synthetic_tokens(options_, plan_, 2, TraceTensor::kV, 0, plan_.total_tokens);
  }

  static constexpr std::int64_t kBlock = 64;
  AttentionProblem problem(std::int64_t begin, std::int64_t end) const {
    return {q_.view().tokens_slice(begin, end), k_.view().tokens_slice(0, end),
            v_.view().tokens_slice(0, end), 2};
  }
  AttentionProblem prefill() const { return problem(0, plan_.prefill_tokens); }
  AttentionProblem step(std::int64_t s) const {
    return problem(plan_.prefill_tokens + s, plan_.prefill_tokens + s + 1);
  }

  /// Share of the heavy blocks of the block rows [first, end) that every row set keeps, whole or in
  /// single keys.
  double recall(const BlockSelection& selection, std::int64_t first, std::int64_t end) const {
    const PlantedBlocks& planted = *plan_.planted;
    double found = 0.0;
    int heavy = 0;
    for (std::int64_t i = first; i < end; ++i) {
      for (std::int64_t at = 0; at < planted.width; ++at) {
        const std::int32_t j = planted.blocks[static_cast<std::size_t>(i * planted.width + at)];
        if (j < 0) continue;
        for (std::int64_t g = 0; g < selection.groups(); ++g) {
          const std::int64_t row = i - selection.geometry().first_row();
          const auto blocks = selection.blocks(g, row);
          const auto tokens = selection.tokens(g, row);
          const auto singles = std::lower_bound(tokens.begin(), tokens.end(), (j + 1) * kBlock) -
                               std::lower_bound(tokens.begin(), tokens.end(), j * kBlock);
          found += std::binary_search(blocks.begin(), blocks.end(), j)
                       ? 1.0
                       : static_cast<double>(singles) / kBlock;
          ++heavy;
        }
      }
    }
    return found / heavy;
  }

 private:
  SyntheticOptions options_;
  TraceInfo plan_;
  HeadsTensor q_, k_, v_;
};

class BaselineTest : public ::testing::Test {
 protected:
  Outcome prefill(const std::string& spec, double density, DecodeCache& cache) const {
    return run(*make_policy(spec, 0), layer_.prefill(), PlantedLayer::kBlock, *backend_, cache,
               density, Phase::kPrefill);
  }
  Outcome decode(const std::string& spec, std::int64_t step, double density,
                 DecodeCache& cache) const {
    return run(*make_policy(spec, 0), layer_.step(step), PlantedLayer::kBlock, *backend_, cache,
               density, Phase::kDecode);
  }

  PlantedLayer layer_;
  std::unique_ptr<Backend> backend_ = make_cpu_backend();
};

// From row 8 on, half of the blocks hold the first, the own, its neighbour (which is planted too,
// a little weaker) and both heavy ones; chance finds less than half of these.
TEST_F(BaselineTest, PrefillFindsPlantedBlocks) {
  for (const std::string spec : {"block_mean", "block_max", "minmax_bound", "minmax_bound:page=16",
                                 "xattention", "flexprefill:tau=1", "block_mean:granularity=layer",
                                 "xattention:granularity=kv_head", "block_mean:query_pool=8"}) {
    DecodeCache cache;
    const Outcome outcome =
        prefill(spec + (spec.find(':') == spec.npos ? ":" : ",") + "forced=sink_block", 0.5, cache);
    EXPECT_EQ(layer_.recall(outcome.selection, 8, 16), 1.0) << spec;
  }
}

// Lines extrapolate from the last rows: theirs they find, those of other rows, planted at random,
// no better than chance. FlexPrefill's last 64 queries reach into row 14, whose heavy blocks
// compete.
TEST_F(BaselineTest, LinesFindPlantedBlocksOfTheLastRow) {
  for (const std::string spec : {"vertical_slash:unit=block,last_q=32",
                                 "vertical_slash:forced=diagonal,last_q=32", "flexprefill:tau=0"}) {
    DecodeCache cache;
    const Outcome outcome = prefill(spec, 0.5, cache);
    EXPECT_GE(layer_.recall(outcome.selection, 15, 16), spec == "flexprefill:tau=0" ? 0.75 : 1.0)
        << spec;
    EXPECT_LT(layer_.recall(outcome.selection, 8, 15), 0.8) << spec;
  }
}

TEST_F(BaselineTest, DecodeFindsPlantedBlocks) {
  for (const char* spec :
       {"block_mean", "block_max:forced=diagonal", "minmax_bound:forced=diagonal", "quest",
        "quest:page=16,granularity=kv_head", "twilight:unit=block,budget=matched",
        "twilight:unit=block,top_p=0.99", "adamas:unit=block", "magicpig:unit=block",
        "magicpig:unit=block,bits=8,tables=75,granularity=layer", "snapkv:unit=block",
        "snapkv:unit=block,pooling=max,granularity=layer", "tova:unit=block",
        "tova:unit=block,granularity=head", "twilight:budget=matched", "snapkv", "tova",
        "tova:evict=false,granularity=head"}) {
    DecodeCache cache;
    prefill(spec, 0.3, cache);
    for (std::int64_t step = 0; step < 8; ++step) {
      const Outcome outcome = decode(spec, step, 0.3, cache);
      EXPECT_EQ(layer_.recall(outcome.selection, 15, 16), 1.0) << spec << " step " << step;
    }
  }
}

// What ranks single keys by 2 bits, or by a sample, misses some keys of a heavy block: the cosine
// of query and key is about 0.4. MagicPIG samples such a key with a chance of 0.99 with these
// tables.
TEST_F(BaselineTest, ApproximateScoresOfSingleKeysFindMostPlantedKeys) {
  for (const char* spec : {"adamas", "adamas:granularity=layer", "magicpig:bits=6"}) {
    DecodeCache cache;
    prefill(spec, 0.3, cache);
    for (std::int64_t step = 0; step < 8; ++step) {
      const Outcome outcome = decode(spec, step, 0.3, cache);
      EXPECT_GE(layer_.recall(outcome.selection, 15, 16), 0.9) << spec << " step " << step;
    }
  }
}

// Every query attends to the first tokens of the trace, and to nothing else in common.
TEST_F(BaselineTest, HeavyHittersFindWhatAllQueriesAttendTo) {
  for (const char* spec : {"h2o:unit=block", "h2o", "h2o:evict=false"}) {
    DecodeCache cache;
    prefill(spec, 0.2, cache);
    const BlockSelection selection = decode(spec, 0, 0.2, cache).selection;
    for (std::int64_t g = 0; g < selection.groups(); ++g) {
      const BlockSelection keys = selection.in_keys();
      for (std::int32_t t = 0; t < 4; ++t) EXPECT_EQ(keys.blocks(g, 0)[t], t) << spec;
    }
  }
}

// What an eviction drops never returns, whatever the density; each density keeps its own keys in
// one cache, and exactly as many as asked for.
TEST_F(BaselineTest, EvictedKeysNeverReturn) {
  for (const char* spec : {"h2o", "h2o:forced=sink_window", "tova", "tova:granularity=head"}) {
    DecodeCache cache;
    prefill(spec, 1.0, cache);
    std::map<double, std::vector<std::set<std::int32_t>>> alive;
    for (std::int64_t step = 0; step < 8; ++step) {
      const auto own = static_cast<std::int32_t>(1000 + step);
      for (const double density : {0.1, 0.3, 1.0}) {
        const BlockSelection selection = decode(spec, step, density, cache).selection;
        auto& before = alive[density];
        before.resize(static_cast<std::size_t>(selection.groups()));
        for (std::int64_t g = 0; g < selection.groups(); ++g) {
          const auto tokens = selection.tokens(g, 0);
          EXPECT_EQ(std::ssize(tokens), matched_keys(density, own + 1)) << spec;
          auto& last = before[static_cast<std::size_t>(g)];
          for (const std::int32_t t : tokens) {
            EXPECT_TRUE(step == 0 || t == own || last.count(t) == 1) << spec << " key " << t;
          }
          last = {tokens.begin(), tokens.end()};
        }
      }
    }
  }
}

// With budget=sampled MagicPIG keeps the keys that the paper's tables yield and the exact ones.
TEST_F(BaselineTest, SampledKeysHaveADensityOfTheirOwn) {
  const std::string few = "magicpig:budget=sampled,bits=12,tables=40";
  const std::string many = "magicpig:budget=sampled,bits=6,tables=40";
  EXPECT_FALSE(make_policy(few, 0)->takes_density());
  DecodeCache cache;
  prefill(few, 1.0, cache);
  const BlockSelection sampled = decode(few, 0, 1.0, cache).selection;
  prefill(many, 1.0, cache);
  EXPECT_LT(sampled.count().density(), decode(many, 0, 1.0, cache).selection.count().density());
  for (std::int64_t g = 0; g < sampled.groups(); ++g) {
    const auto tokens = sampled.tokens(g, 0);
    for (const std::int32_t t : {0, 3, 936, 999, 1000}) {
      EXPECT_TRUE(std::binary_search(tokens.begin(), tokens.end(), t)) << t;
    }
  }
}

TEST_F(BaselineTest, OracleOfSingleKeysIsTheBestOfItsSize) {
  for (const std::string sharing : {"layer", "kv_head", "head"}) {
    DecodeCache cache;
    const std::string spec = "oracle:unit=token,granularity=" + sharing;
    const BlockSelection keys = decode(spec, 0, 0.1, cache).selection.in_keys();
    AttentionOutput output;
    BlockMass mass;
    const AttentionProblem step = layer_.step(0);
    backend_->attend_dense(step, step.geometry(1), output, mass);
    const BlockSelection best = best_selection(mass, keys);
    for (std::int64_t g = 0; g < keys.groups(); ++g) {
      EXPECT_EQ(listed(keys.blocks(g, 0)), listed(best.blocks(g, 0)));
    }
  }
}

TEST_F(BaselineTest, FullBudgetIsDense) {
  const auto expect_dense = [&](const std::string& spec) {
    SCOPED_TRACE(spec);
    DecodeCache cache;
    const Outcome rows = prefill(spec, 1.0, cache);
    EXPECT_EQ(rows.selection.count().density(), 1.0);
    AttentionOutput sparse;
    AttentionOutput dense;
    backend_->attend(layer_.prefill(), rows.selection, sparse);
    backend_->attend(layer_.prefill(), BlockSelection::dense(rows.selection.geometry()), dense);
    for (std::int64_t i = 0; i < dense.out.elements(); ++i) {
      ASSERT_EQ(sparse.out.row<float>(0, 0)[i], dense.out.row<float>(0, 0)[i]);
    }
    const BlockSelection step = decode(spec, 0, 1.0, cache).selection;
    EXPECT_EQ(step.count().density(), 1.0);
    backend_->attend(layer_.step(0), step, sparse);
    backend_->attend(layer_.step(0), BlockSelection::dense(step.geometry()), dense);
    for (std::int64_t i = 0; i < dense.out.elements(); ++i) {
      ASSERT_EQ(sparse.out.row<float>(0, 0)[i], dense.out.row<float>(0, 0)[i]);
    }
  };
  for (const char* name : kPrefillMethods) expect_dense(name);
  for (const char* name : kDecodeMethods) expect_dense(name);
  for (const char* spec :
       {"vertical_slash:unit=block", "twilight:unit=block,budget=matched", "adamas:unit=block",
        "magicpig:unit=block", "snapkv:unit=block", "h2o:unit=block", "h2o:evict=false",
        "tova:unit=block", "block_mean:budget=top_p,top_p=1", "xattention:budget=top_p,top_p=1",
        "vertical_slash:unit=block,budget=top_p,top_p=1", "quest:budget=top_p,top_p=1",
        "twilight:top_p=1", "twilight:unit=block,top_p=1", "magicpig:budget=top_p,top_p=1"}) {
    expect_dense(spec);
  }
  for (const char* tau : {"0", "1"}) {
    expect_dense("flexprefill:budget=gamma,gamma=1,min_budget=1000,tau=" + std::string(tau));
  }
}

// A decode method leaves the prefill alone, and the other way round where its paper says so.
TEST_F(BaselineTest, DensityHoldsInThePhaseOfTheMethod) {
  for (const char* name : kPrefillMethods) {
    DecodeCache cache;
    // Each of 16 rows rounds by up to half a block, of an area of 128; not all the same way.
    EXPECT_NEAR(prefill(name, 0.3, cache).selection.count().density(), 0.3, 0.03) << name;
    const double decoded = decode(name, 0, 0.3, cache).selection.count().density();
    const std::string method = name;
    if (method == "block_mean" || method == "block_max" || method == "minmax_bound") {
      EXPECT_NEAR(decoded, 0.3, 0.07) << name;
    } else {
      EXPECT_EQ(decoded, 1.0) << name;
    }
  }
  for (const std::string spec : kDecodeMethods) {
    DecodeCache cache;
    EXPECT_EQ(prefill(spec, 0.3, cache).selection.count().density(), 1.0) << spec;
    // Half a key of 1001, or half a block of 16.
    EXPECT_NEAR(decode(spec, 0, 0.3, cache).selection.count().density(), 0.3,
                spec == "quest" ? 0.04 : 0.0005)
        << spec;
  }
  // Rows of single keys round by half a key of 500 on average.
  for (const double density : {0.1, 0.3}) {
    for (const char* spec :
         {"vertical_slash", "vertical_slash:forced=diagonal,granularity=layer"}) {
      DecodeCache cache;
      EXPECT_NEAR(prefill(spec, density, cache).selection.count().density(), density, 0.001)
          << spec;
    }
  }
}

TEST_F(BaselineTest, GranularityChoosesTheRowSets) {
  for (const std::string name :
       {"quest", "twilight", "adamas", "magicpig", "snapkv", "h2o", "tova"}) {
    for (const auto& [sharing, groups] : {std::pair("layer", 1), {"kv_head", 2}, {"head", 4}}) {
      DecodeCache cache;
      const std::string spec = name + ":granularity=" + sharing;
      prefill(spec, 0.3, cache);
      EXPECT_EQ(decode(spec, 0, 0.3, cache).selection.groups(), groups) << spec;
    }
  }
  for (const std::string name : {"block_mean", "minmax_bound", "xattention", "vertical_slash"}) {
    DecodeCache cache;
    EXPECT_EQ(prefill(name + ":granularity=layer", 0.3, cache).selection.groups(), 1);
    EXPECT_EQ(prefill(name + ":granularity=kv_head", 0.3, cache).selection.groups(), 2);
    EXPECT_EQ(prefill(name + ":granularity=head", 0.3, cache).selection.groups(), 4);
  }
}

// An upper bound is at least the maximum, and pages of one key have no slack.
TEST_F(BaselineTest, BoundsOfSingleKeysAreTheMaximum) {
  DecodeCache cache;
  const BlockScores maxima = prefill("block_max", 0.3, cache).scores;
  const BlockScores bounds = prefill("minmax_bound:page=1", 0.3, cache).scores;
  for (std::int64_t i = 0; i < maxima.values.rows(); ++i) {
    for (std::int64_t j = 0; j < maxima.values.cols(); ++j) {
      EXPECT_NEAR(bounds.values(i, j), maxima.values(i, j), 1e-5);
    }
  }
}

std::string error_of(const std::string& spec) {
  try {
    make_policy(spec, 0);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(BaselineTest, OptionsAreChecked) {
  EXPECT_EQ(make_policy("xattention:stride=8,forced=sink_window", 0)->spec(),
            "xattention:forced=sink_window");
  EXPECT_EQ(make_policy("twilight:top_p=0.9", 0)->spec(), "twilight:budget=top_p,top_p=0.9");
  EXPECT_EQ(make_policy("twilight:budget=calibrated", 0)->spec(), "twilight");
  EXPECT_EQ(make_policy("snapkv:pooling=max,kernel=7", 0)->spec(), "snapkv:kernel=7,pooling=max");
  EXPECT_TRUE(make_policy("quest", 0)->takes_density());
  EXPECT_FALSE(make_policy("quest:budget=top_p", 0)->takes_density());
  EXPECT_TRUE(make_policy("twilight", 0)->takes_density());
  EXPECT_FALSE(make_policy("xattention:top_p=0.9", 0)->takes_density());
  EXPECT_EQ(error_of("xattention:budget=matched,top_p=0.9"),
            "method 'xattention': option 'top_p' has a meaning with budget=top_p only");
  EXPECT_EQ(error_of("snapkv:kernel=4"), "method 'snapkv': option 'kernel': 4 is not odd");
  for (const char* spec :
       {"quest:page=-1", "xattention:stride=0", "block_mean:top_p=0", "block_mean:budget=release",
        "h2o:budget=top_p", "tova:forced=all", "vertical_slash:last_q=0", "twilight:bits=9",
        "magicpig:tables=1", "magicpig:bits=17", "flexprefill:tau=2", "adamas:threshold=0",
        "adamas:budget=top_p", "tova:unit=page", "vertical_slash:budget=top_p",
        "vertical_slash:budget=calibrated", "tova:budget=calibrated"}) {
    EXPECT_NE(error_of(spec), "no error") << spec;
  }
  DecodeCache cache;
  EXPECT_THROW(prefill("xattention:stride=24", 0.3, cache), Error);
  EXPECT_THROW(prefill("minmax_bound:page=5", 0.3, cache), Error);
  EXPECT_THROW(prefill("block_mean:query_pool=100", 0.3, cache), Error);
}

}  // namespace
}  // namespace sw
