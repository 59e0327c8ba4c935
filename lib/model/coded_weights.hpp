#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/coded_kernel.hpp"
#include "model/quant.hpp"
#include "model/weight_arena.hpp"

/// Quantised weights in the layout of coded_kernel.hpp, for the products of a lone row.
namespace sw {

/// Gives a row of the weights [outputs, inputs] as integers; called from several threads.
using LoadCodes = std::function<void(std::int64_t row, const CodedRow& out)>;

class CodedWeights {
 public:
  /// Weights whose rows need no more than `format`, taken row by row and kept in `arena`. `inputs`
  /// is a multiple of the group. Throws Error(kResource) when the memory cannot be had.
  CodedWeights(const CodedKernel& kernel, std::int64_t inputs, std::int64_t outputs,
               const CodeFormat& format, const LoadCodes& load_codes, WeightArena& arena);

  std::uint64_t bytes() const { return static_cast<std::uint64_t>(panels_ * panel_bytes_); }
  /// y [outputs] = x [inputs] W^T + bias (empty or [outputs]), or += with `add`; x is bf16.
  void multiply(const void* x, std::span<const float> bias, bool add, float* y) const;

 private:
  void fill(std::int64_t panel, const LoadCodes& load_codes);

  const CodedKernel& kernel_;
  CodedPanel layout_;
  std::int64_t inputs_;
  std::int64_t outputs_;
  std::int64_t panels_;
  std::int64_t panel_bytes_;
  std::byte* data_;
};

}  // namespace sw
