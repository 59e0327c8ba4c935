#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Grids of what an evaluation runs over, as people write them.
namespace sw {

/// Densities, each a number ("0.2"), a list ("0.1,0.2") or a range with both ends
/// ("0.05:0.5:0.05"); sorted, each once. Throws Error(kUsage) for anything else, values outside (0,
/// 1], and more than 10,000 of them.
std::vector<double> parse_densities(const std::vector<std::string>& texts);

/// The SPECs that a SPEC with lists of values stands for: "sketchwalk:damping=0|0.25,degree=1|3" is
/// four, the last option changing first. Throws Error(kUsage) for what is no SPEC, an empty value,
/// and more than 10,000 of them.
std::vector<std::string> expand_method(std::string_view spec);

}  // namespace sw
