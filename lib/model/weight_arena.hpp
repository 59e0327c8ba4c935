#pragma once

#include <cstddef>
#include <vector>

#include "core/tensor.hpp"

/// The memory of a model's weights: taken piece after piece from few large allocations, so that
/// huge pages can back matrices smaller than one.
namespace sw {

class WeightArena {
 public:
  /// `bytes` bytes, 64-byte aligned and not initialised, that live as long as the arena. Throws
  /// Error(kResource) when the memory cannot be had.
  std::byte* take(std::size_t bytes);

 private:
  std::vector<HeadsTensor> chunks_;
  std::size_t used_ = 0;  // of the last chunk
};

}  // namespace sw
