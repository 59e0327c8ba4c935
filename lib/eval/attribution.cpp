#include "eval/attribution.hpp"

#include <utility>
#include <vector>

#include "policy/options.hpp"

namespace sw {
namespace {

/// `spec` with some options set to other values.
std::string with_options(const MethodSpec& spec,
                         const std::vector<std::pair<std::string, std::string>>& changes) {
  MethodSpec changed = spec;
  for (const auto& change : changes) {
    std::erase_if(changed.options,
                  [&](const auto& option) { return option.first == change.first; });
    changed.options.push_back(change);
  }
  std::string text = changed.name;
  char separator = ':';
  for (const auto& [name, value] : changed.options) {
    text.append(1, separator).append(name).append("=").append(value);
    separator = ',';
  }
  return text;
}

}  // namespace

std::optional<AttributionSpecs> attribution_specs(const Policy& policy) {
  if (policy.name() != "sketchwalk") return std::nullopt;
  const MethodSpec spec = MethodSpec::parse(policy.spec());
  return AttributionSpecs{with_options(spec, {{"sketch", "exact"}, {"walk", "none"}}),
                          with_options(spec, {{"walk", "none"}})};
}

}  // namespace sw
