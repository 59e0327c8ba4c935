#include "metric/block_grid.hpp"

#include "core/parallel.hpp"

namespace sw {

BlockGrid compare_outputs(const AttentionOutput& dense, const AttentionOutput& sparse,
                          const BlockGeometry& geometry,
                          const std::function<double(const OutputSums&)>& value) {
  const std::int64_t dim = dense.out.dim();
  BlockGrid grid(dense.out.heads(), geometry.rows());
  parallel_for(grid.units, [&](std::int64_t h, int) {
    for (std::int64_t r = 0; r < grid.rows; ++r) {
      OutputSums sums;
      for (std::int64_t p = geometry.row_begin(r); p < geometry.row_end(r); ++p) {
        const float* a = dense.out.row<float>(h, p - geometry.query_begin);
        const float* b = sparse.out.row<float>(h, p - geometry.query_begin);
        for (std::int64_t x = 0; x < dim; ++x) {
          const double da = a[x];
          const double db = b[x];
          sums.difference += (da - db) * (da - db);
          sums.dense += da * da;
          sums.sparse += db * db;
          sums.product += da * db;
        }
      }
      grid(h, r) = static_cast<float>(value(sums));
    }
  });
  return grid;
}

}  // namespace sw
