#include "metric/answer_recall.hpp"

#include <algorithm>

namespace sw {

std::optional<double> answer_recall(const BlockSelection& selection,
                                    std::span<const std::pair<std::int64_t, std::int64_t>> spans) {
  const BlockGeometry& geometry = selection.geometry();
  std::int64_t kept = 0;
  std::int64_t asked = 0;
  for (std::int64_t g = 0; g < selection.groups(); ++g) {
    const std::int64_t row = selection.rows() - 1;
    const std::vector<std::int32_t> touched = selection.touched_blocks(g, row);
    const auto singles = selection.tokens(g, row);
    const auto is_kept = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t j = begin / geometry.block; j <= (end - 1) / geometry.block; ++j) {
        if (std::binary_search(touched.begin(), touched.end(), j)) continue;
        const std::int64_t first = std::max(begin, j * geometry.block);
        const std::int64_t last = std::min(end, (j + 1) * geometry.block);
        const auto from = std::lower_bound(singles.begin(), singles.end(), first);
        const auto to = std::lower_bound(from, singles.end(), last);
        if (to - from != last - first) return false;
      }
      return true;
    };
    for (const auto& [begin, end] : spans) {
      if (begin < 0 || begin >= end || end > geometry.tokens) continue;
      ++asked;
      if (is_kept(begin, end)) ++kept;
    }
  }
  if (asked == 0) return std::nullopt;
  return static_cast<double>(kept) / static_cast<double>(asked);
}

}  // namespace sw
