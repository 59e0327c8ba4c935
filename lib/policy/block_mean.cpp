// Block top-k by mean pooling: the gate of MoBA (Lu et al., arXiv 2502.13189) without its training,
// and close to InfLLM (Xiao et al., arXiv 2402.04617). A key block is the mean of its keys; a row's
// queries are pooled too (query_pool=1 gates every query, as MoBA does, and averages the softmax
// over the row, which shares one selection). MoBA forces the own block alone. InfLLM shares a
// selection among heads and forces initial and local tokens: granularity=layer,forced=sink_window;
// its representative tokens (chosen by local attention) are left out for the mean.
// Cost: b^2 / 2 logits a head of d multiply-adds, 1/B^2 of dense attention's QK.
#include <algorithm>

#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct BlockMeanOptions : ScoreOptions {
  std::int64_t query_pool = 0;

  BlockMeanOptions() { budget.forced = Budget::Forced::kDiagonal; }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    add_query_pool(set, query_pool);
    return set;
  }
};

class KeyMeans final : public KeySummary {
 public:
  KeyMeans(std::int64_t block, std::int64_t dim) : block_(block), dim_(dim) {}

  void append(const float* keys, std::int64_t count) override {
    for (const float* key = keys; key != keys + count * dim_; key += dim_, ++tokens_) {
      if (tokens_ % block_ == 0) sums_.resize(sums_.size() + static_cast<std::size_t>(dim_), 0.0);
      double* sum = sums_.data() + tokens_ / block_ * dim_;
      for (std::int64_t x = 0; x < dim_; ++x) sum[x] += key[x];
    }
  }

  void score(const float* query, std::span<double> logits) const override {
    const double* sum = sums_.data();
    std::int64_t left = tokens_;
    for (double& logit : logits) {
      logit = 0.0;
      for (std::int64_t x = 0; x < dim_; ++x) logit += query[x] * sum[x];
      logit /= static_cast<double>(std::min(block_, left));
      sum += dim_;
      left -= block_;
    }
  }

 private:
  std::int64_t block_;
  std::int64_t dim_;
  std::int64_t tokens_ = 0;
  std::vector<double> sums_;  // [blocks, dim]
};

}  // namespace

PolicyEntry block_mean_entry() {
  return {
      [] {
        return MethodInfo{
            "block_mean",
            "blocks whose mean key is nearest to the row's mean query (MoBA's gate without "
            "training; InfLLM-like with granularity=layer,forced=sink_window)",
            "MoBA, Lu et al., arXiv 2502.13189; InfLLM, Xiao et al., arXiv 2402.04617",
            "layer, KV head or head", BlockMeanOptions().bind().list()};
      },
      [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
        const auto options = parse_options<BlockMeanOptions>(spec);
        return make_summary_policy({spec.name, spec_of(spec.name, options), options,
                                    options.query_pool, [](std::int64_t block, std::int64_t dim) {
                                      return std::make_unique<KeyMeans>(block, dim);
                                    }});
      }};
}

}  // namespace sw
