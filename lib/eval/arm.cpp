#include "eval/arm.hpp"

#include <cassert>

#include "core/text.hpp"
#include "metric/density.hpp"

namespace sw {

bool Arm::dense() const { return policy->budget().kind == Budget::Kind::kAll; }

std::string Arm::label() const {
  return density ? policy->spec() + " @" + format_double(*density) : policy->spec();
}

ArmAttention::ArmAttention(const Arm& arm, const Backend& backend, std::int64_t block,
                           std::int64_t layers)
    : arm_(arm), backend_(backend), block_(block), caches_(static_cast<std::size_t>(layers)) {
  begin();
}

void ArmAttention::begin() {
  prefill_walk_ = WalkState();
  for (DecodeCache& cache : caches_) cache = DecodeCache();
  usage_ = ArmUsage();
  usage_.layers.resize(caches_.size());
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    usage_.layers[i].sparse = !arm_.dense() && sparse_layer(static_cast<std::int64_t>(i));
  }
}

ScoreContext ArmAttention::context(const AttentionProblem& problem, StageTimes& times) {
  const BlockGeometry geometry = problem.geometry(block_);
  const bool needs_mass = arm_.policy->needs_mass();
  if (needs_mass) backend_.attend_dense(problem, geometry, dense_, mass_);
  return {problem,  backend_,
          geometry, needs_mass ? &mass_ : nullptr,
          &times,   arm_.density.value_or(1.0)};
}

BlockScores ArmAttention::score_prefill(const ScoreContext& context) {
  DecodeCache& cache = caches_[static_cast<std::size_t>(context.problem.layer)];
  return arm_.policy->score_prefill(context, prefill_walk_,
                                    arm_.sparse_decode() ? &cache : nullptr);
}

BlockScores ArmAttention::score_decode(const ScoreContext& context) {
  const std::int64_t layer = context.problem.layer;
  if (layer == arm_.policy->dense_layers()) step_walk_ = WalkState();
  return arm_.policy->score_decode(context, step_walk_, caches_[static_cast<std::size_t>(layer)]);
}

BlockSelection ArmAttention::select(const AttentionProblem& problem, Phase phase) {
  const bool decode = phase == Phase::kDecode;
  StageTimes& times = decode ? usage_.decode_times : usage_.prefill_times;
  const ScoreContext scored = context(problem, times);
  const BlockScores scores = decode ? score_decode(scored) : score_prefill(scored);
  const StageTimer timer(&times, Stage::kSelect);
  return select_blocks(scores, scored.geometry, arm_.policy->budget(), arm_.density.value_or(1.0),
                       phase);
}

void ArmAttention::prepare_decode(const AttentionProblem& problem) {
  // Policies that rank by masses keep nothing between steps.
  if (!arm_.sparse_decode() || !sparse_layer(problem.layer) || arm_.policy->needs_mass()) return;
  score_prefill(context(problem, usage_.prefill_times));
}

void ArmAttention::count_prefill(const AttentionProblem& problem, const BlockSelection& selection) {
  LayerUsage& layer = usage_.layers[static_cast<std::size_t>(problem.layer)];
  layer.pairs = add(layer.pairs, count_per_head(selection, problem.num_heads()));
}

void ArmAttention::operator()(const AttentionProblem& problem, AttentionOutput& output) {
  require_supported(backend_, problem);
  const bool decode = problem.query_begin() > 0 && problem.queries() == 1;
  const bool sparse =
      (decode ? arm_.sparse_decode() : arm_.sparse_prefill()) && sparse_layer(problem.layer);
  assert(!sparse || decode || problem.query_begin() == 0);
  if (!sparse && !decode) prepare_decode(problem);
  const BlockSelection selection = sparse
                                       ? select(problem, decode ? Phase::kDecode : Phase::kPrefill)
                                       : BlockSelection::dense(problem.geometry(block_));
  {
    const StageTimer timer(decode ? &usage_.decode_times : &usage_.prefill_times,
                           Stage::kAttention);
    backend_.attend(problem, selection, output);
  }
  if (!decode) return count_prefill(problem, selection);
  LayerUsage& layer = usage_.layers[static_cast<std::size_t>(problem.layer)];
  for (std::int64_t read : kv_tokens_read(selection, problem.num_heads(), problem.num_kv_heads())) {
    layer.kv_tokens_read += read;
    layer.kv_tokens_context += problem.tokens();
  }
}

void ArmAttention::observe_prefill(const AttentionProblem& problem) {
  assert(problem.query_begin() == 0);
  prepare_decode(problem);
  count_prefill(problem, BlockSelection::dense(problem.geometry(block_)));
}

}  // namespace sw
