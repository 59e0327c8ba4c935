#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/policy.hpp"
#include "report/environment.hpp"

/// What the subcommands of sw-eval do alike.
namespace sw {

/// The policies that --method names, each once. Throws Error(kUsage).
std::vector<std::unique_ptr<Policy>> make_policies(const std::vector<std::string>& specs,
                                                   std::uint64_t seed);

/// Sorted, each once; throws Error(kUsage) for values outside (0, 1].
std::vector<double> checked_densities(std::vector<double> densities);

/// This process, its backend and the GPU, if there is one.
Environment describe_environment(const Backend& backend);

}  // namespace sw
