#include "metric/cosine.hpp"

#include <cmath>

namespace sw {

BlockGrid output_cosine(const AttentionOutput& dense, const AttentionOutput& sparse,
                        const BlockGeometry& geometry) {
  return compare_outputs(dense, sparse, geometry, [](const OutputSums& sums) {
    if (sums.difference == 0.0) return 1.0;
    const double norms = std::sqrt(sums.dense) * std::sqrt(sums.sparse);
    return norms == 0.0 ? 0.0 : sums.product / norms;
  });
}

}  // namespace sw
