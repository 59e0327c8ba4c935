#include "kernels/cuda/common/selection/selector.hpp"

#include "core/error.hpp"

namespace sw::cuda {
namespace {

std::int64_t blocks_of(const AttentionShape& shape, const SketchParams& sketch) {
  return (shape.max_tokens + sketch.block - 1) / sketch.block;
}

const AttentionShape& require(const AttentionShape& shape, const SketchParams& sketch,
                              const WalkParams& walk, const Budget& budget) {
  if (const auto reason = Selector::unsupported(shape, sketch, walk, budget)) {
    throw Error(ErrorKind::kUnsupported, "the GPU cannot select blocks here: " + *reason,
                "use --backend cpu");
  }
  return shape;
}

/// Probabilities that sum to 1 a row fit in f16; their products and unnormalised powers do not.
Split split_for(const SketchParams& sketch, const WalkParams& walk) {
  return walk.kind == WalkParams::Kind::kProduct || !sketch.normalize ? Split::kBf16 : Split::kF16;
}

}  // namespace

std::optional<std::string> Selector::unsupported(const AttentionShape& shape,
                                                 const SketchParams& sketch, const WalkParams& walk,
                                                 const Budget& budget) {
  if (const auto reason = Transition::unsupported(shape, sketch)) return reason;
  if (walk.kind == WalkParams::Kind::kDamped && !sketch.normalize && sketch.sharpness != 1.0) {
    return "walk=damped adds a matrix to its products, which needs normalize_walk=true when "
           "sharpness is not 1";
  }
  if (const auto reason = BudgetSelector::unsupported(budget)) return reason;
  return BudgetSelector::unsupported(blocks_of(shape, sketch));
}

Selector::Selector(const AttentionShape& shape, const SketchParams& sketch, const WalkParams& walk,
                   const Budget& budget)
    : params_(sketch),
      walk_params_(walk),
      budget_(budget),
      max_blocks_(static_cast<int>(blocks_of(require(shape, sketch, walk, budget), sketch))),
      split_(split_for(sketch, walk)),
      transition_(shape, sketch),
      a_(max_blocks_, split_),
      selector_(1, max_blocks_, max_blocks_) {
  if (walk.kind != WalkParams::Kind::kNone) walk_.emplace(max_blocks_, split_);
}

const SplitMatrix& Selector::transition(const HeadsPointer& q, const HeadsPointer& k,
                                        Element element, std::int64_t tokens, std::int64_t layer,
                                        cudaStream_t stream) {
  transition_.run(q, k, element, tokens, layer, a_, stream);
  geometry_ = {params_.block, 0, tokens};
  scores_ = a_.view();
  return a_;
}

ScoresView Selector::walk(WalkMatrix& state, cudaStream_t stream) {
  switch (walk_params_.kind) {
    case WalkParams::Kind::kDamped:
      walk_->damped(a_, state, walk_params_.damping, walk_params_.degree, stream);
      scores_ = state.view();
      break;
    case WalkParams::Kind::kProduct:
      walk_->product(a_, state, stream);
      scores_ = state.view();
      break;
    case WalkParams::Kind::kNone:
      scores_ = a_.view();
      break;
  }
  return scores_;
}

SelectionView Selector::select(double density, cudaStream_t stream) {
  return selector_.select(scores_, geometry_, budget_, density, Phase::kPrefill, stream);
}

SelectionView Selector::walk_and_select(WalkMatrix& state, double density, cudaStream_t stream) {
  const WalkParams& w = walk_params_;
  if (w.kind != WalkParams::Kind::kDamped ||
      !Walk::damped_selects(a_.blocks(), w.damping, w.degree)) {
    walk(state, stream);
    return select(density, stream);
  }
  const SelectArgs args =
      selector_.plan(ScoresView{}, geometry_, budget_, density, Phase::kPrefill);
  walk_->damped(a_, state, w.damping, w.degree, stream, &args);
  scores_ = state.view();
  return selector_.view();
}

}  // namespace sw::cuda
