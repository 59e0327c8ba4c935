// MagicPIG (Chen et al., arXiv 2410.16179, and the authors' release): in decode, keys are sampled
// by locality-sensitive hashing. The prompt's keys, minus their mean, and the query are hashed by
// the signs of `bits` random projections in each of `tables` tables; a key is sampled when it
// shares a bucket with the query in at least two. With c = 1 - angle / pi the chance of that is u =
// 1 - (1 - c^K)^L - L c^K (1 - c^K)^(L-1), and exp(q.k) / u over the sampled keys is an unbiased
// estimate of the attention sum. The first 4 and the last 64 keys of the prompt and all later ones
// are not hashed but exact.
// Left out: the paper's estimator, which divides each sampled weight by u. What is kept here is
// attended to exactly, as in every method, so that only the choice of keys is MagicPIG's: output
// and output_error are those of exact attention over that choice, not of the paper's estimate. The
// paper keeps what was sampled (budget=sampled, which has a density of its own, set by K and L);
// budget=matched keeps the keys with the largest estimated weight exp(q.k) / u, the exact ones
// among them, and if too few were sampled, the most recent others. With unit=block a block scores
// the estimate over its keys. The prefill attends densely, as in the paper; its dense layers 0 and
// 16 become the first two. Cost: K L d multiply-adds a key once and a query each step, a lookup in
// L tables (here a comparison of L codes for each key), and d for each sampled key.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/rng.hpp"
#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct MagicPigOptions : ScoreOptions {
  std::int64_t bits = 10;
  std::int64_t tables = 150;
  std::int64_t sink = 4;
  std::int64_t local = 64;

  MagicPigOptions() {
    unit = Unit::kToken;
    budget.forced = Budget::Forced::kSinkBlock;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_unit(set, unit, "token: single keys, as in the paper; block: whole blocks");
    add_selection(set);
    set.add<Budget::Kind>(
        "budget", budget.kind,
        {{"matched", Budget::Kind::kMatched},
         {"top_p", Budget::Kind::kTopP},
         {"sampled", Budget::Kind::kMarked}},
        "by density; as many as hold the share top_p of the estimated mass; or, as "
        "in the paper, what was sampled, and the exact keys");
    set.add("top_p", budget.top_p, 0.0, 1.0, true, kTopPHelp);
    set.add("bits", bits, 1, 16, "K, random projections of a table");
    set.add("tables", tables, 2, 4096, "L, hash tables");
    set.add("sink", sink, 0, kNoLimit, "keys at the beginning of the prompt that are exact");
    set.add("local", local, 1, kNoLimit, "keys at the end of the prompt that are exact");
    return set;
  }
};

class HashedKeys final : public KeySummary {
 public:
  HashedKeys(const MagicPigOptions& options, std::uint64_t seed, std::int64_t block,
             std::int64_t dim)
      : options_(options), block_(block), dim_(dim) {
    SplitMix64 rng(seed);
    projections_.resize(static_cast<std::size_t>(options.bits * options.tables * dim));
    for (float& x : projections_) x = static_cast<float>(rng.normal());
  }

  void append(const float* keys, std::int64_t count) override {
    const bool prompt = keys_.empty();
    keys_.insert(keys_.end(), keys, keys + count * dim_);
    if (!prompt) return;
    begin_ = std::min(options_.sink, count);
    end_ = std::max(begin_, count - options_.local);
    std::vector<double> sum(static_cast<std::size_t>(dim_), 0.0);
    for (std::int64_t t = begin_; t < end_; ++t) {
      for (std::int64_t x = 0; x < dim_; ++x) sum[static_cast<std::size_t>(x)] += key(t)[x];
    }
    for (const double x : sum)
      mean_.push_back(
          static_cast<float>(x / std::max<double>(static_cast<double>(end_ - begin_), 1.0)));
    for (std::int64_t t = begin_; t < end_; ++t) {
      const std::vector<float> centred = minus_mean(t);
      norms_.push_back(std::sqrt(dot(centred.data(), centred.data(), dim_)));
      hash(centred.data(), codes_);
    }
  }

  void score(const float* query, std::span<double> logits) const override {
    std::vector<std::uint16_t> code;
    hash(query, code);
    const double norm = std::sqrt(dot(query, query, dim_));
    const double to_mean = dot(query, mean_.data(), dim_);
    const std::int64_t tokens = static_cast<std::int64_t>(keys_.size()) / dim_;
    std::vector<double> x;
    for (std::size_t j = 0; j < logits.size(); ++j) {
      x.clear();
      const std::int64_t first = static_cast<std::int64_t>(j) * block_;
      for (std::int64_t t = first; t < std::min(first + block_, tokens); ++t) {
        const bool exact = t < begin_ || t >= end_;
        if (!exact && !sampled(t, code)) continue;
        const double logit = dot(query, key(t), dim_);
        if (exact) {
          x.push_back(logit);
        } else {
          const double cosine = (logit - to_mean) / (norm * norms_[index(t - begin_)]);
          x.push_back(logit - std::log(chance(cosine)));
        }
      }
      logits[j] = log_sum_exp(x);
    }
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }
  const float* key(std::int64_t t) const { return keys_.data() + t * dim_; }

  std::vector<float> minus_mean(std::int64_t t) const {
    std::vector<float> x(key(t), key(t) + dim_);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] -= mean_[i];
    return x;
  }

  /// Appends the code of x in each table.
  void hash(const float* x, std::vector<std::uint16_t>& codes) const {
    const float* projection = projections_.data();
    for (std::int64_t table = 0; table < options_.tables; ++table) {
      unsigned code = 0;
      for (std::int64_t bit = 0; bit < options_.bits; ++bit, projection += dim_) {
        code = 2 * code + (dot(x, projection, dim_) > 0.0f ? 1 : 0);
      }
      codes.push_back(static_cast<std::uint16_t>(code));
    }
  }

  bool sampled(std::int64_t t, const std::vector<std::uint16_t>& code) const {
    const std::uint16_t* mine = codes_.data() + (t - begin_) * options_.tables;
    std::int64_t equal = 0;
    for (std::size_t table = 0; table < code.size(); ++table) equal += mine[table] == code[table];
    return equal >= 2;
  }

  /// Chance that a key at this cosine to the query is sampled.
  double chance(double cosine) const {
    const double agree = 1.0 - std::acos(std::clamp(cosine, -1.0, 1.0)) / std::numbers::pi;
    const double hit = std::pow(agree, static_cast<double>(options_.bits));
    const auto tables = static_cast<double>(options_.tables);
    const double none = std::pow(1.0 - hit, tables);
    const double one = tables * hit * std::pow(1.0 - hit, tables - 1.0);
    return std::max(1.0 - none - one, kLeastChance);
  }

  static constexpr double kLeastChance = 1e-12;  // rounding may leave 0 for an opposite key

  MagicPigOptions options_;
  std::int64_t block_;
  std::int64_t dim_;
  std::int64_t begin_ = 0;  // hashed keys are [begin_, end_)
  std::int64_t end_ = 0;
  std::vector<float> projections_;    // [tables, bits, dim]
  std::vector<float> keys_;           // [tokens, dim]
  std::vector<float> mean_;           // [dim], of the hashed keys
  std::vector<float> norms_;          // [hashed keys], minus the mean
  std::vector<std::uint16_t> codes_;  // [hashed keys, tables]
};

}  // namespace

PolicyEntry magicpig_entry() {
  return {
      [] {
        return MethodInfo{
            "magicpig",
            "decode: keys with the most attention as estimated from a sample by hashing; the "
            "choice only: kept keys are attended to exactly, where the paper's estimator divides "
            "a sampled key's weight by its chance to be sampled; the prefill attends densely; "
            "--seed chooses the projections",
            "MagicPIG, Chen et al., arXiv 2410.16179, and the authors' release",
            "layer, KV head or head", MagicPigOptions().bind().list()};
      },
      [](const MethodSpec& spec, std::uint64_t seed) -> std::unique_ptr<Policy> {
        const auto options = parse_options<MagicPigOptions>(spec);
        return make_summary_policy({spec.name, spec_of(spec.name, options), options, 0,
                                    [options, seed](std::int64_t block, std::int64_t dim) {
                                      return std::make_unique<HashedKeys>(options, seed, block,
                                                                          dim);
                                    }});
      }};
}

}  // namespace sw
