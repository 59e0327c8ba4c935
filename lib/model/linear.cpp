#include "model/linear.hpp"

#include <cassert>
#include <utility>

namespace sw {

Linear::Linear(std::int64_t inputs, std::int64_t outputs, DType dtype, const LoadRow& load_row,
               WeightArena& arena, std::vector<float> bias)
    : inputs_(inputs), outputs_(outputs), bias_(std::move(bias)) {
  assert(bias_.empty() || static_cast<std::int64_t>(bias_.size()) == outputs);
  const PanelKernel* kernel = find_panel_kernel();
  weights_ = kernel ? pack_panels(*kernel, inputs, outputs, dtype, load_row, arena)
                    : pack_onednn(inputs, outputs, dtype, load_row, arena);
}

std::uint64_t Linear::bytes() const { return weights_->bytes() + bias_.size() * sizeof(float); }

}  // namespace sw
