#include "policy/list.hpp"

#include "core/error.hpp"
#include "core/text.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

std::vector<PolicyEntry> entries() {
  return {dense_entry(),          sketchwalk_entry(),  oracle_entry(),     sink_window_entry(),
          random_entry(),         block_mean_entry(),  block_max_entry(),  minmax_bound_entry(),
          vertical_slash_entry(), flexprefill_entry(), xattention_entry(), tri_shape_entry(),
          quest_entry(),          twilight_entry(),    adamas_entry(),     magicpig_entry(),
          snapkv_entry(),         h2o_entry(),         tova_entry()};
}

}  // namespace

std::vector<MethodInfo> list_methods() {
  std::vector<MethodInfo> methods;
  for (const PolicyEntry& entry : entries()) methods.push_back(entry.info());
  return methods;
}

std::unique_ptr<Policy> make_policy(std::string_view text, std::uint64_t seed) {
  const MethodSpec spec = MethodSpec::parse(text);
  std::vector<std::string> names;
  for (const PolicyEntry& entry : entries()) {
    names.push_back(entry.info().name);
    if (names.back() == spec.name) return entry.make(spec, seed);
  }
  throw Error(ErrorKind::kUsage, "unknown method '" + spec.name + "'",
              suggestion(spec.name, names) + " (sw-eval methods lists all)");
}

void apply_options(const MethodSpec& spec, OptionSet& options) {
  for (const auto& [name, value] : spec.options) {
    try {
      options.set(name, value);
    } catch (const Error& error) {
      throw Error(error.kind(), "method '" + spec.name + "': " + error.what(), error.hint());
    }
  }
}

}  // namespace sw
