#pragma once

#include <cuda_runtime_api.h>

/// Every CUDA call and launch is checked at once, so that a fault carries the name of what failed.
namespace sw::cuda {

/// Throws Error(kResource) when `status` is not cudaSuccess. `what` names the call, e.g. "copy of
/// the keys to the GPU".
void check(cudaError_t status, const char* what);

/// To be called right after a launch: throws Error(kResource) that names the kernel when it could
/// not start. A fault inside a kernel shows at the next synchronisation (see `synchronize`).
void check_launch(const char* kernel);

/// Waits for the stream. A fault is reported with `what`, the work that was waited for.
void synchronize(cudaStream_t stream, const char* what);

}  // namespace sw::cuda
