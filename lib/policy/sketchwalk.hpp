#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attention/budget.hpp"
#include "attention/sketch.hpp"
#include "policy/head_scores.hpp"

/// The options of a sketchwalk SPEC as values, for code that runs its steps outside of the policy:
/// GPU pipelines and their profiler.
namespace sw {

struct SketchWalkForm {
  enum class Walk {
    kDamped,   ///< D times S := (1 - damping) A + damping S A (the release)
    kProduct,  ///< R := R W, masked (the preprint)
    kNone,     ///< scores are A
  };
  SketchParams sketch;
  Walk walk = Walk::kDamped;
  double damping = 0.25;
  std::int64_t degree = 3;
  Budget budget;
  std::int64_t query_window = 32;
  std::int64_t query_stride = 1;
  Granularity granularity = Granularity::kLayer;
};

/// Nothing when the SPEC names another policy. Throws Error(kUsage) as make_policy() does.
std::optional<SketchWalkForm> sketchwalk_form(const std::string& spec, std::uint64_t seed);

}  // namespace sw
