#include "metric/oracle_gap.hpp"

#include <algorithm>
#include <numeric>

#include "core/parallel.hpp"
#include "metric/mass_recall.hpp"

namespace sw {

BlockSelection best_selection(const BlockMass& mass, const BlockSelection& selection) {
  const BlockGeometry& geometry = selection.geometry();
  const std::int64_t groups = selection.groups();
  const std::int64_t rows = geometry.rows();
  const std::int64_t set_heads = mass.heads / groups;
  std::vector<std::vector<std::int32_t>> best(static_cast<std::size_t>(groups * rows));
  parallel_for(groups * rows, [&](std::int64_t index, int) {
    const std::int64_t group = index / rows;
    const std::int64_t r = index % rows;
    const std::int64_t diagonal = geometry.first_row() + r;
    const auto count = static_cast<std::int64_t>(selection.has_token_parts()
                                                     ? selection.touched_blocks(group, r).size()
                                                     : selection.blocks(group, r).size());
    std::vector<double> sum(static_cast<std::size_t>(diagonal), 0.0);
    for (std::int64_t h = group * set_heads; h < (group + 1) * set_heads; ++h) {
      const auto row = mass.row(h, r);
      for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += row[j];
    }
    auto& blocks = best[static_cast<std::size_t>(index)];
    blocks.resize(sum.size());
    std::iota(blocks.begin(), blocks.end(), 0);
    const auto larger = [&](std::int32_t a, std::int32_t b) {
      const double sa = sum[static_cast<std::size_t>(a)];
      const double sb = sum[static_cast<std::size_t>(b)];
      return sa != sb ? sa > sb : a > b;
    };
    if (count - 1 < diagonal) {
      std::nth_element(blocks.begin(), blocks.begin() + (count - 1), blocks.end(), larger);
      blocks.resize(static_cast<std::size_t>(count - 1));
    }
    std::sort(blocks.begin(), blocks.end());
    blocks.push_back(static_cast<std::int32_t>(diagonal));
  });
  BlockSelection result(geometry, groups);
  std::vector<Part> parts;
  for (const auto& blocks : best) {
    parts.assign(blocks.size(), Part::kScored);
    parts.back() = Part::kWindow;
    result.append_row(blocks, parts);
  }
  return result;
}

BlockGrid oracle_gap(const BlockMass& mass, const BlockSelection& best, const BlockGrid& recall) {
  BlockGrid gap = mass_recall(mass, best);
  for (std::size_t i = 0; i < gap.values.size(); ++i) gap.values[i] -= recall.values[i];
  return gap;
}

BlockGrid oracle_gap_of_sets(const BlockGrid& gap, std::int64_t groups) {
  const std::int64_t set_heads = gap.units / groups;
  BlockGrid sets(groups, gap.rows);
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < gap.rows; ++r) {
      double sum = 0.0;
      for (std::int64_t h = g * set_heads; h < (g + 1) * set_heads; ++h) sum += gap(h, r);
      constexpr double kRounding = 1e-5;
      const double mean = sum / static_cast<double>(set_heads);
      sets(g, r) = static_cast<float>(mean < 0.0 && mean > -kRounding ? 0.0 : mean);
    }
  }
  return sets;
}

}  // namespace sw
