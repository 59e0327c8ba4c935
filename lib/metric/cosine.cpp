#include "metric/cosine.hpp"

#include <cmath>

namespace sw {

BlockGrid output_cosine(const OutputComparison& outputs) {
  return values_of(outputs, [](const OutputSums& sums) {
    if (sums.difference == 0.0) return 1.0;
    const double norms = std::sqrt(sums.dense) * std::sqrt(sums.sparse);
    return norms == 0.0 ? 0.0 : sums.product / norms;
  });
}

}  // namespace sw
