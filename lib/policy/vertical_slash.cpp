// Vertical-slash (MInference 1.0, Jiang et al., arXiv 2407.02490, and the authors' release): the
// exact attention of the last 64 queries, summed along vertical lines (a key, whatever the query)
// and slash lines (a distance from query to key), says which lines all rows keep.
// Verticals are single keys, and slashes whole block diagonals, each slash being spread over the
// two that it passes through (the release's kernel computes slashes in blocks, too). As in the
// release the first 30 keys and the 100 shortest distances come first (forced=sink_block). Left
// out: the offline choice of a pattern and of the numbers of lines for each head. All heads are
// vertical-slash, and lines of both kinds compete by their mass per key until a row is full.
// With unit=block a block pair (i, j) scores the vertical mass of the keys of block j plus the
// mass of its block diagonal; the first and the own block are always kept.
// Decode attends densely, as in the paper.
// Cost: last_q n d multiply-adds a head for the estimate, then b^2 / 2 additions, and for single
// keys a sort of them.
#include <algorithm>
#include <limits>

#include "core/error.hpp"
#include "policy/head_scores.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct VerticalSlashOptions : ScoreOptions {
  std::int64_t last_q = 64;

  VerticalSlashOptions() {
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kDecode;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(
        set, unit,
        "token: verticals of single keys and slashes of blocks, as in the paper, where "
        "forced=sink_block stands for the first 30 keys and 100 distances; block: whole blocks, "
        "which budget=top_p needs");
    add_selection(set);
    add_budget(set);
    set.add("last_q", last_q, 1, kNoLimit, "queries at the end of the prompt that find the lines");
    return set;
  }
};

/// Mass of each block diagonal: the diagonal at distance o = s B + f passes through block diagonal
/// s for (B - f) / B of its length and through s + 1 for the rest.
std::vector<double> block_diagonals(const std::vector<double>& slash, std::int64_t block) {
  const auto size = static_cast<std::size_t>(block);
  std::vector<double> mass((slash.size() + size - 1) / size + 1, 0.0);
  for (std::size_t o = 0; o < slash.size(); ++o) {
    const double next = static_cast<double>(o % size) / static_cast<double>(size);
    mass[o / size] += (1.0 - next) * slash[o];
    mass[o / size + 1] += next * slash[o];
  }
  return mass;
}

class VerticalSlashPolicy final : public Policy {
 public:
  explicit VerticalSlashPolicy(const VerticalSlashOptions& options) : options_(options) {}

  std::string name() const override { return "vertical_slash"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool takes_density() const override { return options_.takes_density(); }
  Budget budget() const override {
    Budget budget = options_.budget;
    if (forces_lines()) budget.forced = Budget::Forced::kDiagonal;
    return budget;
  }

  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override {
    const StageTimer timer(context.times, Stage::kSketch);
    std::vector<LineMass> lines = last_query_lines(context.problem, options_.last_q);
    if (options_.unit == Unit::kToken) return score_lines(context, lines);
    for (LineMass& line : lines) {
      line.vertical = block_sums(line.vertical, context.geometry.block);
      line.slash = block_diagonals(line.slash, context.geometry.block);
    }
    return add_head_estimates(context, options_.granularity,
                              [&](std::int64_t head, std::int64_t, std::span<double> mass) {
                                const LineMass& line = lines[static_cast<std::size_t>(head)];
                                for (std::size_t j = 0; j < mass.size(); ++j) {
                                  mass[j] = line.vertical[j] + line.slash[mass.size() - 1 - j];
                                }
                                normalize(mass);
                              });
  }
  BlockScores score_decode(const ScoreContext&, WalkState&, DecodeCache&) const override {
    return {};
  }

 private:
  static constexpr std::int64_t kFirstKeys = 30;
  static constexpr std::int64_t kShortestDistances = 100;

  /// By scores: as far as they fit into the budget.
  bool forces_lines() const {
    return options_.unit == Unit::kToken && options_.budget.forced == Budget::Forced::kSinkBlock;
  }

  /// Single keys by their vertical's mass, blocks by their diagonal's.
  BlockScores score_lines(const ScoreContext& context, const std::vector<LineMass>& lines) const {
    constexpr double kFirst = std::numeric_limits<double>::infinity();
    const std::int64_t block = context.geometry.block;
    std::vector<std::vector<double>> diagonals;
    Matrix verticals(context.problem.num_heads(), context.problem.tokens());
    for (std::int64_t h = 0; h < verticals.rows(); ++h) {
      const LineMass& line = lines[static_cast<std::size_t>(h)];
      const std::span<double> vertical = verticals.row(h);
      std::copy(line.vertical.begin(), line.vertical.end(), vertical.begin());
      diagonals.push_back(block_diagonals(line.slash, block));
      if (!forces_lines()) continue;
      std::fill_n(vertical.begin(), std::min(kFirstKeys, std::ssize(vertical)), kFirst);
      const std::int64_t reached = (kShortestDistances - 1 + block - 1) / block + 1;
      std::fill_n(diagonals.back().begin(), std::min(reached, std::ssize(diagonals.back())),
                  kFirst);
    }
    BlockScores scores = add_head_estimates(
        context, options_.granularity,
        [&](std::int64_t head, std::int64_t, std::span<double> mass) {
          const auto& diagonal = diagonals[static_cast<std::size_t>(head)];
          std::reverse_copy(diagonal.begin(), diagonal.begin() + std::ssize(mass), mass.begin());
        });
    scores.keys = sum_heads(verticals, scores.groups);
    return scores;
  }

  VerticalSlashOptions options_;
};

}  // namespace

PolicyEntry vertical_slash_entry() {
  return {[] {
            return MethodInfo{
                "vertical_slash",
                "prefill: the columns (single keys) and block diagonals that the last queries "
                "attend to; every head has this pattern; decode attends densely",
                "MInference, Jiang et al., arXiv 2407.02490, and the authors' release",
                "layer, KV head or head", VerticalSlashOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            const auto options = parse_options<VerticalSlashOptions>(spec);
            if (options.unit == Unit::kToken && options.budget.kind != Budget::Kind::kMatched) {
              throw Error(
                  ErrorKind::kUsage,
                  "method 'vertical_slash': columns and diagonals share the attention twice, "
                  "so that a share of their mass has no meaning",
                  "use unit=block with it");
            }
            return std::make_unique<VerticalSlashPolicy>(options);
          }};
}

}  // namespace sw
