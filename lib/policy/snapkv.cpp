// SnapKV (Li et al., arXiv 2404.14469, and the authors' release): at the end of the prefill, the
// attention of the last queries (the observation window) is summed over them, smoothed along the
// keys, and decides once which of the prompt's keys are kept. The window itself and everything that
// follows always is. The prefill attends densely.
// Defaults are the release's: window 32, kernel 5, average, a selection for each query head.
// With unit=block a block scores the sum of its keys' smoothed attention. The release keeps a
// number of keys that does not change; the matched budget follows the context instead, by one key
// (block) for every 1/density keys, so that new ones push out the least of the prompt's. What was
// pushed out never returns.
// Cost: window n d multiply-adds a head, once; nothing in decode.
#include <algorithm>
#include <limits>

#include "core/error.hpp"
#include "policy/head_scores.hpp"
#include "policy/query_lines.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct SnapKvOptions : ScoreOptions {
  std::int64_t window = 32;
  std::int64_t kernel = 5;
  bool max_pool = false;

  SnapKvOptions() {
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit, "token: single keys are kept, as in the paper; block: whole blocks");
    add_selection(set);
    set.add("window", window, 1, kNoLimit, "queries that vote, at the end of the prompt");
    set.add("kernel", kernel, 1, kNoLimit, "keys that are smoothed together, an odd number");
    set.add<bool>("pooling", max_pool, {{"avg", false}, {"max", true}}, "how they are smoothed");
    return set;
  }
};

/// Mean over `kernel` entries around each, those outside counting as 0, or their maximum.
std::vector<double> smooth(std::span<const double> x, std::int64_t kernel, bool max_pool) {
  const auto size = static_cast<std::int64_t>(x.size());
  std::vector<double> y(x.size());
  for (std::int64_t t = 0; t < size; ++t) {
    const std::int64_t begin = std::max<std::int64_t>(t - kernel / 2, 0);
    const std::int64_t end = std::min(t + kernel / 2 + 1, size);
    double sum = 0.0;
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t i = begin; i < end; ++i) {
      sum += x[static_cast<std::size_t>(i)];
      largest = std::max(largest, x[static_cast<std::size_t>(i)]);
    }
    y[static_cast<std::size_t>(t)] = max_pool ? largest : sum / static_cast<double>(kernel);
  }
  return y;
}

/// What the prompt leaves: for each query head, a share for each key before the window, or for each
/// block of them. Everything after is kept.
using Votes = std::vector<std::vector<double>>;

class SnapKvPolicy final : public Policy {
 public:
  explicit SnapKvPolicy(const SnapKvOptions& options) : options_(options) {}

  std::string name() const override { return "snapkv"; }
  std::string spec() const override { return spec_of(name(), options_); }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&,
                            DecodeCache* cache) const override {
    if (cache == nullptr) return {};
    const StageTimer timer(context.times, Stage::kSketch);
    const AttentionProblem& problem = context.problem;
    const std::int64_t window = std::min(options_.window, problem.queries());
    const std::int64_t before = problem.tokens() - window;
    std::vector<std::vector<double>> attention(
        static_cast<std::size_t>(problem.num_heads()),
        std::vector<double>(static_cast<std::size_t>(before)));
    last_query_probabilities(problem, window,
                             [&](std::int64_t head, std::int64_t, std::span<const double> p) {
                               auto& sum = attention[static_cast<std::size_t>(head)];
                               for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += p[t];
                             });
    const auto votes = std::make_shared<Votes>();
    const std::int64_t unit = options_.unit == Unit::kToken ? 1 : context.geometry.block;
    for (const auto& sum : attention) {
      votes->push_back(block_sums(smooth(sum, options_.kernel, options_.max_pool), unit));
      normalize(votes->back());
      // A block that holds a part of the window is kept for it.
      votes->back().resize(static_cast<std::size_t>(before / unit));
    }
    cache->value = votes;
    return {};
  }

  BlockScores score_decode(const ScoreContext& context, WalkState&,
                           DecodeCache& cache) const override {
    const StageTimer timer(context.times, Stage::kSketch);
    const Votes& votes = *std::any_cast<std::shared_ptr<Votes>&>(cache.value);
    const auto fill = [&](std::int64_t head, std::span<double> mass, double kept) {
      const auto& shares = votes[static_cast<std::size_t>(head)];
      std::fill(mass.begin(), mass.end(), kept);
      std::copy(shares.begin(), shares.end(), mass.begin());
    };
    if (options_.unit == Unit::kToken) {
      return add_key_estimates(context, options_.granularity,
                               [&](std::int64_t head, std::span<double> mass) {
                                 fill(head, mass, std::numeric_limits<double>::infinity());
                               });
    }
    constexpr double kAboveEveryShare = 2.0;
    return add_head_estimates(context, options_.granularity,
                              [&](std::int64_t head, std::int64_t, std::span<double> mass) {
                                fill(head, mass, kAboveEveryShare);
                              });
  }

 private:
  SnapKvOptions options_;
};

}  // namespace

PolicyEntry snapkv_entry() {
  return {[] {
            return MethodInfo{"snapkv",
                              "decode: keys that the last queries of the prompt attended to, "
                              "chosen once, and all later ones; the prefill attends densely",
                              "SnapKV, Li et al., arXiv 2404.14469, and the authors' release",
                              "layer, KV head or head", SnapKvOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            const auto options = parse_options<SnapKvOptions>(spec);
            if (options.kernel % 2 == 0) {
              throw Error(ErrorKind::kUsage, "method 'snapkv': option 'kernel': " +
                                                 std::to_string(options.kernel) + " is not odd");
            }
            return std::make_unique<SnapKvPolicy>(options);
          }};
}

}  // namespace sw
