#include "kernels/cuda/common/decode/budget.hpp"

#include "core/error.hpp"

namespace sw::cuda {

DecodeBudget make_decode_budget(const Budget& budget, double density) {
  const bool known = budget.kind == Budget::Kind::kMatched || budget.kind == Budget::Kind::kFixed ||
                     budget.kind == Budget::Kind::kRelease;
  if (!known || budget.forced != Budget::Forced::kSinkAndWindow || budget.dense_phase ||
      budget.rounding != Budget::Rounding::kRow) {
    throw Error(ErrorKind::kUnsupported,
                "the CUDA decode path selects by the budgets matched (rounding=row), fixed and "
                "release, with sink and window blocks",
                budget.rounding == Budget::Rounding::kSteps
                    ? "leave rounding=steps out, or use --backend cpu"
                    : "use --backend cpu for this policy");
  }
  DecodeBudget result;
  result.kind = budget.kind;
  result.density = density;
  result.min_blocks = static_cast<int>(budget.min_blocks);
  result.tau = static_cast<int>(budget.tau);
  result.window_frac = budget.window_frac;
  result.sink_frac = budget.sink_frac;
  result.quantile = 1.0 - budget.kfrac;
  result.release_sink_bug = budget.release_sink_bug;
  return result;
}

}  // namespace sw::cuda
