#include "metric/block_grid.hpp"

#include <algorithm>

namespace sw {

BlockGrid values_of(const OutputComparison& outputs,
                    const std::function<double(const OutputSums&)>& value) {
  BlockGrid grid(outputs.heads, outputs.rows);
  std::transform(outputs.values.begin(), outputs.values.end(), grid.values.begin(),
                 [&](const OutputSums& sums) { return static_cast<float>(value(sums)); });
  return grid;
}

}  // namespace sw
