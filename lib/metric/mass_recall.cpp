#include "metric/mass_recall.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"

namespace sw {

BlockGrid mass_recall(const BlockMass& mass, const BlockSelection& selection) {
  BlockGrid recall(mass.heads, mass.rows);
  parallel_for(mass.heads, [&](std::int64_t h, int) {
    const std::int64_t group = selection.group_of_head(h, mass.heads);
    for (std::int64_t r = 0; r < mass.rows; ++r) {
      const auto row = mass.row(h, r);
      double kept = 0.0;
      for (std::int32_t j : selection.blocks(group, r)) kept += row[static_cast<std::size_t>(j)];
      recall(h, r) = static_cast<float>(std::min(kept, 1.0));
    }
  });
  return recall;
}

BlockGrid mass_recall(std::span<const double> dense_lse, std::span<const double> sparse_lse,
                      const BlockGeometry& geometry) {
  const std::int64_t queries = geometry.tokens - geometry.query_begin;
  const std::int64_t heads = static_cast<std::int64_t>(dense_lse.size()) / queries;
  BlockGrid recall(heads, geometry.rows());
  parallel_for(heads, [&](std::int64_t h, int) {
    const double* dense = dense_lse.data() + h * queries - geometry.query_begin;
    const double* sparse = sparse_lse.data() + h * queries - geometry.query_begin;
    for (std::int64_t r = 0; r < recall.rows; ++r) {
      const std::int64_t begin = geometry.row_begin(r);
      const std::int64_t end = geometry.row_end(r);
      double sum = 0.0;
      for (std::int64_t p = begin; p < end; ++p) {
        sum += std::min(std::exp(sparse[p] - dense[p]), 1.0);
      }
      recall(h, r) = static_cast<float>(sum / static_cast<double>(end - begin));
    }
  });
  return recall;
}

}  // namespace sw
