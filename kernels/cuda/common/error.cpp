#include "kernels/cuda/common/error.hpp"

#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "kernels/cuda/common/buffer.hpp"

namespace sw::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick must not be blamed on the next call
  const std::string reason =
      std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) {
    throw Error(ErrorKind::kResource, "out of GPU memory at the " + std::string(what),
                "use a shorter context or fewer heads, or --backend cpu");
  }
  throw Error(ErrorKind::kResource,
              "the GPU failed at the " + std::string(what) + " (" + reason + ")",
              "run with --backend cpu; compute-sanitizer finds the place of a fault");
}

void check_launch(const char* kernel) {
  check(cudaGetLastError(), (std::string("launch of ") + kernel).c_str());
}

void synchronize(cudaStream_t stream, const char* what) {
  check(cudaStreamSynchronize(stream), what);
}

void* allocate_device(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* pointer = nullptr;
  const cudaError_t status = cudaMalloc(&pointer, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error(ErrorKind::kResource,
                format_bytes(bytes) + " of GPU memory are not to be had: " + format_bytes(free) +
                    " of " + format_bytes(total) + " are free",
                "use a shorter context or fewer heads, or --backend cpu");
  }
  check(status, "allocation of GPU memory");
  return pointer;
}

void release_device(void* pointer) noexcept {
  if (pointer != nullptr) cudaFree(pointer);
}

}  // namespace sw::cuda
