#pragma once

#include <cstdint>

/// A BlockSelection in device memory, as kernels produce and consume it.
namespace sw::cuda {

/// Row (g, r) of row set g and query block row r has index g * rows + r. Its key blocks ascend, are
/// unique and contain the row's own block; a kernel may read the list in any order.
struct SelectionView {
  const std::int64_t* row_begin = nullptr;  ///< [groups * rows] offset of the row in `blocks`
  const std::int32_t* row_count = nullptr;  ///< [groups * rows] key blocks of the row, >= 1
  const std::int32_t* blocks = nullptr;     ///< key block indices
  int groups = 1;                           ///< row sets: 1, num_kv_heads or num_heads
  int rows = 0;                             ///< query block rows
  int first_row = 0;                        ///< block index of row 0
  int block = 64;                           ///< tokens of a block
  /// Token-level parts of the budget `release`: key t <= p is visible to query p also when
  /// p - token_window < t or t < token_sink. 0 = none.
  std::int64_t token_window = 0;
  std::int64_t token_sink = 0;
};

}  // namespace sw::cuda
