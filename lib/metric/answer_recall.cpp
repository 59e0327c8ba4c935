#include "metric/answer_recall.hpp"

#include <algorithm>

namespace sw {

std::optional<double> answer_recall(const BlockSelection& selection,
                                    std::span<const std::pair<std::int64_t, std::int64_t>> spans) {
  const BlockGeometry& geometry = selection.geometry();
  std::int64_t kept = 0;
  std::int64_t asked = 0;
  for (std::int64_t g = 0; g < selection.groups(); ++g) {
    const std::vector<std::int32_t> touched = selection.touched_blocks(g, selection.rows() - 1);
    for (const auto& [begin, end] : spans) {
      if (begin < 0 || begin >= end || end > geometry.tokens) continue;
      const std::int64_t first = begin / geometry.block;
      const std::int64_t last = (end - 1) / geometry.block;
      const auto from = std::lower_bound(touched.begin(), touched.end(), first);
      const auto to = std::upper_bound(from, touched.end(), last);
      ++asked;
      if (to - from == last - first + 1) ++kept;
    }
  }
  if (asked == 0) return std::nullopt;
  return static_cast<double>(kept) / static_cast<double>(asked);
}

}  // namespace sw
