#include "model/linear.hpp"

#include <cassert>
#include <utility>

namespace sw {

Linear::Linear(std::int64_t inputs, std::int64_t outputs, DType dtype, const LoadRow& load_row,
               WeightArena& arena, std::vector<float> bias)
    : inputs_(inputs), outputs_(outputs), bias_(std::move(bias)), dtype_(dtype) {
  assert(bias_.empty() || static_cast<std::int64_t>(bias_.size()) == outputs);
  const PanelKernel* kernel = find_panel_kernel();
  weights_ = kernel ? pack_panels(*kernel, inputs, outputs, dtype, load_row, arena)
                    : pack_onednn(inputs, outputs, dtype, load_row, arena);
}

void Linear::keep_codes(const CodeFormat& format, const LoadCodes& load_codes, WeightArena& arena) {
  const CodedKernel* kernel = find_coded_kernel();
  if (kernel == nullptr || dtype_ != DType::kBf16) return;
  codes_ = std::make_unique<CodedWeights>(*kernel, inputs_, outputs_, format, load_codes, arena);
}

std::uint64_t Linear::bytes() const {
  return weights_->bytes() + (codes_ ? codes_->bytes() : 0) + bias_.size() * sizeof(float);
}

std::uint64_t Linear::lone_row_bytes() const {
  return (codes_ ? codes_->bytes() : weights_->bytes()) + bias_.size() * sizeof(float);
}

void Linear::multiply(const void* x, std::int64_t rows, bool add, float* y) const {
  if (rows == 1 && codes_) return codes_->multiply(x, bias_, add, y);
  weights_->multiply(x, rows, bias_, add, y);
}

}  // namespace sw
