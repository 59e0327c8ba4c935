#include "policy/head_scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "policy/registry.hpp"

namespace sw {

void settle_budget(const MethodSpec& spec, Budget& budget, bool single_keys) {
  const auto given = [&](const char* name) {
    return std::any_of(spec.options.begin(), spec.options.end(),
                       [&](const auto& option) { return option.first == name; });
  };
  const auto refuse = [&](const std::string& what, const std::string& next) {
    throw Error(ErrorKind::kUsage, "method '" + spec.name + "': option " + what, next);
  };
  if (given("top_p") && budget.kind != Budget::Kind::kTopP) {
    if (given("budget")) {
      refuse("'top_p' has a meaning with budget=top_p only", "leave out one of the two");
    }
    budget.kind = Budget::Kind::kTopP;
  }
  if (budget.rounding == Budget::Rounding::kSteps) {
    if (budget.kind != Budget::Kind::kMatched) {
      refuse("'rounding=steps' has a meaning with budget=matched only",
             "leave it out, or give budget=matched");
    }
    if (single_keys) {
      refuse("'rounding=steps' is for steps of whole blocks, and these select single keys",
             "leave it out, or give unit=block");
    }
  }
  const bool has_floor = budget.kind == Budget::Kind::kMatched ||
                         budget.kind == Budget::Kind::kTopP ||
                         budget.kind == Budget::Kind::kCalibrated;
  if (budget.min_blocks > 1 && !has_floor) {
    refuse("'min_blocks' has a meaning with the budgets matched, top_p and calibrated only",
           "leave it out, or give one of these budgets");
  }
}

void add_granularity(OptionSet& set, Granularity& granularity) {
  set.add<Granularity>("granularity", granularity,
                       {{"layer", Granularity::kLayer},
                        {"kv_head", Granularity::kKvHead},
                        {"head", Granularity::kHead}},
                       "what shares one selection; masses are summed over its heads");
}

void add_unit(OptionSet& set, Unit& unit, const std::string& help) {
  set.add<Unit>("unit", unit, {{"block", Unit::kBlock}, {"token", Unit::kToken}}, help);
}

std::int64_t row_sets(Granularity granularity, const AttentionProblem& problem) {
  switch (granularity) {
    case Granularity::kLayer:
      return 1;
    case Granularity::kKvHead:
      return problem.num_kv_heads();
    default:
      return problem.num_heads();
  }
}

void ScoreOptions::add_selection(OptionSet& set) {
  add_granularity(set, granularity);
  set.add<Budget::Forced>(
      "forced", budget.forced,
      {{"diagonal", Budget::Forced::kDiagonal},
       {"sink_block", Budget::Forced::kSinkBlock},
       {"sink_window", Budget::Forced::kSinkAndWindow},
       {"recent_half", Budget::Forced::kRecentHalf}},
      "what a row keeps beside its own block: nothing, the first block, the "
      "sink and window of the matched budget, or its most recent half (of a row of single keys: in "
      "keys); budget=top_p "
      "forces the first block, or nothing with diagonal");
  add_matched(set, budget);
  set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
}

void ScoreOptions::add_budget(OptionSet& set, const std::string& marked, const std::string& help) {
  std::vector<std::pair<std::string, Budget::Kind>> kinds = {
      {"matched", Budget::Kind::kMatched},
      {"top_p", Budget::Kind::kTopP},
      {"calibrated", Budget::Kind::kCalibrated}};
  if (!marked.empty()) kinds.emplace_back(marked, Budget::Kind::kMarked);
  set.add<Budget::Kind>("budget", budget.kind, std::move(kinds),
                        "what a row keeps: its density; as much as holds the share top_p of its "
                        "estimated mass, whatever the density; or the same with the share that "
                        "keeps the density, found for each layer (in decode: each step)" +
                            (marked.empty() ? "" : "; or, with " + marked + ", " + help));
  set.add("top_p", budget.top_p, 0.0, 1.0, true, kTopPHelp);
}

BlockScores add_head_estimates(const ScoreContext& context, Granularity granularity,
                               const RowEstimate& estimate) {
  const BlockGeometry& geometry = context.geometry;
  const std::int64_t rows = geometry.rows();
  const std::int64_t heads = context.problem.num_heads();
  BlockScores scores;
  scores.groups = row_sets(granularity, context.problem);
  scores.values = Matrix(scores.groups * rows, geometry.key_blocks());
  const std::int64_t heads_per_set = heads / scores.groups;
  parallel_for(rows, [&](std::int64_t index, int) {
    const std::int64_t r = rows - 1 - index;
    std::vector<double> mass(static_cast<std::size_t>(geometry.first_row() + r + 1));
    for (std::int64_t h = 0; h < heads; ++h) {
      std::fill(mass.begin(), mass.end(), 0.0);
      estimate(h, r, mass);
      const std::span<double> sum = scores.values.row(h / heads_per_set * rows + r);
      for (std::size_t j = 0; j < mass.size(); ++j) sum[j] += mass[j];
    }
  });
  return scores;
}

Matrix sum_heads(const Matrix& per_head, std::int64_t groups) {
  Matrix sums(groups, per_head.cols());
  const std::int64_t heads_per_set = per_head.rows() / groups;
  for (std::int64_t h = 0; h < per_head.rows(); ++h) {
    const std::span<double> sum = sums.row(h / heads_per_set);
    const std::span<const double> row = per_head.row(h);
    for (std::size_t t = 0; t < row.size(); ++t) sum[t] += row[t];
  }
  return sums;
}

BlockScores add_key_estimates(const ScoreContext& context, Granularity granularity,
                              const KeyEstimate& estimate) {
  Matrix per_head(context.problem.num_heads(), context.problem.tokens());
  parallel_for(per_head.rows(), [&](std::int64_t h, int) { estimate(h, per_head.row(h)); });
  BlockScores scores;
  scores.groups = row_sets(granularity, context.problem);
  scores.keys = sum_heads(per_head, scores.groups);
  return scores;
}

void softmax(std::span<double> x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double total = 0.0;
  for (double& value : x) total += value = std::exp(value - largest);
  for (double& value : x) value /= total;
}

void normalize(std::span<double> x) {
  const double total = std::accumulate(x.begin(), x.end(), 0.0);
  if (total == 0.0) return;
  for (double& value : x) value /= total;
}

double log_sum_exp(std::span<const double> x) {
  if (x.empty()) return -std::numeric_limits<double>::infinity();
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const double value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

float dot(const float* x, const float* y, std::int64_t n) {
  constexpr std::int64_t kLanes = 16;
  float partial[kLanes] = {};
  const std::int64_t whole = n / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += x[i + lane] * y[i + lane];
  }
  for (std::int64_t i = whole; i < n; ++i) partial[i - whole] += x[i] * y[i];
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
  }
  return partial[0];
}

std::vector<float> load_tokens(const HeadsView& x, std::int64_t head, std::int64_t begin,
                               std::int64_t end) {
  std::vector<float> rows(static_cast<std::size_t>((end - begin) * x.dim));
  for (std::int64_t t = begin; t < end; ++t) {
    x.load_row(head, t, rows.data() + (t - begin) * x.dim);
  }
  return rows;
}

std::vector<float> mean_of_tokens(const HeadsView& x, std::int64_t head, std::int64_t begin,
                                  std::int64_t end) {
  std::vector<double> sum(static_cast<std::size_t>(x.dim), 0.0);
  std::vector<float> row(sum.size());
  for (std::int64_t t = begin; t < end; ++t) {
    x.load_row(head, t, row.data());
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += row[i];
  }
  for (std::size_t i = 0; i < sum.size(); ++i) {
    row[i] = static_cast<float>(sum[i] / static_cast<double>(end - begin));
  }
  return row;
}

}  // namespace sw
