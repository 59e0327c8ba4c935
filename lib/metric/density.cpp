#include "metric/density.hpp"

#include <algorithm>

namespace sw {

BlockGrid row_density(const BlockSelection& selection, std::int64_t num_heads) {
  BlockGrid sets(selection.groups(), selection.rows());
  for (std::int64_t g = 0; g < sets.units; ++g) {
    for (std::int64_t r = 0; r < sets.rows; ++r) {
      sets(g, r) = static_cast<float>(selection.count_row(g, r).density());
    }
  }
  BlockGrid heads(num_heads, selection.rows());
  for (std::int64_t h = 0; h < num_heads; ++h) {
    const std::int64_t g = selection.group_of_head(h, num_heads);
    for (std::int64_t r = 0; r < heads.rows; ++r) heads(h, r) = sets(g, r);
  }
  return heads;
}

DensityCount count_per_head(const BlockSelection& selection, std::int64_t num_heads) {
  DensityCount count = selection.count();
  const std::int64_t factor = num_heads / selection.groups();
  count.causal *= factor;
  for (std::int64_t& kept : count.kept) kept *= factor;
  return count;
}

DensityCount add(const DensityCount& a, const DensityCount& b) {
  DensityCount sum = a;
  sum.causal += b.causal;
  for (std::size_t part = 0; part < sum.kept.size(); ++part) sum.kept[part] += b.kept[part];
  return sum;
}

std::vector<std::int64_t> kv_tokens_read(const BlockSelection& selection, std::int64_t num_heads,
                                         std::int64_t num_kv_heads) {
  const BlockGeometry& geometry = selection.geometry();
  const std::int64_t query = geometry.tokens - 1;
  const std::int64_t group_size = num_heads / num_kv_heads;
  std::vector<std::int64_t> read(static_cast<std::size_t>(num_kv_heads), 0);
  std::vector<bool> visible;
  for (std::int64_t kv = 0; kv < num_kv_heads; ++kv) {
    visible.assign(static_cast<std::size_t>(geometry.tokens), false);
    for (std::int64_t t = 0; selection.has_token_parts() && t < geometry.tokens; ++t) {
      if (selection.token_visible(query, t)) visible[static_cast<std::size_t>(t)] = true;
    }
    for (std::int64_t h = kv * group_size; h < (kv + 1) * group_size; ++h) {
      const std::int64_t group = selection.group_of_head(h, num_heads);
      for (std::int32_t t : selection.tokens(group, 0)) visible[static_cast<std::size_t>(t)] = true;
      for (std::int32_t j : selection.blocks(group, 0)) {
        const auto begin = visible.begin() + j * geometry.block;
        std::fill(begin, begin + geometry.block_tokens(j), true);
      }
    }
    read[static_cast<std::size_t>(kv)] = std::count(visible.begin(), visible.end(), true);
  }
  return read;
}

}  // namespace sw
