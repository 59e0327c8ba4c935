#pragma once

#include "attention/problem.hpp"
#include "attention/sketch.hpp"
#include "attention/stage.hpp"
#include "core/tensor.hpp"
#include "kernels/cpu/isa.hpp"

namespace sw::cpu {

/// Backend::transition. Whole-block pools are scored in fp64; with keys pooled more finely
/// (sketchwalk.md section 9) the scores are block masses of pooled queries, by the attention tiles:
/// in f32, or where bf16 keys are taken one by one in bf16, to which the mean queries are rounded.
Matrix transition(const AttentionProblem& problem, const SketchParams& params, StageTimes* times,
                  const Isa& isa);

}  // namespace sw::cpu
