#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/summary.hpp"

/// Conditions under which a run counts as failed (--fail-if, exit code 4).
namespace sw {

/// metric<op>value[@METHOD[@DENSITY]], e.g. mass_recall<0.8@sketchwalk@0.2. The gate is not met
/// when the condition holds for the mean of any cell in scope: all cells without METHOD, otherwise
/// those whose name or canonical SPEC is METHOD, and at the requested DENSITY only when that is
/// given.
struct Gate {
  enum class Op { kLess, kLessEqual, kGreater, kGreaterEqual };
  std::string text;
  std::string metric;
  Op op = Op::kLess;
  double value = 0.0;
  std::string method;  ///< "" = all
  std::optional<double> density;

  /// Throws Error(kUsage) for text that is not a gate or names an unknown metric.
  static Gate parse(std::string_view text);
  /// The same for metrics of another list.
  static Gate parse(std::string_view text, const std::vector<std::string>& known);

  bool concerns(std::string_view cell_method, std::string_view name,
                std::optional<double> cell_density) const;
  bool holds(double x) const;
};

/// Metrics that gates may name.
std::vector<std::string> gate_metrics();

/// A line for each cell in scope for which the condition holds or that has no such value (failed
/// cells); a gate without any cell in scope gives one line that says so. Empty = met.
std::vector<std::string> unmet(const Gate& gate, std::span<const Summary> cells);

}  // namespace sw
