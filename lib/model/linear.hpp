#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/dtype.hpp"
#include "model/packed_weights.hpp"

/// Matrix products with constant weights, each stored once, packed for the fastest product of this
/// CPU (packed_weights.hpp). A product is a parallel_for over tiles of rows and panels of outputs,
/// and its results do not depend on the thread count.
namespace sw {

class Linear {
 public:
  /// Weights [outputs, inputs] in `dtype` (kF32 or kBf16), taken row by row and kept in `arena`,
  /// which has to outlive the Linear; bias empty or [outputs]. Throws Error(kResource) when the
  /// memory cannot be had.
  Linear(std::int64_t inputs, std::int64_t outputs, DType dtype, const LoadRow& load_row,
         WeightArena& arena, std::vector<float> bias = {});

  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  /// Bytes of stored weights and bias.
  std::uint64_t bytes() const;

  /// y = x W^T + bias: x [rows, inputs] of the weights' dtype, y [rows, outputs] float, both
  /// contiguous. Sums are accumulated in float. From two rows on, the result of a row does not
  /// depend on the other rows. Safe from several threads.
  void apply(const void* x, std::int64_t rows, float* y) const {
    weights_->multiply(x, rows, bias_, false, y);
  }
  /// y += x W^T + bias.
  void add(const void* x, std::int64_t rows, float* y) const {
    weights_->multiply(x, rows, bias_, true, y);
  }
  /// Whether a lone row is added up in the same order as several.
  bool lone_rows_equal_others() const { return weights_->lone_rows_equal_others(); }

 private:
  std::int64_t inputs_;
  std::int64_t outputs_;
  std::vector<float> bias_;
  std::unique_ptr<const PackedWeights> weights_;
};

}  // namespace sw
