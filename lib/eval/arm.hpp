#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/policy.hpp"
#include "attention/selection.hpp"
#include "attention/stage.hpp"

/// One way to run a model: a method at a density, in the prefill, in decode or in both. The
/// attention of an arm is injected into a model's session, so that the same weights serve all arms.
namespace sw {

/// Where a run is sparse; elsewhere it attends densely.
enum class SparsePhase { kPrefill, kDecode, kBoth };
struct Arm {
  std::shared_ptr<const Policy> policy;
  std::optional<double> density;  ///< none for methods with a density of their own
  SparsePhase phase = SparsePhase::kBoth;

  bool dense() const;  ///< the reference arm: the method `dense`
  bool sparse_prefill() const { return !dense() && phase != SparsePhase::kDecode; }
  bool sparse_decode() const { return !dense() && phase != SparsePhase::kPrefill; }
  /// "sketchwalk @0.2", unique within a run.
  std::string label() const;
};

/// What the attention of one layer really kept while it ran (metrics.md, Density).
struct LayerUsage {
  bool sparse = false;                 ///< whether the layer runs the method in any phase
  DensityCount pairs;                  ///< of the prefill, counted for each query head
  std::int64_t kv_tokens_read = 0;     ///< of decode, summed over KV heads and steps
  std::int64_t kv_tokens_context = 0;  ///< of decode, summed likewise
};

struct ArmUsage {
  std::vector<LayerUsage> layers;
  StageTimes prefill_times;  ///< selection and attention, over all layers
  StageTimes decode_times;   ///< over all layers and steps
};

/// The attention of one arm over one sequence at a time; an AttentionFunction for Session. The
/// policy's walk state and decode caches live here.
class ArmAttention {
 public:
  /// `arm` and `backend` have to outlive it. Block size `block`, `layers` of the model.
  ArmAttention(const Arm& arm, const Backend& backend, std::int64_t block, std::int64_t layers);

  /// Forgets the sequence and the usage.
  void begin();

  /// Prefill (a problem whose queries start at position 0) or decode step (one query). A sparse
  /// prefill scores all queries of a layer together, so its session must run the prompt as one
  /// chunk; later chunks of a prefill are possible for dense ones only. Throws Error(kUnsupported)
  /// when the backend cannot compute the problem.
  void operator()(const AttentionProblem& problem, AttentionOutput& output);

  /// Takes a layer of a dense prefill that another arm runs: all that an arm needs which is sparse
  /// in decode only. The whole prompt has to be one chunk.
  void observe_prefill(const AttentionProblem& problem);

  /// Kept pairs and times of the sequence so far.
  const ArmUsage& usage() const { return usage_; }

 private:
  /// Computes the dense masses first where the policy ranks by them.
  ScoreContext context(const AttentionProblem& problem, StageTimes& times);
  BlockScores score_prefill(const ScoreContext& context);
  BlockScores score_decode(const ScoreContext& context);
  BlockSelection select(const AttentionProblem& problem, Phase phase);
  /// What decode steps need of a layer whose prefill attends densely.
  void prepare_decode(const AttentionProblem& problem);
  void count_prefill(const AttentionProblem& problem, const BlockSelection& selection);
  bool sparse_layer(std::int64_t layer) const { return layer >= arm_.policy->dense_layers(); }

  const Arm& arm_;
  const Backend& backend_;
  std::int64_t block_;
  WalkState prefill_walk_;
  WalkState step_walk_;
  std::vector<DecodeCache> caches_;  // a layer
  BlockMass mass_;
  AttentionOutput dense_;  // of policies that need masses
  ArmUsage usage_;
};

}  // namespace sw
