#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attention/policy.hpp"
#include "policy/options.hpp"

/// The explicit list of policies. A new one is one file, with its factory declared and listed in
/// list.cpp.
namespace sw {

struct MethodInfo {
  std::string name;
  std::string summary;
  std::string source;       ///< paper or specification
  std::string granularity;  ///< what one selection is shared by: "layer", "KV head", "head"
  std::vector<OptionInfo> options;
};

/// Every method with its options and their defaults.
std::vector<MethodInfo> list_methods();

/// Makes the policy that a SPEC names; `seed` drives its random choices. Throws Error(kUsage) for
/// an unknown name or option, with the nearest one.
std::unique_ptr<Policy> make_policy(std::string_view spec, std::uint64_t seed);

}  // namespace sw
