#include <algorithm>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/select.hpp"
#include "kernels/cuda/common/selection/select_row.cuh"

namespace sw::cuda {
namespace {

constexpr int kMaxBlocks = 16384;

template <int kThreads, int kItems>
__global__ void __launch_bounds__(kThreads) select_rows(SelectArgs p) {
  using RowType = Row<kThreads, kItems>;
  __shared__ typename RowType::Shared shared;
  RowType row(shared);
  const int r = static_cast<int>(blockIdx.x);
  const int set = static_cast<int>(blockIdx.y);
  const float* scores = p.scores;
  if (scores != nullptr) scores += (static_cast<std::int64_t>(set) * p.rows + r) * p.stride;
  const RowPlan plan(p, p.first_row + r + 1);
  wait_for_previous();
  select_row<RowType, kItems>(row, p, plan, set, r,
                              [scores](int j) { return scores != nullptr ? scores[j] : 0.0f; });
}

}  // namespace

std::optional<std::string> BudgetSelector::unsupported(const Budget& budget) {
  if (budget.kind == Budget::Kind::kTopP || budget.kind == Budget::Kind::kCalibrated ||
      budget.kind == Budget::Kind::kMarked) {
    return "the GPU knows the budgets matched, fixed and release";
  }
  if (budget.forced == Budget::Forced::kSinkBlock || budget.forced == Budget::Forced::kRecentHalf ||
      budget.dense_last_rows > 0 || budget.dense_phase) {
    return "the GPU forces the sink and window, the diagonal, or recent blocks only";
  }
  return {};
}

std::optional<std::string> BudgetSelector::unsupported(std::int64_t max_blocks) {
  if (max_blocks <= kMaxBlocks) return {};
  return std::to_string(max_blocks) + " key blocks are more than " + std::to_string(kMaxBlocks);
}

BudgetSelector::BudgetSelector(int max_groups, int max_rows, int max_blocks)
    : max_groups_(max_groups), max_rows_(max_rows), max_blocks_(max_blocks) {
  if (const auto reason = unsupported(max_blocks)) {
    throw Error(ErrorKind::kUnsupported, "the GPU cannot select blocks here: " + *reason,
                "use a larger block size, or --backend cpu");
  }
  const auto rows = static_cast<std::size_t>(max_groups) * static_cast<std::size_t>(max_rows);
  // The last max_rows rows are the longest.
  const auto elements =
      rows * static_cast<std::size_t>(2 * (max_blocks - max_rows) + max_rows + 1) / 2;
  row_begin_ = DeviceBuffer<std::int64_t>(rows);
  row_count_ = DeviceBuffer<std::int32_t>(rows);
  blocks_ = DeviceBuffer<std::int32_t>(elements);
  parts_ = DeviceBuffer<std::uint8_t>(elements);
  const std::int32_t none = 0;
  nan_ = DeviceBuffer<std::int32_t>(std::span<const std::int32_t>(&none, 1));
}

SelectArgs BudgetSelector::plan(const ScoresView& scores, const BlockGeometry& geometry,
                                const Budget& budget, double density, Phase phase) {
  if (const auto reason = unsupported(budget)) {
    throw Error(ErrorKind::kUnsupported, *reason, "use --backend cpu");
  }
  if (phase == Phase::kDecode && budget.rounding == Budget::Rounding::kSteps) {
    throw Error(ErrorKind::kUnsupported, "the GPU rounds decode steps by rounding=row only",
                "leave rounding=steps out, or use --backend cpu");
  }
  const std::int64_t b = geometry.key_blocks();
  const auto n = static_cast<double>(geometry.tokens);
  if (scores.groups > max_groups_ || geometry.rows() > max_rows_ || b > max_blocks_) {
    throw std::logic_error("selection: more rows or blocks than the workspace was made for");
  }
  const auto at_most_b = [&](std::int64_t x) { return static_cast<int>(std::min(x, b)); };
  SelectArgs args{};
  args.scores = scores.data;
  args.stride = scores.stride;
  args.rows = static_cast<int>(geometry.rows());
  args.first_row = static_cast<int>(geometry.first_row());
  args.key_blocks = static_cast<int>(b);
  args.kind = budget.kind;
  args.forced = budget.forced;
  args.prefill = phase == Phase::kPrefill;
  args.density = density;
  args.quantile = 1.0 - budget.kfrac;
  args.min_blocks = at_most_b(budget.min_blocks);
  args.tau = budget.tau > 0 ? static_cast<int>(std::min<std::int64_t>(budget.tau, INT_MAX))
                            : std::max(1, at_most_b(static_cast<std::int64_t>(
                                              std::floor(density * static_cast<double>(b) + 0.5))));
  const auto share = [&](double fraction) {
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(fraction * n));
  };
  const auto blocks = [&](std::int64_t t) {
    return at_most_b((t + geometry.block - 1) / geometry.block);
  };
  const std::int64_t window = share(budget.window_frac);
  const std::int64_t sink = share(budget.sink_frac);
  args.window_blocks = blocks(window);
  args.sink_blocks = blocks(sink);
  args.row_begin = row_begin_.data();
  args.row_count = row_count_.data();
  args.blocks = blocks_.data();
  args.parts = parts_.data();
  args.nan = nan_.data();

  view_ = {};
  view_.row_begin = row_begin_.data();
  view_.row_count = row_count_.data();
  view_.blocks = blocks_.data();
  view_.groups = scores.groups;
  view_.rows = args.rows;
  view_.first_row = args.first_row;
  view_.block = static_cast<int>(geometry.block);
  if (budget.kind == Budget::Kind::kRelease) {
    view_.token_window = phase == Phase::kPrefill ? window : 0;
    view_.token_sink = budget.release_sink_bug ? window : sink;
  }
  return args;
}

SelectionView BudgetSelector::select(const ScoresView& scores, const BlockGeometry& geometry,
                                     const Budget& budget, double density, Phase phase,
                                     cudaStream_t stream) {
  const SelectArgs args = plan(scores, geometry, budget, density, phase);
  const auto launch = [&](auto kernel, int threads) {
    const dim3 grid(static_cast<unsigned>(args.rows), static_cast<unsigned>(scores.groups));
    launch_chained("launch of select_rows", kernel, grid, threads, 0, stream, args);
  };
  if (args.key_blocks <= 128) {
    launch(select_rows<32, 4>, 32);
  } else if (args.key_blocks <= 512) {
    launch(select_rows<128, 4>, 128);
  } else if (args.key_blocks <= 1024) {
    launch(select_rows<128, 8>, 128);
  } else if (args.key_blocks <= 2048) {
    launch(select_rows<128, 16>, 128);
  } else {
    launch(select_rows<512, 32>, 512);
  }
  return view_;
}

bool BudgetSelector::saw_nan(cudaStream_t stream) {
  synchronize(stream, "block selection");
  if (nan_.download()[0] == 0) return false;
  const std::int32_t none = 0;
  nan_.upload(std::span<const std::int32_t>(&none, 1));
  return true;
}

BlockSelection BudgetSelector::download(const BlockGeometry& geometry, cudaStream_t stream) {
  if (saw_nan(stream)) {
    throw Error(ErrorKind::kInput, "a block score is not a number",
                "check the trace for NaN and huge values with sw-trace validate");
  }
  const std::size_t rows = static_cast<std::size_t>(view_.groups) * view_.rows;
  const auto begin = row_begin_.download(rows);
  const auto count = row_count_.download(rows);
  const auto blocks = blocks_.download();
  const auto parts = parts_.download();
  BlockSelection selection(geometry, view_.groups);
  for (std::size_t i = 0; i < rows; ++i) {
    const auto at = static_cast<std::size_t>(begin[i]);
    const auto size = static_cast<std::size_t>(count[i]);
    std::vector<Part> tags(size);
    std::transform(parts.begin() + begin[i], parts.begin() + begin[i] + count[i], tags.begin(),
                   [](std::uint8_t part) { return static_cast<Part>(part); });
    selection.append_row(std::span(blocks).subspan(at, size), tags);
  }
  selection.set_token_parts(view_.token_window, view_.token_sink);
  return selection;
}

KernelCost BudgetSelector::cost(int groups, int rows, int blocks) {
  const double pairs = static_cast<double>(groups) * rows * blocks;
  return {0.0, 4.0 * pairs};
}

}  // namespace sw::cuda
