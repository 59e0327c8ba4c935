#pragma once

#include <string_view>
#include <vector>

#include "attention/problem.hpp"
#include "kernels/cpu/decode.hpp"
#include "kernels/cpu/scores.hpp"
#include "kernels/cpu/tile.hpp"

/// The instruction sets that the CPU kernels are written for, and the choice among them, made once
/// at run time by asking the CPU.
namespace sw::cpu {

/// The kernels of one instruction set, one file each.
struct Isa {
  const char* name;
  const TileKernel* f32_tile;   ///< any dtype, computed in f32
  const TileKernel* bf16_tile;  ///< bf16 as it is, or null: through f32_tile
  const DecodeKernel* f32_decode;
  const DecodeKernel* bf16_decode;  ///< or null: through f32_decode
  const ScoreKernel* scores;

  /// bf16 arithmetic for problems of bf16 tensors only.
  const TileKernel& tile(const AttentionProblem& problem) const;
  const DecodeKernel& decode(const AttentionProblem& problem) const;
};

/// Those that this CPU runs, the widest first; never empty.
const std::vector<Isa>& available_isas();

/// The one named `name`, or the widest for "auto". Throws Error(kUsage) for an unknown name and
/// Error(kUnsupported) for one that this CPU does not run.
const Isa& find_isa(std::string_view name);

}  // namespace sw::cpu
