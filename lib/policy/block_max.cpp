// Block top-k by max pooling: a block's logit is the largest of its keys' logits for the pooled
// query. It is what min-max bounds (minmax_bound, Quest) approximate from above; no paper of its
// own. Keeps a copy of K in f32. Cost: n b / 2 logits a head of d multiply-adds, 1/B of dense
// attention's QK.
#include <algorithm>

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

  void append(const float* key) override { keys_.insert(keys_.end(), key, key + dim_); }

  double logit(const float* query, std::int64_t j) const override {
    const std::int64_t tokens = static_cast<std::int64_t>(keys_.size()) / dim_;
    const std::int64_t end = std::min((j + 1) * block_, tokens);
    float largest = dot(query, keys_.data() + j * block_ * dim_, dim_);
    for (std::int64_t t = j * block_ + 1; t < end; ++t) {
      largest = std::max(largest, dot(query, keys_.data() + t * dim_, dim_));
    }
    return largest;
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
