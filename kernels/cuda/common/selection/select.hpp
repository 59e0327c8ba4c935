#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attention/budget.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/launch.hpp"
#include "kernels/cuda/common/selection.hpp"
#include "kernels/cuda/common/selection/matrix.hpp"

/// From block scores to a selection on the GPU: select_blocks() of lib/attention/budget.hpp, with
/// the same results for the same scores, bit for bit.
namespace sw::cuda {

inline constexpr int kReleaseDenseRows = 4;  ///< the last of a prefill, in the budget release

/// What kernels need to select.
struct SelectArgs {
  const float* scores;  ///< may be null
  std::int64_t stride;
  int rows;
  int first_row;
  int key_blocks;
  Budget::Kind kind;
  Budget::Forced forced;
  bool prefill;
  double density;
  double quantile;  ///< kRelease: 1 - kfrac
  int min_blocks;
  int tau;
  int window_blocks;  ///< kRelease
  int sink_blocks;
  std::int64_t* row_begin;
  std::int32_t* row_count;
  std::int32_t* blocks;
  std::uint8_t* parts;
  std::int32_t* nan;
};

/// Owns the selections that it makes; a call allocates nothing and can be captured in a graph.
class BudgetSelector {
 public:
  /// Why it cannot select with `max_blocks` key blocks, or nothing.
  static std::optional<std::string> unsupported(std::int64_t max_blocks);

  /// Why this budget is not one of those that the kernel knows, or nothing. In a decode step
  /// select() and plan() refuse rounding=steps too, which means nothing in a prefill.
  static std::optional<std::string> unsupported(const Budget& budget);

  /// For up to max_groups row sets of max_rows query block rows over max_blocks key blocks. Throws
  /// Error(kUnsupported) with that reason, Error(kResource) without memory.
  BudgetSelector(int max_groups, int max_rows, int max_blocks);

  /// Selects from scores [groups * rows, key blocks]; row r is the query block
  /// geometry.first_row() + r. scores.data may be null where the budget needs none. The view is
  /// valid until the next call. A score that is not a number sets the flag of saw_nan().
  SelectionView select(const ScoresView& scores, const BlockGeometry& geometry,
                       const Budget& budget, double density, Phase phase, cudaStream_t stream);

  /// For a kernel that selects from scores which it has at hand: what select() would launch with,
  /// and the view that it would return.
  SelectArgs plan(const ScoresView& scores, const BlockGeometry& geometry, const Budget& budget,
                  double density, Phase phase);
  const SelectionView& view() const { return view_; }

  /// The part (attention/selection.hpp) of each element of the last view's `blocks`.
  const std::uint8_t* parts() const { return parts_.data(); }

  /// Whether a score was not a number since the last question. Waits for `stream`.
  bool saw_nan(cudaStream_t stream);

  /// The last selection on the host, with its parts. Waits for `stream`. Throws Error(kInput) when
  /// a score was not a number.
  BlockSelection download(const BlockGeometry& geometry, cudaStream_t stream);

  static KernelCost cost(int groups, int rows, int blocks);

 private:
  int max_groups_;
  int max_rows_;
  int max_blocks_;
  SelectionView view_;
  DeviceBuffer<std::int64_t> row_begin_;
  DeviceBuffer<std::int32_t> row_count_;
  DeviceBuffer<std::int32_t> blocks_;
  DeviceBuffer<std::uint8_t> parts_;
  DeviceBuffer<std::int32_t> nan_;
};

}  // namespace sw::cuda
