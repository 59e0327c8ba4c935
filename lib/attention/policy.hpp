#pragma once

#include <any>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/budget.hpp"
#include "attention/problem.hpp"
#include "attention/stage.hpp"
#include "core/tensor.hpp"

/// A rule that decides which blocks, or single keys, to attend to. A policy is immutable;
/// everything that changes while it runs is a value that the caller owns: the walk state of a
/// sequence (or of one decode step), and one decode cache for each layer.
namespace sw {

/// What passes from one sparse layer to the next.
struct WalkState {
  /// Prefill: S or R of the layer before, one row set below the other; empty at the first sparse
  /// layer.
  Matrix matrix;
  std::vector<double> row;  ///< decode step: R[c, :] of the layer before (preset `preprint`)
};

/// What a policy keeps of one layer between decode steps; made by the prefill, updated by each
/// step. A handle: copies share what they refer to.
struct DecodeCache {
  std::any value;
};

struct ScoreContext {
  const AttentionProblem& problem;
  const Backend& backend;
  BlockGeometry geometry;
  const BlockMass* mass = nullptr;  ///< dense masses, given to policies that need them
  StageTimes* times = nullptr;
  double density = 1.0;  ///< requested; for policies whose decode scores depend on it
};

class Policy {
 public:
  virtual ~Policy() = default;

  /// "sketchwalk", "oracle", ...
  virtual std::string name() const = 0;
  /// Canonical SPEC: the name and every option that differs from its default.
  virtual std::string spec() const = 0;
  /// Layers with a smaller index attend densely.
  virtual std::int64_t dense_layers() const { return 0; }
  /// Whether a requested density has a meaning; without one the policy has a density of its own.
  virtual bool takes_density() const { return true; }
  /// Whether scores come from the dense block masses (oracles).
  virtual bool needs_mass() const { return false; }
  /// Whether decode scores depend on the density, as those of an eviction do: what was evicted
  /// cannot return. A step is then scored once for each density, in the same cache.
  virtual bool decode_depends_on_density() const { return false; }
  /// Whether scores depend on the layers before, through the walk state. Where they do not, a layer
  /// can be scored alone.
  virtual bool carries_walk() const { return false; }
  virtual Budget budget() const = 0;

  /// Scores of the rows of a prefill at a sparse layer, the same for every density. Advances
  /// `walk`; fills `cache` when decode steps will follow (null otherwise).
  virtual BlockScores score_prefill(const ScoreContext& context, WalkState& walk,
                                    DecodeCache* cache) const = 0;
  /// Scores of the one row of a decode step at a sparse layer. `walk` starts empty at the
  /// first sparse layer of each step; `cache` is that of the layer.
  virtual BlockScores score_decode(const ScoreContext& context, WalkState& walk,
                                   DecodeCache& cache) const = 0;
};

}  // namespace sw
