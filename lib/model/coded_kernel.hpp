#pragma once

#include <cstdint>

/// The inner loop of a matrix-vector product with quantised weights as they are: integers of 4, 5
/// or 8 bits, each group of inputs with a scale (and a minimum) of its own. The vector is rounded
/// to 16 bits for each group (relative error 2^-16 of the largest), so that products and their sums
/// within a group are exact in integers; groups are added up in float. A decode step is bound by
/// reading weights, and these are two to four times fewer bytes than bf16. One file an instruction
/// set.
namespace sw {

constexpr int kCodedOutputs = 32;

/// How a panel of kCodedOutputs outputs lies in memory, one group of inputs after the other:
/// float scale [32], with `minimum` float [32], then the codes.
///   8 bits: [group / 2][2][16][2], of pairs of inputs and twice 16 outputs.
///   4 bits: [group / 4][2][16][2], of which low halves are the first pair of inputs, high halves
///           the second.
///   5 bits: the low four as above, then the fifth ones: uint32 [group / 4][2][2] for the first and
///           the second pair of inputs, in which bit 2 o + i is of output o and input i.
struct CodedPanel {
  int bits;    ///< 4, 5 or 8
  int offset;  ///< of 4 and 5 bits: what the codes are larger by than the integers they stand for
  int group;   ///< 16 or 32 inputs
  bool minimum;

  std::int64_t group_bytes() const {
    return kCodedOutputs * ((minimum ? 2 : 1) * std::int64_t{sizeof(float)} + group * bits / 8);
  }
};

/// A vector in integers: x[i] is about scale[i / group] code[i].
struct CodedVector {
  std::int16_t* code;      // [inputs]
  float* scale;            // [inputs / group]
  float* sum;              // [inputs / group] of a group's x
  std::int32_t* code_sum;  // [inputs / group] of a group's codes
};

/// y[o] (+)= sum_i x[i] w[i, o] + bias[o] for the `outputs` <= kCodedOutputs of one panel.
struct CodedProduct {
  CodedPanel layout;
  CodedVector x;
  const void* weights;  // 64-byte aligned
  const float* bias;    // [outputs], or null
  float* y;
  std::int64_t inputs;  // a multiple of the group
  int outputs;
  bool add;
};

struct CodedKernel {
  /// Rounds x [inputs] of bf16.
  void (*encode)(const void* x, std::int64_t inputs, int group, const CodedVector& out);
  void (*multiply)(const CodedProduct&);
};

/// The kernel of this CPU, or null where there is none (no AVX512-VNNI, or not within
/// cpu_isa_limit()).
const CodedKernel* find_coded_kernel();

}  // namespace sw
