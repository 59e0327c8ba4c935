// Selections, scores and densities against tests/golden, which an independent numpy
// implementation of the specification wrote (make_goldens.py).
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "attention/selection.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"
#include "policy/list.hpp"
#include "support/golden_file.hpp"

namespace sw {
namespace {

using nlohmann::json;

std::string option_text(const json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

/// The SPEC of a case; the block size is a property of the problem, not of the policy.
std::string spec_of(const std::string& name, const json& options) {
  std::string spec = name;
  char separator = ':';
  for (const auto& [key, value] : options.items()) {
    if (key == "block") continue;
    spec += separator + key + "=" + option_text(value);
    separator = ',';
  }
  return spec;
}

std::string tags(std::span<const Part> parts) {
  std::string text;
  for (Part part : parts) text += "wskf"[static_cast<int>(part)];
  return text;
}

std::vector<std::int32_t> blocks_of(const BlockSelection& selection, std::int64_t group,
                                    std::int64_t row) {
  const auto blocks = selection.blocks(group, row);
  return {blocks.begin(), blocks.end()};
}

void expect_pairs(const DensityCount& count, const json& pairs) {
  for (int part = 0; part < kNumParts; ++part) {
    EXPECT_EQ(count.kept[part], pairs.at(part_name(static_cast<Part>(part))).get<std::int64_t>())
        << part_name(static_cast<Part>(part));
  }
}

/// Scores agree up to a positive factor of the row when only the order matters (walk=product).
void expect_scores(std::span<const double> actual, const json& expected, bool up_to_factor,
                   double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  double actual_sum = 1.0;
  double expected_sum = 1.0;
  if (up_to_factor) {
    actual_sum = expected_sum = 0.0;
    for (std::size_t j = 0; j < actual.size(); ++j) {
      actual_sum += actual[j];
      expected_sum += expected[j].get<double>();
    }
  }
  for (std::size_t j = 0; j < actual.size(); ++j) {
    const double want = expected[j].get<double>() / expected_sum;
    EXPECT_NEAR(actual[j] / actual_sum, want, tolerance * std::fabs(want) + 1e-300)
        << "column " << j;
  }
}

struct BackendCase {
  std::string name;
  std::unique_ptr<Backend> (*make)();
  /// Relative. fp64 throughout agrees to the 12 written digits. The cpu backend scores finer key
  /// pools in f32: a logit x of magnitude up to 16 with d = 64 carries at most about
  /// 64 * 2^-24 * 16 = 6e-5 absolute, hence that relative error of its exponential.
  double score_tolerance;
  double pooled_score_tolerance;
};

/// Relative, for decode with a softmax a head: its tables are f32, 2^-24 for either factor of a
/// logit, its exponential and the transition matrix. Terms of the goldens' logits add up to about
/// 4, so that shares carry 4 * 4 + 1 of these errors, and as many come in with the rows that are
/// mixed into the matrix.
constexpr double kDecodeTableError = 34 * 0x1p-24;

class GoldenTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Backend> backend_ = GetParam().make();

  double tolerance(const json& options) const {
    const bool fine_keys = options.contains("key_pool") || options.at("preset") == "tuned";
    return fine_keys ? GetParam().pooled_score_tolerance : GetParam().score_tolerance;
  }
};

TEST_P(GoldenTest, SketchWalkPrefill) {
  const json file = testing::golden_file("sketchwalk_prefill.json");
  ASSERT_GE(file.at("cases").size(), 70u);
  for (const json& c : file.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const auto policy =
        make_policy(spec_of("sketchwalk", c.at("options")), c.at("seed").get<std::uint64_t>());
    const std::int64_t tokens = c.at("shape").at("tokens");
    const bool product =
        policy->spec().find("walk=product") != std::string::npos ||
        (c.at("options").at("preset") == "preprint" && !c.at("options").contains("walk"));
    WalkState walk;
    std::int64_t layer = c.at("first_layer");
    for (const json& expected : c.at("expected")) {
      SCOPED_TRACE("layer " + std::to_string(layer));
      const testing::GoldenLayer data(c, layer, tokens);
      const AttentionProblem problem = data.problem(layer, 0, tokens);
      const BlockGeometry geometry = problem.geometry(c.at("shape").at("block"));
      BlockSelection selection = BlockSelection::dense(geometry);
      ASSERT_EQ(layer < policy->dense_layers(), expected.at("score").is_null());
      if (layer >= policy->dense_layers()) {
        const BlockScores scores =
            policy->score_prefill({problem, *backend_, geometry}, walk, nullptr);
        for (std::int64_t i = 0; i < geometry.rows(); ++i) {
          SCOPED_TRACE("row " + std::to_string(i));
          expect_scores(scores.values.row(i), expected.at("score")[i], product,
                        tolerance(c.at("options")));
        }
        selection =
            select_blocks(scores, geometry, policy->budget(), c.at("density"), Phase::kPrefill);
      }
      for (std::int64_t i = 0; i < geometry.rows(); ++i) {
        SCOPED_TRACE("row " + std::to_string(i));
        EXPECT_EQ(json(blocks_of(selection, 0, i)), expected.at("rows")[i]);
        EXPECT_EQ(tags(selection.parts(0, i)), expected.at("parts")[i]);
      }
      EXPECT_EQ(selection.token_window(), expected.at("token_window"));
      EXPECT_EQ(selection.token_sink(), expected.at("token_sink"));
      const DensityCount count = selection.count();
      expect_pairs(count, expected.at("pairs"));
      EXPECT_EQ(count.causal, expected.at("pairs").at("causal"));
      ++layer;
    }
  }
}

TEST_P(GoldenTest, SketchWalkDecode) {
  const json file = testing::golden_file("sketchwalk_decode.json");
  ASSERT_GE(file.at("cases").size(), 20u);
  for (const json& c : file.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const auto policy =
        make_policy(spec_of("sketchwalk", c.at("options")), c.at("seed").get<std::uint64_t>());
    const std::int64_t prefill = c.at("shape").at("tokens");
    const std::int64_t steps = c.at("steps");
    const std::int64_t block = c.at("shape").at("block");
    const std::int64_t first = c.at("first_layer");
    const bool product =
        c.at("options").at("preset") == "preprint" && !c.at("options").contains("walk");
    const bool head_mean =
        c.at("options").value(
            "aggregation", c.at("options").at("preset") == "preprint" ? "head_mean" : "per_head") ==
        "head_mean";
    const double score_tolerance =
        tolerance(c.at("options")) + (head_mean ? 0.0 : kDecodeTableError);
    // Layers outside, steps inside: as an evaluation streams a trace.
    WalkState walk;
    std::vector<WalkState> step_walks(static_cast<std::size_t>(steps));
    for (std::int64_t layer = first; layer < first + c.at("layers").get<std::int64_t>(); ++layer) {
      SCOPED_TRACE("layer " + std::to_string(layer));
      const testing::GoldenLayer data(c, layer, prefill + steps);
      const bool sparse = layer >= policy->dense_layers();
      DecodeCache cache;
      if (sparse) {
        const AttentionProblem problem = data.problem(layer, 0, prefill);
        policy->score_prefill({problem, *backend_, problem.geometry(block)}, walk, &cache);
      }
      for (std::int64_t s = 0; s < steps; ++s) {
        SCOPED_TRACE("step " + std::to_string(s));
        const json& expected = c.at("expected")[s].at("layers")[layer - first];
        const std::int64_t n = prefill + s + 1;
        ASSERT_EQ(n, c.at("expected")[s].at("n"));
        const AttentionProblem problem = data.problem(layer, n - 1, n);
        const BlockGeometry geometry = problem.geometry(block);
        BlockSelection selection = BlockSelection::dense(geometry);
        if (sparse) {
          const BlockScores scores =
              policy->score_decode({problem, *backend_, geometry}, step_walks[s], cache);
          expect_scores(scores.values.row(0), expected.at("score"), product, score_tolerance);
          selection =
              select_blocks(scores, geometry, policy->budget(), c.at("density"), Phase::kDecode);
        }
        EXPECT_EQ(json(blocks_of(selection, 0, 0)), expected.at("kept"));
        EXPECT_EQ(tags(selection.parts(0, 0)), expected.at("parts"));
        EXPECT_EQ(selection.token_sink(), expected.at("token_sink"));
        EXPECT_EQ(selection.token_window(), expected.at("token_window"));
        const DensityCount count = selection.count();
        expect_pairs(count, expected.at("tokens"));
        EXPECT_EQ(count.causal, expected.at("tokens").at("context"));
      }
    }
  }
}

TEST_P(GoldenTest, Baselines) {
  const json file = testing::golden_file("baselines.json");
  ASSERT_GE(file.at("cases").size(), 20u);
  for (const json& c : file.at("cases")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const auto policy = make_policy(spec_of(c.at("policy"), c.at("options")), 0);
    const std::int64_t tokens = c.at("shape").at("tokens");
    for (const json& expected : c.at("expected")) {
      const std::int64_t layer = expected.at("layer");
      SCOPED_TRACE("layer " + std::to_string(layer));
      const testing::GoldenLayer data(c, layer, tokens);
      for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
        const bool decode = phase == Phase::kDecode;
        SCOPED_TRACE(decode ? "decode" : "prefill");
        const AttentionProblem problem = data.problem(layer, decode ? tokens - 1 : 0, tokens);
        const BlockGeometry geometry = problem.geometry(c.at("shape").at("block"));
        BlockSelection selection = BlockSelection::dense(geometry);
        if (layer >= policy->dense_layers()) {
          AttentionOutput output;
          BlockMass mass;
          backend_->attend_dense(problem, geometry, output, mass);
          WalkState walk;
          DecodeCache cache;
          const ScoreContext context{problem, *backend_, geometry, &mass};
          const BlockScores scores = decode ? policy->score_decode(context, walk, cache)
                                            : policy->score_prefill(context, walk, nullptr);
          selection = select_blocks(scores, geometry, policy->budget(), c.at("density"), phase);
        }
        const json& want = expected.at(decode ? "decode" : "prefill");
        ASSERT_EQ(selection.groups(), want.at("groups"));
        for (std::int64_t g = 0; g < selection.groups(); ++g) {
          if (decode) {
            EXPECT_EQ(json(blocks_of(selection, g, 0)), want.at("kept")[g]);
            EXPECT_EQ(tags(selection.parts(g, 0)), want.at("parts")[g]);
            continue;
          }
          for (std::int64_t i = 0; i < geometry.rows(); ++i) {
            EXPECT_EQ(json(blocks_of(selection, g, i)), want.at("rows")[g][i]);
            EXPECT_EQ(tags(selection.parts(g, i)), want.at("parts")[g][i]);
          }
        }
        if (!decode) expect_pairs(selection.count(), want.at("pairs"));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Backends, GoldenTest,
    ::testing::Values(BackendCase{"reference", make_reference_backend, 1e-9, 1e-9},
                      BackendCase{"cpu", [] { return make_cpu_backend(); }, 1e-9, 6e-5}),
    [](const auto& backend) { return backend.param.name; });

}  // namespace
}  // namespace sw
