// Quest (Tang et al., arXiv 2406.10774, and the authors' release): in decode, the pages with the
// largest upper bound of q.k, from the elementwise minima and maxima of their keys. The prefill
// attends densely, and the first two layers do, as in the release. Nothing is forced there; here
// the block of the newest token always is.
// At block granularity: a page is a block, or with page=16, as in the paper, a block takes the
// largest bound of its pages.
// Cost: b logits a head and step of 2 d multiply-adds (times B / page): 2/B of a dense step's QK.
#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct QuestOptions : ScoreOptions {
  std::int64_t page = 0;

  QuestOptions() {
    budget.forced = Budget::Forced::kDiagonal;
    budget.dense_phase = Phase::kPrefill;
  }
  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    set.add("page", page, 0, kNoLimit,
            "keys of a bound, a divisor of the block size; a block takes the largest bound of its "
            "pages; 0 means the block (the paper: 16)");
    return set;
  }
};

}  // namespace

PolicyEntry quest_entry() {
  return {[] {
            return MethodInfo{"quest",
                              "decode: pages with the largest min-max bound of q.k, at block "
                              "granularity; the prefill attends densely",
                              "Quest, Tang et al., arXiv 2406.10774, and the authors' release",
                              "layer, KV head or head", QuestOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            const auto options = parse_options<QuestOptions>(spec);
            return make_summary_policy(
                {spec.name, spec_of(spec.name, options), options, 0,
                 [page = options.page](std::int64_t block, std::int64_t dim) {
                   return make_key_bounds(checked_divisor("page", page, block), block, dim);
                 }});
          }};
}

}  // namespace sw
