#include "policy/key_summary.hpp"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"

namespace sw {
namespace {

/// The summaries of all KV heads, which is also the decode cache.
struct Summaries {
  std::vector<std::unique_ptr<KeySummary>> heads;
  std::int64_t tokens = 0;

  void append(const HeadsView& k) {
    parallel_for(k.heads, [&](std::int64_t g, int) {
      const std::vector<float> keys = load_tokens(k, g, tokens, k.tokens);
      heads[static_cast<std::size_t>(g)]->append(keys.data(), k.tokens - tokens);
    });
    tokens = k.tokens;
  }
};

class SummaryPolicy final : public Policy {
 public:
  explicit SummaryPolicy(SummaryMethod method) : method_(std::move(method)) {}

  std::string name() const override { return method_.name; }
  std::string spec() const override { return method_.spec; }
  std::int64_t dense_layers() const override { return method_.options.dense_layers; }
  bool takes_density() const override { return method_.options.takes_density(); }
  Budget budget() const override { return method_.options.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState&,
                            DecodeCache* cache) const override {
    const bool dense = budget().dense_phase == Phase::kPrefill;
    if (dense && cache == nullptr) return {};
    const bool single = method_.options.unit == Unit::kToken;
    const std::int64_t block = single ? 1 : context.geometry.block;
    const std::int64_t pool =
        checked_divisor("query_pool", method_.query_pool, context.geometry.block);
    const auto summaries = std::make_shared<Summaries>();
    {
      const StageTimer timer(context.times, Stage::kPool);
      for (std::int64_t g = 0; g < context.problem.num_kv_heads(); ++g) {
        summaries->heads.push_back(method_.make(block, context.problem.head_dim()));
      }
      summaries->append(context.problem.k);
    }
    if (cache != nullptr) cache->value = summaries;
    return dense ? BlockScores{} : score(context, *summaries, pool);
  }

  BlockScores score_decode(const ScoreContext& context, WalkState&,
                           DecodeCache& cache) const override {
    if (budget().dense_phase == Phase::kDecode) return {};
    Summaries& summaries = *std::any_cast<std::shared_ptr<Summaries>&>(cache.value);
    {
      const StageTimer timer(context.times, Stage::kPool);
      summaries.append(context.problem.k);
    }
    if (method_.options.unit == Unit::kToken) return score_keys(context, summaries);
    return score(context, summaries, context.geometry.block);
  }

 private:
  BlockScores score(const ScoreContext& context, const Summaries& summaries,
                    std::int64_t pool) const {
    const StageTimer timer(context.times, Stage::kSketch);
    const AttentionProblem& problem = context.problem;
    const BlockGeometry& geometry = context.geometry;
    const auto scale = static_cast<float>(problem.scale());
    return add_head_estimates(
        context, method_.options.granularity,
        [&](std::int64_t head, std::int64_t row, std::span<double> mass) {
          const KeySummary& keys =
              *summaries.heads[static_cast<std::size_t>(head / problem.group())];
          const std::int64_t end = geometry.row_end(row);
          const auto tokens = static_cast<double>(end - geometry.row_begin(row));
          std::vector<double> p(mass.size());
          for (std::int64_t t = geometry.row_begin(row); t < end; t += pool) {
            const std::int64_t last = std::min(t + pool, end);
            std::vector<float> query = mean_of_tokens(problem.q, head, t - problem.query_begin(),
                                                      last - problem.query_begin());
            for (float& x : query) x *= scale;
            keys.score(query.data(), p);
            if (method_.logits) softmax(p);
            const double share = static_cast<double>(last - t) / tokens;
            for (std::size_t j = 0; j < p.size(); ++j) mass[j] += share * p[j];
          }
        });
  }

  BlockScores score_keys(const ScoreContext& context, const Summaries& summaries) const {
    const StageTimer timer(context.times, Stage::kSketch);
    const AttentionProblem& problem = context.problem;
    return add_key_estimates(
        context, method_.options.granularity, [&](std::int64_t head, std::span<double> mass) {
          std::vector<float> query = load_tokens(problem.q, head, 0, 1);
          for (float& x : query) x *= static_cast<float>(problem.scale());
          summaries.heads[static_cast<std::size_t>(head / problem.group())]->score(query.data(),
                                                                                   mass);
          if (method_.logits) softmax(mass);
        });
  }

  SummaryMethod method_;
};

class KeyBounds final : public KeySummary {
 public:
  KeyBounds(std::int64_t page, std::int64_t block, std::int64_t dim)
      : page_(page), pages_per_block_(block / page), dim_(dim) {}

  void append(const float* keys, std::int64_t count) override {
    for (const float* key = keys; key != keys + count * dim_; key += dim_, ++tokens_) {
      if (tokens_ % page_ == 0) {
        low_.insert(low_.end(), key, key + dim_);
        high_.insert(high_.end(), key, key + dim_);
        continue;
      }
      float* low = low_.data() + (tokens_ / page_) * dim_;
      float* high = high_.data() + (tokens_ / page_) * dim_;
      for (std::int64_t x = 0; x < dim_; ++x) {
        low[x] = std::min(low[x], key[x]);
        high[x] = std::max(high[x], key[x]);
      }
    }
  }

  void score(const float* query, std::span<double> logits) const override {
    const std::int64_t pages = (tokens_ + page_ - 1) / page_;
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<double>::infinity());
    const std::int64_t end =
        std::min(static_cast<std::int64_t>(logits.size()) * pages_per_block_, pages);
    for (std::int64_t u = 0; u < end; ++u) {
      const float* low = low_.data() + u * dim_;
      const float* high = high_.data() + u * dim_;
      double bound = 0.0;
      for (std::int64_t x = 0; x < dim_; ++x) {
        bound += static_cast<double>(std::max(query[x] * low[x], query[x] * high[x]));
      }
      double& logit = logits[static_cast<std::size_t>(u / pages_per_block_)];
      logit = std::max(logit, bound);
    }
  }

 private:
  std::int64_t page_;
  std::int64_t pages_per_block_;
  std::int64_t dim_;
  std::int64_t tokens_ = 0;
  std::vector<float> low_;   // [pages, dim]
  std::vector<float> high_;  // [pages, dim]
};

}  // namespace

std::unique_ptr<Policy> make_summary_policy(SummaryMethod method) {
  return std::make_unique<SummaryPolicy>(std::move(method));
}

void add_query_pool(OptionSet& set, std::int64_t& query_pool) {
  set.add("query_pool", query_pool, 0, kNoLimit,
          "prefill: tokens of a pooled query, a divisor of the block size; 0 means the block, 1 "
          "scores every query");
}

std::int64_t checked_divisor(const std::string& option, std::int64_t tokens, std::int64_t block) {
  if (tokens == 0) return block;
  if (block % tokens != 0) {
    throw Error(ErrorKind::kUsage, "option '" + option + "': " + std::to_string(tokens) +
                                       " does not divide the block size " + std::to_string(block));
  }
  return tokens;
}

std::unique_ptr<KeySummary> make_key_bounds(std::int64_t page, std::int64_t block,
                                            std::int64_t dim) {
  return std::make_unique<KeyBounds>(page, block, dim);
}

}  // namespace sw
