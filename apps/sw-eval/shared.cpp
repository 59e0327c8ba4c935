#include "shared.hpp"

#include <CLI/Version.hpp>
#include <algorithm>
#include <filesystem>

#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "policy/list.hpp"

namespace sw {

std::vector<std::unique_ptr<Policy>> make_policies(const std::vector<std::string>& specs,
                                                   std::uint64_t seed) {
  std::vector<std::unique_ptr<Policy>> policies;
  for (const std::string& spec : specs) {
    std::unique_ptr<Policy> policy;
    try {
      policy = make_policy(spec, seed);
    } catch (const Error& error) {
      std::error_code ignored;
      if (!std::filesystem::exists(spec, ignored)) throw;
      throw Error(error.kind(), error.what(),
                  "'" + spec + "' is a file: inputs come before --method");
    }
    const bool known = std::any_of(policies.begin(), policies.end(), [&](const auto& other) {
      return other->spec() == policy->spec();
    });
    if (!known) policies.push_back(std::move(policy));
  }
  return policies;
}

std::vector<double> checked_densities(std::vector<double> densities) {
  for (double density : densities) {
    if (!(density > 0.0 && density <= 1.0)) {
      throw Error(ErrorKind::kUsage, "density " + format_double(density) + " is outside (0, 1]",
                  "0.2 keeps a fifth of the causal pairs");
    }
  }
  std::sort(densities.begin(), densities.end());
  densities.erase(std::unique(densities.begin(), densities.end()), densities.end());
  return densities;
}

Environment describe_environment(const Backend& backend) {
  Environment environment = current_environment();
  environment.backend = backend.name();
  environment.backend_detail = backend.detail();
  environment.libraries.emplace_back("CLI11", CLI11_VERSION);
  if (const auto gpu = describe_gpu()) {
    environment.gpu = gpu->name;
    environment.driver = gpu->driver;
    environment.clocks = gpu->clocks;
  }
  return environment;
}

}  // namespace sw
