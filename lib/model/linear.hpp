#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/dtype.hpp"
#include "model/coded_weights.hpp"
#include "model/packed_weights.hpp"

/// Matrix products with constant weights, each stored once, packed for the fastest product of this
/// CPU (packed_weights.hpp), and quantised weights once more as they are for lone rows
/// (coded_weights.hpp), which are bound by reading them. A product is a parallel_for over tiles of
/// rows and panels of outputs, and its results do not depend on the thread count.
namespace sw {

class Linear {
 public:
  /// Weights [outputs, inputs] in `dtype` (kF32 or kBf16), taken row by row and kept in `arena`,
  /// which has to outlive the Linear; bias empty or [outputs]. Throws Error(kResource) when the
  /// memory cannot be had.
  Linear(std::int64_t inputs, std::int64_t outputs, DType dtype, const LoadRow& load_row,
         WeightArena& arena, std::vector<float> bias = {});

  /// Keeps the same weights as integers too, for lone rows of bf16: rows that need no more than
  /// `format`. Does nothing where the weights are f32 or this CPU has no kernel for it.
  void keep_codes(const CodeFormat& format, const LoadCodes& load_codes, WeightArena& arena);

  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  /// Bytes of stored weights and bias.
  std::uint64_t bytes() const;
  /// Those that the product of a lone row reads.
  std::uint64_t lone_row_bytes() const;

  /// y = x W^T + bias: x [rows, inputs] of the weights' dtype, y [rows, outputs] float, both
  /// contiguous. Sums are accumulated in float. From two rows on, the result of a row does not
  /// depend on the other rows. Safe from several threads.
  void apply(const void* x, std::int64_t rows, float* y) const { multiply(x, rows, false, y); }
  /// y += x W^T + bias.
  void add(const void* x, std::int64_t rows, float* y) const { multiply(x, rows, true, y); }
  /// Whether a lone row is added up in the same order as several.
  bool has_codes() const { return codes_ != nullptr; }
  bool lone_rows_equal_others() const { return !codes_ && weights_->lone_rows_equal_others(); }

 private:
  void multiply(const void* x, std::int64_t rows, bool add, float* y) const;

  std::int64_t inputs_;
  std::int64_t outputs_;
  std::vector<float> bias_;
  DType dtype_;
  std::unique_ptr<const PackedWeights> weights_;
  std::unique_ptr<const CodedWeights> codes_;
};

}  // namespace sw
