#include "metric/output_error.hpp"

#include <cmath>

namespace sw {

BlockGrid output_error(const OutputComparison& outputs) {
  return values_of(outputs, [](const OutputSums& sums) {
    return sums.difference == 0.0 ? 0.0 : std::sqrt(sums.difference / sums.dense);
  });
}

}  // namespace sw
