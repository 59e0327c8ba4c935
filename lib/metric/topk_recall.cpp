#include "metric/topk_recall.hpp"

#include <algorithm>
#include <iterator>

namespace sw {

BlockGrid topk_recall(const BlockSelection& selection, const BlockSelection& best) {
  BlockGrid recall(selection.groups(), selection.rows());
  std::vector<std::int32_t> common;
  for (std::int64_t g = 0; g < recall.units; ++g) {
    for (std::int64_t r = 0; r < recall.rows; ++r) {
      const std::vector<std::int32_t> kept = selection.touched_blocks(g, r);
      const auto oracle = best.blocks(g, r);
      common.clear();
      std::set_intersection(kept.begin(), kept.end(), oracle.begin(), oracle.end(),
                            std::back_inserter(common));
      recall(g, r) = static_cast<float>(common.size()) / static_cast<float>(kept.size());
    }
  }
  return recall;
}

}  // namespace sw
