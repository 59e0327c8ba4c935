#pragma once

#include <cstdint>
#include <memory>

#include "attention/policy.hpp"
#include "policy/list.hpp"
#include "policy/options.hpp"

/// What each policy file gives to the list: a description, and a factory.
namespace sw {

struct PolicyEntry {
  MethodInfo (*info)();
  std::unique_ptr<Policy> (*make)(const MethodSpec& spec, std::uint64_t seed);
};

PolicyEntry dense_entry();
PolicyEntry sketchwalk_entry();
PolicyEntry oracle_entry();
PolicyEntry sink_window_entry();
PolicyEntry random_entry();
PolicyEntry block_mean_entry();
PolicyEntry block_max_entry();
PolicyEntry minmax_bound_entry();
PolicyEntry vertical_slash_entry();
PolicyEntry flexprefill_entry();
PolicyEntry xattention_entry();
PolicyEntry tri_shape_entry();
PolicyEntry quest_entry();
PolicyEntry twilight_entry();
PolicyEntry adamas_entry();
PolicyEntry magicpig_entry();
PolicyEntry snapkv_entry();
PolicyEntry h2o_entry();
PolicyEntry tova_entry();

/// Sets every option of `spec`. An error names the method.
void apply_options(const MethodSpec& spec, OptionSet& options);

/// What options mean together. `top_p` alone asks for the budget of that name. Throws Error(kUsage)
/// where it is given with another budget, and where nothing would come of rounding=steps or of
/// min_blocks. `single_keys`: decode steps select single keys.
void settle_budget(const MethodSpec& spec, Budget& budget, bool single_keys);

/// Options of type Options (default-constructible, with `bind`), as `spec` sets them.
template <class Options>
Options parse_options(const MethodSpec& spec) {
  Options options;
  OptionSet set = options.bind();
  apply_options(spec, set);
  bool single_keys = false;
  if constexpr (requires { options.unit; }) {
    single_keys = options.unit == decltype(options.unit)::kToken;
  }
  if constexpr (requires { options.budget; }) settle_budget(spec, options.budget, single_keys);
  return options;
}

template <class Options>
std::string spec_of(const std::string& name, Options actual) {
  Options defaults;
  return canonical_spec(name, actual.bind(), defaults.bind());
}

/// min_blocks and, for methods that select in decode, rounding.
inline void add_matched(OptionSet& set, Budget& budget) {
  set.add(
      "min_blocks", budget.min_blocks, 1, kNoLimit,
      "budget=matched, top_p, calibrated: fewest blocks of a row, which early rows round below; in "
      "single keys, the own one and those of min_blocks - 1 blocks");
  if (budget.dense_phase == Phase::kDecode) return;
  set.add<Budget::Rounding>(
      "rounding", budget.rounding,
      {{"row", Budget::Rounding::kRow}, {"steps", Budget::Rounding::kSteps}},
      "budget=matched, decode in whole blocks: each step as the last row of a prefill, or so that "
      "the steps together keep the density");
}

/// For policies that have no other option.
struct BaselineOptions {
  std::int64_t dense_layers = 2;
  Budget budget;

  OptionSet bind() {
    OptionSet set;
    set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
    add_matched(set, budget);
    return set;
  }
};

}  // namespace sw
