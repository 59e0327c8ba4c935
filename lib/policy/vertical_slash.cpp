// Vertical-slash (MInference 1.0, Jiang et al., arXiv 2407.02490, and the authors' release): the
// exact attention of the last 64 queries, summed along vertical lines (a key, whatever the query)
// and slash lines (a distance from query to key), says which lines all rows keep.
// At block granularity: the paper keeps single columns and diagonals; here a block pair (i, j)
// scores the vertical mass of the keys of block j plus the slash mass that falls into its block
// diagonal, each slash being spread over the two block diagonals that it passes through. Left out:
// the offline choice of a pattern and of the numbers of lines for each head (all heads are
// vertical-slash, with one budget), and the 30 first tokens and 100 shortest distances that are
// always kept (the first and the own block are). Decode attends densely, as in the paper.
// Cost: last_q n d multiply-adds a head for the estimate, then b^2 / 2 additions.
#include "policy/head_scores.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct VerticalSlashOptions : ScoreOptions {
  std::int64_t last_q = 64;

  VerticalSlashOptions() {
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kDecode;
  }
  OptionSet bind() {
    OptionSet set;
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
  bool takes_density() const override { return budget().kind == Budget::Kind::kMatched; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&, DecodeCache*) const override {
    const StageTimer timer(context.times, Stage::kSketch);
    std::vector<LineMass> lines = last_query_lines(context.problem, options_.last_q);
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
  VerticalSlashOptions options_;
};

}  // namespace

PolicyEntry vertical_slash_entry() {
  return {[] {
            return MethodInfo{
                "vertical_slash",
                "blocks on the columns and diagonals that the last queries attend to, at block "
                "granularity; every head has this pattern; decode attends densely",
                "MInference, Jiang et al., arXiv 2407.02490, and the authors' release",
                "layer, KV head or head", VerticalSlashOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            return std::make_unique<VerticalSlashPolicy>(parse_options<VerticalSlashOptions>(spec));
          }};
}

}  // namespace sw
