#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/dtype.hpp"

/// Matrix products with constant weights, through oneDNN. The weights are cut into panels of a few
/// hundred outputs, each stored once, in the layout that oneDNN prefers. A product is a
/// parallel_for over tiles of rows and panels, each computed by a one-thread oneDNN primitive: one
/// pool of threads for everything, and results that do not depend on the thread count.
namespace sw {

class Linear {
 public:
  /// Weights [outputs, inputs] in `dtype` (kF32 or kBf16), taken row by row from
  /// load_row(row, float* out), which is called from several threads; bias empty or [outputs].
  /// Throws Error(kResource) when the memory cannot be had.
  Linear(std::int64_t inputs, std::int64_t outputs, DType dtype,
         const std::function<void(std::int64_t, float*)>& load_row, std::vector<float> bias = {});
  ~Linear();
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;

  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  /// Bytes of stored weights and bias.
  std::uint64_t bytes() const;

  /// y = x W^T + bias: x [rows, inputs] of the weights' dtype, y [rows, outputs] float, both
  /// contiguous. Sums are accumulated in float. From two rows on, the result of a row does not
  /// depend on the other rows; a lone row may be added up in another order. Safe from several
  /// threads.
  void apply(const void* x, std::int64_t rows, float* y) const;

 private:
  struct Panels;

  std::int64_t inputs_;
  std::int64_t outputs_;
  DType dtype_;
  std::vector<float> bias_;
  std::unique_ptr<const Panels> panels_;
};

}  // namespace sw
