#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {

/// An attribute of the current GPU. Throws Error(kResource) when the driver does not say.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "query of the current GPU");
  check(cudaDeviceGetAttribute(&value, attribute, device), "query of an attribute of the GPU");
  return value;
}

}  // namespace sw::cuda
