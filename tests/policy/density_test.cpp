// Every method that takes a density realises it, within half a point of the causal pairs (or of the
// context, over a run of decode steps), whatever its resolution.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cpu/backend.hpp"
#include "policy/list.hpp"
#include "support/golden_inputs.hpp"

namespace sw {
namespace {

constexpr std::int64_t kBlock = 64;
constexpr std::int64_t kSteps = 16;
constexpr double kHalfPoint = 0.005;
constexpr double kDensities[] = {0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5};

/// Methods with a density, in whole blocks and in single keys where they have the choice.
std::vector<std::string> methods() {
  std::vector<std::string> specs;
  for (const MethodInfo& method : list_methods()) {
    const auto has = [&](const std::string& option) {
      return std::any_of(method.options.begin(), method.options.end(),
                         [&](const OptionInfo& info) { return info.name == option; });
    };
    std::string spec = method.name;
    if (has("budget")) spec += ":budget=matched";
    if (!make_policy(spec, 0)->takes_density()) continue;
    const auto with = [&](const std::string& options) {
      return spec + (spec == method.name ? ":" : ",") + options;
    };
    const bool steps = has("rounding");
    if (has("unit")) {
      specs.push_back(with(steps ? "unit=block,rounding=steps" : "unit=block"));
      specs.push_back(with("unit=token"));
    } else {
      specs.push_back(steps ? with("rounding=steps") : spec);
    }
    // An adaptive budget, at the same density.
    const auto calibrated = [&](const OptionInfo& info) {
      return info.name == "budget" && info.range.find("calibrated") != std::string::npos;
    };
    if (std::any_of(method.options.begin(), method.options.end(), calibrated)) {
      specs.push_back(method.name + ":budget=calibrated" + (has("unit") ? ",unit=block" : ""));
      // The lines of vertical_slash share the attention twice: single keys have no share of it.
      if (has("unit") && method.name != "vertical_slash")
        specs.push_back(method.name + ":budget=calibrated,unit=token");
    }
  }
  specs.push_back("sketchwalk:preset=preprint,rounding=steps");
  specs.push_back("sketchwalk:preset=tuned,rounding=steps");
  return specs;
}

/// Of the budget `matched` in whole blocks, by its definition (sketchwalk.md section 3).
double defined_density(double rho, std::int64_t n) {
  double kept = 0.0;
  for (std::int64_t c = 1; (c - 1) * kBlock < n; ++c) {
    const double m = std::max(std::floor(rho * (static_cast<double>(c) - 0.5) + 1.0), 1.0);
    const auto queries = static_cast<double>(std::min(c * kBlock, n) - (c - 1) * kBlock);
    kept += queries * (m - 1.0) * kBlock + queries * (queries + 1.0) / 2.0;
  }
  return kept / (static_cast<double>(n) * static_cast<double>(n + 1) / 2.0);
}

class DensityTest : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(DensityTest, EveryMethodRealisesIt) {
  const std::int64_t n = GetParam();
  const auto backend = make_cpu_backend();
  const std::int64_t layer = 2;
  const HeadsTensor q = testing::golden_tensor(7, layer, 0, 2, n + kSteps, 16, 1.0, 1.0);
  const HeadsTensor k = testing::golden_tensor(7, layer, 1, 1, n + kSteps, 16, 1.0, 1.0);
  const auto problem = [&](std::int64_t begin, std::int64_t end) {
    const HeadsView keys = k.view().tokens_slice(0, end);
    return AttentionProblem{q.view().tokens_slice(begin, end), keys, keys, layer};
  };
  const AttentionProblem prompt = problem(0, n);
  AttentionOutput output;
  for (const std::string& spec : methods()) {
    SCOPED_TRACE(spec);
    const auto policy = make_policy(spec, 0);
    const Budget budget = policy->budget();
    // The two heads here share out whole blocks of 3% of the context each.
    if (n < 4096 && budget.kind == Budget::Kind::kCalibrated && spec.find("token") == spec.npos) {
      continue;
    }
    const auto scored = [&](const AttentionProblem& p, double density, const auto& score) {
      BlockMass mass;
      if (policy->needs_mass()) backend->attend_dense(p, p.geometry(kBlock), output, mass);
      WalkState walk;
      return score(ScoreContext{p, *backend, p.geometry(kBlock), &mass, nullptr, density}, walk);
    };
    DecodeCache cache;
    const BlockScores rows = scored(prompt, 1.0, [&](const auto& context, WalkState& walk) {
      return policy->score_prefill(context, walk, &cache);
    });
    for (const double rho : kDensities) {
      if (budget.dense_phase == Phase::kPrefill) break;
      const BlockSelection s =
          select_blocks(rows, prompt.geometry(kBlock), budget, rho, Phase::kPrefill);
      const double realised = s.count().density();
      const bool coarse = n < 4096 && s.only_blocks();
      if (!coarse) {
        EXPECT_NEAR(realised, rho, kHalfPoint) << "prefill at " << rho;
      } else if (budget.dense_last_rows == 0) {
        // 16 rows round to whole blocks, whose number the definition fixes.
        EXPECT_NEAR(realised, defined_density(rho, n), 1e-12) << "prefill at " << rho;
      } else {
        // Half a block a row at most, a quarter on average: of an area of 16^2 / 2 blocks.
        EXPECT_NEAR(realised, rho, 0.25 * 16.0 / 128.0) << "prefill at " << rho;
      }
    }
    if (budget.dense_phase == Phase::kDecode) continue;
    std::vector<double> kept(std::size(kDensities), 0.0);
    double context_tokens = 0.0;
    for (std::int64_t step = 0; step < kSteps; ++step) {
      const AttentionProblem p = problem(n + step, n + step + 1);
      context_tokens += static_cast<double>(n + step + 1);
      BlockScores scores;
      for (std::size_t i = 0; i < kept.size(); ++i) {
        if (i == 0 || policy->decode_depends_on_density()) {
          scores = scored(p, kDensities[i], [&](const auto& context, WalkState& walk) {
            return policy->score_decode(context, walk, cache);
          });
        }
        const DensityCount count =
            select_blocks(scores, p.geometry(kBlock), budget, kDensities[i], Phase::kDecode)
                .count();
        kept[i] += count.density() * static_cast<double>(n + step + 1);
      }
    }
    for (std::size_t i = 0; i < kept.size(); ++i) {
      EXPECT_NEAR(kept[i] / context_tokens, kDensities[i], kHalfPoint)
          << "decode at " << kDensities[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tokens, DensityTest, ::testing::Values(1000, 4096, 4100, 8192));

}  // namespace
}  // namespace sw
