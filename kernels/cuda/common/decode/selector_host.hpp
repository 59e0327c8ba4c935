#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/device_attribute.hpp"
#include "kernels/cuda/common/error.hpp"

/// What the host sides of the decode selectors share.
namespace sw::cuda {

/// Throws Error(kUnsupported) that names what a selector has no kernel for.
[[noreturn]] inline void refuse_selection(const std::string& what) {
  throw Error(ErrorKind::kUnsupported, "decode selection on the GPU does not support " + what,
              "use --backend cpu");
}

/// Device memory for `count` elements, all bits 0.
template <class T>
DeviceBuffer<T> zeros(std::size_t count) {
  DeviceBuffer<T> buffer(count);
  check(cudaMemset(buffer.data(), 0, buffer.bytes()), "clearing of the decode state");
  return buffer;
}

}  // namespace sw::cuda
