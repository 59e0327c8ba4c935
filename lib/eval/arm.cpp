#include "eval/arm.hpp"

#include <cassert>

#include "core/error.hpp"
#include "core/text.hpp"
#include "metric/density.hpp"

namespace sw {

const char* sparse_phase_name(SparsePhase phase) {
  switch (phase) {
    case SparsePhase::kPrefill:
      return "prefill";
    case SparsePhase::kDecode:
      return "decode";
    default:
      return "both";
  }
}

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

void ArmAttention::check(const AttentionProblem& problem) const {
  if (const auto reason = backend_.unsupported(problem)) {
    throw Error(ErrorKind::kUnsupported,
                "the backend '" + backend_.name() + "' cannot compute this attention: " + *reason,
                "use another --backend");
  }
}

BlockSelection ArmAttention::select_prefill(const AttentionProblem& problem, bool attend) {
  const BlockGeometry geometry = problem.geometry(block_);
  const bool needs_mass = arm_.policy->needs_mass();
  // The masses of an oracle's prefill are known only where it is sparse.
  if (needs_mass && attend) backend_.attend_dense(problem, geometry, dense_, mass_);
  StageTimes* times = &usage_.prefill_times;
  const ScoreContext context{problem, backend_, geometry, needs_mass ? &mass_ : nullptr, times};
  DecodeCache& cache = caches_[static_cast<std::size_t>(problem.layer)];
  if (needs_mass && !attend) return BlockSelection::dense(geometry);
  const BlockScores scores =
      arm_.policy->score_prefill(context, prefill_walk_, arm_.sparse_decode() ? &cache : nullptr);
  if (!attend) return BlockSelection::dense(geometry);
  const StageTimer timer(times, Stage::kSelect);
  return select_blocks(scores, geometry, arm_.policy->budget(), arm_.density.value_or(1.0),
                       Phase::kPrefill);
}

BlockSelection ArmAttention::select_decode(const AttentionProblem& problem) {
  const BlockGeometry geometry = problem.geometry(block_);
  const bool needs_mass = arm_.policy->needs_mass();
  if (needs_mass) backend_.attend_dense(problem, geometry, dense_, mass_);
  if (problem.layer == arm_.policy->dense_layers()) step_walk_ = WalkState();
  StageTimes* times = &usage_.decode_times;
  const ScoreContext context{problem, backend_, geometry, needs_mass ? &mass_ : nullptr, times};
  const BlockScores scores = arm_.policy->score_decode(
      context, step_walk_, caches_[static_cast<std::size_t>(problem.layer)]);
  const StageTimer timer(times, Stage::kSelect);
  return select_blocks(scores, geometry, arm_.policy->budget(), arm_.density.value_or(1.0),
                       Phase::kDecode);
}

void ArmAttention::operator()(const AttentionProblem& problem, AttentionOutput& output) {
  check(problem);
  const bool decode = problem.query_begin() > 0 && problem.queries() == 1;
  const bool sparse =
      (decode ? arm_.sparse_decode() : arm_.sparse_prefill()) && sparse_layer(problem.layer);
  assert(!sparse || decode || problem.query_begin() == 0);
  BlockSelection selection;
  if (sparse) {
    selection = decode ? select_decode(problem) : select_prefill(problem, true);
  } else {
    if (!decode && !arm_.dense() && arm_.sparse_decode() && sparse_layer(problem.layer)) {
      select_prefill(problem, false);
    }
    selection = BlockSelection::dense(problem.geometry(block_));
  }
  {
    const StageTimer timer(decode ? &usage_.decode_times : &usage_.prefill_times,
                           Stage::kAttention);
    backend_.attend(problem, selection, output);
  }
  LayerUsage& layer = usage_.layers[static_cast<std::size_t>(problem.layer)];
  if (!decode) {
    layer.pairs = add(layer.pairs, count_per_head(selection, problem.num_heads()));
    return;
  }
  for (std::int64_t read : kv_tokens_read(selection, problem.num_heads(), problem.num_kv_heads())) {
    layer.kv_tokens_read += read;
    layer.kv_tokens_context += problem.tokens();
  }
}

void ArmAttention::observe_prefill(const AttentionProblem& problem) {
  assert(problem.query_begin() == 0);
  if (sparse_layer(problem.layer)) select_prefill(problem, false);
  LayerUsage& layer = usage_.layers[static_cast<std::size_t>(problem.layer)];
  layer.pairs = add(layer.pairs, count_per_head(BlockSelection::dense(problem.geometry(block_)),
                                                problem.num_heads()));
}

}  // namespace sw
