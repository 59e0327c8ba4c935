#include "kernels/cuda/sm90/tensor_map.hpp"

#include <cudaTypedefs.h>

#include <string>

#include "core/error.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw::cuda {
namespace {

/// cuTensorMapEncodeTiled, found through the runtime so that nothing links the driver library.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result),
        "search for cuTensorMapEncodeTiled");
  if (result != cudaDriverEntryPointSuccess) {
    throw Error(ErrorKind::kResource, "the GPU driver has no cuTensorMapEncodeTiled",
                "update the driver to one for CUDA 12 or later");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

CUtensorMap make_tensor_map(const TensorBox& t) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = tensor_map_encoder();
  const std::array<cuuint32_t, 3> steps = {1, 1, 1};
  CUtensorMap map{};
  const CUresult status = encode(
      &map, t.type, 3, const_cast<void*>(t.data), t.size.data(), t.strides.data(), t.box.data(),
      steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
      t.box[0] * 2 == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
      t.size[0] >= 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorKind::kResource,
                "the GPU driver refused a tensor map of " + std::to_string(t.size[2]) + " x " +
                    std::to_string(t.size[1]) + " x " + std::to_string(t.size[0]) +
                    " elements (CUDA error " + std::to_string(static_cast<int>(status)) + ")");
  }
  return map;
}

}  // namespace sw::cuda
