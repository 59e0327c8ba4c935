#include "eval/grid.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/text.hpp"
#include "policy/options.hpp"

namespace sw {
namespace {

constexpr std::size_t kMost = 10000;

[[noreturn]] void too_many(const std::string& text) {
  throw Error(ErrorKind::kUsage,
              "'" + text + "' stands for more than " + std::to_string(kMost) + " values",
              "cut it into several runs");
}

/// a + i step without the digits that binary fractions add: 0.15, not 0.15000000000000002.
double tick(double begin, double step, std::int64_t i) {
  constexpr double kDigits = 1e12;
  return std::round((begin + static_cast<double>(i) * step) * kDigits) / kDigits;
}

std::vector<double> parse_range(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  const double begin = parse_double(parts.front(), "density");
  if (parts.size() == 1) return {begin};
  if (parts.size() == 3) {
    const double end = parse_double(parts[1], "density");
    const double step = parse_double(parts[2], "density");
    if (begin <= end && step > 0.0) {
      const double steps = std::floor((end - begin) / step + 1e-9);
      if (steps >= static_cast<double>(kMost)) too_many(text);
      std::vector<double> values;
      for (std::int64_t i = 0; i <= static_cast<std::int64_t>(steps); ++i) {
        values.push_back(tick(begin, step, i));
      }
      return values;
    }
  }
  throw Error(ErrorKind::kUsage, "density '" + text + "' is neither a number nor a range",
              "write 0.2, 0.1,0.2 or first:last:step, as in 0.05:0.5:0.05");
}

}  // namespace

std::vector<double> parse_densities(const std::vector<std::string>& texts) {
  std::vector<double> densities;
  for (const std::string& text : texts) {
    for (const std::string& part : split(text, ',')) {
      for (double density : parse_range(part)) {
        if (!(density > 0.0 && density <= 1.0)) {
          throw Error(ErrorKind::kUsage, "density " + format_double(density) + " is outside (0, 1]",
                      "0.2 keeps a fifth of the causal pairs");
        }
        densities.push_back(density);
      }
      if (densities.size() > kMost) too_many(text);
    }
  }
  std::sort(densities.begin(), densities.end());
  densities.erase(std::unique(densities.begin(), densities.end()), densities.end());
  return densities;
}

std::vector<std::string> expand_method(std::string_view text) {
  const MethodSpec spec = MethodSpec::parse(text);
  std::vector<std::string> specs = {spec.name};
  char separator = ':';
  for (const auto& [name, list] : spec.options) {
    const std::vector<std::string> values = split(list, '|');
    if (specs.size() * values.size() > kMost) too_many(std::string(text));
    std::vector<std::string> longer;
    for (const std::string& begin : specs) {
      for (const std::string& value : values) {
        if (value.empty()) {
          throw Error(ErrorKind::kUsage,
                      "method '" + std::string(text) + "': option '" + name + "' has no value",
                      "write option=value, or option=value|value for several");
        }
        longer.push_back(begin + separator + name + "=" + value);
      }
    }
    specs = std::move(longer);
    separator = ',';
  }
  return specs;
}

}  // namespace sw
