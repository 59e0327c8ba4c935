#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/policy.hpp"
#include "eval/record.hpp"
#include "trace/trace.hpp"

/// The one evaluation loop: teacher-forced, that is, the dense q, k and v of the trace feed every
/// method at every layer. Layers are streamed one at a time; within a layer the dense attention and
/// its block masses are computed once for all methods, and the scores of a method once for all its
/// densities.
namespace sw {

struct EvalOptions {
  std::vector<double> densities;  ///< in (0, 1]; used by methods that take a density
  bool prefill = true;            ///< evaluate the prefill part of the trace
  bool decode = true;             ///< evaluate its decode steps
  std::int64_t block = 64;        ///< tokens of a block
  bool output_error = true;       ///< false: no attention where block masses alone give the recall
  bool attribution = true;        ///< split the loss of sketchwalk methods into its parts
  bool save_selection = false;    ///< keep selections and scores in the records
  /// Layers [first_layer, end_layer) of the trace are evaluated; walks start at the first of them.
  std::int64_t first_layer = 0;
  std::int64_t end_layer = INT64_MAX;
  std::uint64_t seed = 0;  ///< of the attribution variants, as given to the policies
};

/// Evaluates every policy at every density on one trace. Cells come by policy, density, phase. An
/// Error of a method or of the backend fails the cells concerned, with the reason, and the others
/// go on; an Error while reading the trace fails all cells that need the rest of it. Methods that
/// attend densely in all evaluated layers are skipped with that reason.
///
/// Throws Error(kUsage) for options out of range, for layers that the trace does not have, and when
/// only decode is asked for and the trace has no decode steps.
std::vector<CellRecord> evaluate_trace(const TraceReader& trace, std::size_t input,
                                       std::span<const std::unique_ptr<Policy>> policies,
                                       const EvalOptions& options, const Backend& backend,
                                       bool quiet = true);

}  // namespace sw
