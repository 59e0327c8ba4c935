#pragma once

#include <optional>
#include <string>

#include "attention/policy.hpp"

/// Where a Sketch&Walk selection loses mass against the best selection of its size (metrics.md,
/// attribution): methods with a part taken away tell how much that part costs.
namespace sw {

struct AttributionSpecs {
  std::string exact;        ///< block means scored without transform and walk
  std::string sketch_only;  ///< the method without its walk
};

/// The variants of `policy`, or nothing for methods that have no sketch and walk.
std::optional<AttributionSpecs> attribution_specs(const Policy& policy);

}  // namespace sw
