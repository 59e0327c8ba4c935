#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "attention/policy.hpp"
#include "policy/options.hpp"

/// What score-based policies share. Each query head estimates how its attention is distributed over
/// the key blocks of a block row; the heads of a row set add up their estimates, so that the same
/// score can select per head, per KV head or per layer. The estimates of a head sum to about 1, as
/// attention does, which also gives the budget `top_p` its meaning.
namespace sw {

/// What shares one selection.
enum class Granularity { kLayer, kKvHead, kHead };

/// What a method selects.
enum class Unit { kBlock, kToken };

void add_granularity(OptionSet& set, Granularity& granularity);
/// `help` says what the two mean for the method.
void add_unit(OptionSet& set, Unit& unit, const std::string& help);
/// Row sets of a problem.
std::int64_t row_sets(Granularity granularity, const AttentionProblem& problem);

/// Options of every policy whose scores come from heads, with the defaults of its paper.
struct ScoreOptions {
  Granularity granularity = Granularity::kHead;
  Unit unit = Unit::kBlock;
  Budget budget;
  std::int64_t dense_layers = 2;

  /// granularity, forced, min_blocks, rounding and dense_layers.
  void add_selection(OptionSet& set);
  /// budget and top_p: for scores that are estimates of attention mass. `marked` names a budget of
  /// the method's own, of the kind kMarked, and `help` says what it keeps.
  void add_budget(OptionSet& set, const std::string& marked = "", const std::string& help = "");
  /// Whether the budget asks for a density.
  bool takes_density() const {
    return budget.kind == Budget::Kind::kMatched || budget.kind == Budget::Kind::kCalibrated;
  }
};

/// Writes the estimate of query head `head` for row `row` (of the geometry) to `mass`, one entry a
/// causal key block; `mass` comes in as zeros.
using RowEstimate =
    std::function<void(std::int64_t head, std::int64_t row, std::span<double> mass)>;

/// Scores of all rows: the estimates of a row set's heads, added in ascending order. Rows run in
/// parallel, the longest first.
BlockScores add_head_estimates(const ScoreContext& context, Granularity granularity,
                               const RowEstimate& estimate);

/// Writes the estimate of query head `head` for every single key of a decode step to `mass`
/// [tokens]; `mass` comes in as zeros.
using KeyEstimate = std::function<void(std::int64_t head, std::span<double> mass)>;

/// Scores of the single keys of a decode step, added up as above. Heads run in parallel.
BlockScores add_key_estimates(const ScoreContext& context, Granularity granularity,
                              const KeyEstimate& estimate);

/// Sums over the heads of each row set of [num_heads, n]: [groups, n].
Matrix sum_heads(const Matrix& per_head, std::int64_t groups);

/// exp(x - max) / sum, in place.
void softmax(std::span<double> x);
/// x / sum, in place; zeros stay zeros.
void normalize(std::span<double> x);

/// ln of the sum of exp(x); -infinity for no values.
double log_sum_exp(std::span<const double> x);

/// Inner product in f32, by 16 partial sums: relative error to sum |x y| at most about
/// (n / 16 + 4) 2^-24.
float dot(const float* x, const float* y, std::int64_t n);

/// Tokens [begin, end) of one head as f32, row after row.
std::vector<float> load_tokens(const HeadsView& x, std::int64_t head, std::int64_t begin,
                               std::int64_t end);

/// Mean of tokens [begin, end) of one head, summed in double.
std::vector<float> mean_of_tokens(const HeadsView& x, std::int64_t head, std::int64_t begin,
                                  std::int64_t end);

}  // namespace sw
