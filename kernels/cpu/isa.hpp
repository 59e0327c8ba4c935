#pragma once

#include <string_view>
#include <vector>

#include "attention/problem.hpp"
#include "kernels/cpu/decode.hpp"
#include "kernels/cpu/scores.hpp"
#include "kernels/cpu/strip.hpp"
#include "kernels/cpu/tile.hpp"

/// The instruction sets that the CPU kernels are written for, and the choice among them, made once
/// at run time by asking the CPU.
namespace sw::cpu {

/// The kernels of one instruction set, one file each.
struct Isa {
  const char* name;
  const TileKernel* f32_tile;     ///< any dtype, computed in f32
  const TileKernel* bf16_tile;    ///< bf16 as it is, or null
  const StripKernel* bf16_strip;  ///< the same for matrix tiles, or null
  const DecodeKernel* f32_decode;
  const DecodeKernel* bf16_decode;  ///< or null: through f32_decode
  const ScoreKernel* scores;

  /// Whether prefill has kernels of its own for bf16 tensors, which f32_tile computes otherwise.
  bool has_bf16() const { return bf16_tile != nullptr || bf16_strip != nullptr; }
  const DecodeKernel& decode(const AttentionProblem& problem) const;
};

/// Whether the tensors are of bf16, all of them.
bool all_bf16(const AttentionProblem& problem);

/// Those that this CPU runs, the widest first; never empty.
const std::vector<Isa>& available_isas();

/// The one named `name`, or the widest for "auto". Throws Error(kUsage) for an unknown name and
/// Error(kUnsupported) for one that this CPU does not run.
const Isa& find_isa(std::string_view name);

}  // namespace sw::cpu
