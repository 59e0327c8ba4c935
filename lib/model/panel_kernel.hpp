#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.hpp"

/// The inner loop of products with constant weights, for CPUs on which it beats a library: the
/// weights lie in panels of kPanelOutputs outputs, [inputs, kPanelOutputs] (bf16: [inputs / 2,
/// kPanelOutputs, 2], an odd last input paired with zero), so that a vector register holds the
/// outputs and each element of x is broadcast. All sums run through the inputs in ascending order,
/// whatever the number of rows: a row's result does not depend on the others, and one row is a
/// matrix-vector product at the speed of memory. One file an instruction set.
namespace sw {

constexpr int kPanelOutputs = 32;

/// y[r, o] (+)= sum_i x[r, i] w[i, o] + bias[o] for the `outputs` <= kPanelOutputs of one panel.
/// Costs 2 rows inputs outputs FLOP; reads the panel once for every 12 rows.
struct PanelProduct {
  const void* x;        // [rows, inputs], contiguous
  const void* weights;  // one panel, 64-byte aligned
  const float* bias;    // [outputs], or null
  float* y;             // [rows, outputs], rows y_stride floats apart
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t inputs;
  int outputs;
  bool add;  // add to y instead of overwriting it
};

struct PanelKernel {
  const char* name;                   ///< of the instruction set, as in --cpu-isa
  DType bf16_x;                       ///< of x where the weights are bf16
  void (*bf16)(const PanelProduct&);  ///< weights bf16, sums in float
  void (*f32)(const PanelProduct&);   ///< x and weights float
};

/// Those that this CPU runs, the widest first.
std::vector<const PanelKernel*> available_panel_kernels();

/// The widest of them within cpu_isa_limit(), or null where oneDNN is the better choice: with AMX,
/// and without AVX2.
const PanelKernel* find_panel_kernel();

}  // namespace sw
