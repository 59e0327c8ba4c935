#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "core/dtype.hpp"
#include "model/panel_kernel.hpp"
#include "model/weight_arena.hpp"

/// Constant weights in the layout that a product wants, stored once. Two implementations: panels
/// for a kernel of this project, and oneDNN for CPUs without one. Linear chooses.
namespace sw {

/// Fills one row [inputs] of the weights [outputs, inputs]; called from several threads.
using LoadRow = std::function<void(std::int64_t row, float* out)>;

class PackedWeights {
 public:
  virtual ~PackedWeights() = default;
  virtual std::uint64_t bytes() const = 0;
  /// Whether a lone row is added up as several are.
  virtual bool lone_rows_equal_others() const = 0;
  /// y [rows, outputs] = x [rows, inputs] W^T + bias (empty or [outputs]), or += with `add`. Safe
  /// from several threads.
  virtual void multiply(const void* x, std::int64_t rows, std::span<const float> bias, bool add,
                        float* y) const = 0;
};

/// Panels for `kernel`, in the memory of `arena`. Throws Error(kResource) when the memory cannot be
/// had.
std::unique_ptr<const PackedWeights> pack_panels(const PanelKernel& kernel, std::int64_t inputs,
                                                 std::int64_t outputs, DType dtype,
                                                 const LoadRow& load_row, WeightArena& arena);

/// Panels of a few hundred outputs, in the layout that oneDNN prefers; each is multiplied by a
/// one-thread primitive, so that there is one pool of threads for everything. Throws
/// Error(kResource), and Error(kUnsupported) where oneDNN has no product of this dtype.
std::unique_ptr<const PackedWeights> pack_onednn(std::int64_t inputs, std::int64_t outputs,
                                                 DType dtype, const LoadRow& load_row,
                                                 WeightArena& arena);

}  // namespace sw
