#include "metric/output_error.hpp"

#include <cmath>

namespace sw {

BlockGrid output_error(const AttentionOutput& dense, const AttentionOutput& sparse,
                       const BlockGeometry& geometry) {
  return compare_outputs(dense, sparse, geometry, [](const OutputSums& sums) {
    return sums.difference == 0.0 ? 0.0 : std::sqrt(sums.difference / sums.dense);
  });
}

}  // namespace sw
