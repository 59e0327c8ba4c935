// Min-max bounds in prefill and decode: Quest's score (Tang et al., arXiv 2406.10774) for the
// pooled queries of a block row; not published in this form. An upper bound of every logit of a
// block from the elementwise minima and maxima of its keys.
// Cost: b^2 / 2 logits a head of 2 d multiply-adds (times B / page), 2/B^2 of dense attention's
// QK.
#include "policy/key_summary.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

struct MinMaxOptions : ScoreOptions {
  std::int64_t query_pool = 0;
  std::int64_t page = 0;

  OptionSet bind() {
    OptionSet set;
    add_selection(set);
    add_budget(set);
    add_query_pool(set, query_pool);
    set.add("page", page, 0, kNoLimit,
            "keys of a bound, a divisor of the block size; a block takes the largest bound of its "
            "pages; 0 means the block");
    return set;
  }
};

}  // namespace

PolicyEntry minmax_bound_entry() {
  return {[] {
            return MethodInfo{"minmax_bound",
                              "blocks with the largest upper bound of q.k, from the elementwise "
                              "minima and maxima of their keys, for the row's mean query",
                              "after Quest, Tang et al., arXiv 2406.10774, here for block rows",
                              "layer, KV head or head", MinMaxOptions().bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t) -> std::unique_ptr<Policy> {
            const auto options = parse_options<MinMaxOptions>(spec);
            return make_summary_policy(
                {spec.name, spec_of(spec.name, options), options, options.query_pool,
                 [page = options.page](std::int64_t block, std::int64_t dim) {
                   return make_key_bounds(checked_divisor("page", page, block), block, dim);
                 }});
          }};
}

}  // namespace sw
