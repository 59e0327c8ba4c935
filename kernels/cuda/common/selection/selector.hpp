#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attention/budget.hpp"
#include "attention/sketch.hpp"
#include "kernels/cuda/common/selection/select.hpp"
#include "kernels/cuda/common/selection/transition.hpp"
#include "kernels/cuda/common/selection/walk.hpp"

/// Block selection of a prefill layer on the GPU, from queries and keys to the blocks to attend to
/// (sketchwalk.md sections 1 to 3): transition, walk and budget with one workspace.
namespace sw::cuda {

struct WalkParams {
  enum class Kind { kDamped, kProduct, kNone };
  Kind kind = Kind::kDamped;
  double damping = 0.25;
  int degree = 3;
};

/// What a sequence carries from one sparse layer to the next; empty before the first.
using WalkMatrix = SplitMatrix;

/// Not for concurrent use: each call fills the workspace that the next one reads. Every call is
/// asynchronous, allocates nothing and can be captured in a graph.
class Selector {
 public:
  /// Why this selection cannot be computed, or nothing.
  static std::optional<std::string> unsupported(const AttentionShape& shape,
                                                const SketchParams& sketch, const WalkParams& walk,
                                                const Budget& budget);

  /// Throws Error(kUnsupported) with that reason, Error(kResource) without memory.
  Selector(const AttentionShape& shape, const SketchParams& sketch, const WalkParams& walk,
           const Budget& budget);

  /// An empty walk state for one sequence.
  WalkMatrix make_state() const { return WalkMatrix(max_blocks_, split_); }

  /// A of one layer (see Transition::run).
  const SplitMatrix& transition(const HeadsPointer& q, const HeadsPointer& k, Element element,
                                std::int64_t tokens, std::int64_t layer, cudaStream_t stream);

  /// Walks from `state` over the last transition; the result is the new state and the scores.
  /// Without a walk the state stays as it is.
  ScoresView walk(WalkMatrix& state, cudaStream_t stream);

  /// Selects by the scores of the last walk. `density` as in select_blocks().
  SelectionView select(double density, cudaStream_t stream);

  /// walk() and select(), in one launch where few blocks let them.
  SelectionView walk_and_select(WalkMatrix& state, double density, cudaStream_t stream);

  const SplitMatrix& matrix() const { return a_; }
  Transition& sketch() { return transition_; }
  BudgetSelector& budget_selector() { return selector_; }

 private:
  SketchParams params_;
  WalkParams walk_params_;
  Budget budget_;
  int max_blocks_;
  Split split_;
  Transition transition_;
  SplitMatrix a_;
  std::optional<Walk> walk_;
  BudgetSelector selector_;
  BlockGeometry geometry_;
  ScoresView scores_;
};

}  // namespace sw::cuda
