#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/launch.hpp"

/// Device copies of host tensors, kept from call to call: an evaluation computes many selections of
/// the same problem.
namespace sw::cuda {

Element element_of(DType dtype);

/// A contiguous device copy [heads, tokens, dim] of the last host tensor that was asked for.
class DeviceTensor {
 public:
  /// The device copy of `host`; copies only when the copy that is there differs in place, shape,
  /// type or content. Contents are compared by a 64-bit hash of every byte: one pass over host
  /// memory. It is no cryptographic one: it finds changes that were not made to fool it. Throws Error(kResource).
  HeadsPointer upload(const HeadsView& host);

 private:
  HeadsView copied_;  ///< never read from: the owner may be gone
  std::uint64_t hash_ = 0;
  DeviceBuffer<std::byte> data_;
};

}  // namespace sw::cuda
