// Block top-k by max pooling: a block's logit is the largest of its keys' logits for the pooled
// query. It is what min-max bounds (minmax_bound, Quest) approximate from above; no paper of its
// own. Keeps a copy of K in f32.
// Cost: n b / 2 logits a head of d multiply-adds, 1/B of dense attention's QK.
#include <algorithm>
#include <limits>

#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct BlockMaxOptions : ScoreOptions {
  std::int64_t query_pool = 0;

  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    add_query_pool(set, query_pool);
    return set;
  }
};

class AllKeys final : public KeySummary {
 public:
  AllKeys(std::int64_t block, std::int64_t dim) : block_(block), dim_(dim) {}

  void append(const float* keys, std::int64_t count) override {
    keys_.insert(keys_.end(), keys, keys + count * dim_);
  }

  void score(const float* query, std::span<double> logits) const override {
    const std::int64_t tokens = static_cast<std::int64_t>(keys_.size()) / dim_;
    const std::int64_t end = std::min(static_cast<std::int64_t>(logits.size()) * block_, tokens);
    std::fill(logits.begin(), logits.end(), -std::numeric_limits<double>::infinity());
    for (std::int64_t t = 0; t < end; ++t) {
      double& logit = logits[static_cast<std::size_t>(t / block_)];
      logit = std::max<double>(logit, dot(query, keys_.data() + t * dim_, dim_));
    }
  }

 private:
  std::int64_t block_;
  std::int64_t dim_;
  std::vector<float> keys_;  // [tokens, dim]
};

}  // namespace

PolicyEntry block_max_entry() {
  return {
      [] {
        return MethodInfo{"block_max", "blocks whose best key matches the row's mean query best",
                          "baseline: the exact maximum that min-max bounds approximate",
                          "layer, KV head or head", BlockMaxOptions().bind().list()};
      },
      [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
        const auto options = parse_options<BlockMaxOptions>(spec);
        return make_summary_policy({spec.name, spec_of(spec.name, options), options,
                                    options.query_pool, [](std::int64_t block, std::int64_t dim) {
                                      return std::make_unique<AllKeys>(block, dim);
                                    }});
      }};
}

}  // namespace sw
