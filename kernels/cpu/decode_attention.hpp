#pragma once

#include "attention/backend.hpp"
#include "kernels/cpu/isa.hpp"

namespace sw::cpu {

/// Backend::attend for a problem of one query token. Work is cut into (KV head, a run of keys) so
/// that all threads are busy with one KV head too, and merged in the order of the keys: the cut
/// depends on the problem alone, so that results do not depend on the number of threads. `mass`
/// (may be null) gets the softmax probability of each block of `selection`.
void attend_one_query(const AttentionProblem& problem, const BlockSelection& selection,
                      const Isa& isa, AttentionOutput& output, BlockMass* mass);

}  // namespace sw::cpu
