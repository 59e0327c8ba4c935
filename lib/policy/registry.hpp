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

/// Sets every option of `spec`. An error names the method.
void apply_options(const MethodSpec& spec, OptionSet& options);

}  // namespace sw
