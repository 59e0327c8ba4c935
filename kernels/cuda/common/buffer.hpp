#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/common/error.hpp"

/// Owner of device memory.
namespace sw::cuda {

/// Throws Error(kResource) with the bytes wanted and the bytes free when the memory cannot be had.
void* allocate_device(std::size_t bytes);
void release_device(void* pointer) noexcept;

/// `count` elements of T on the current device, uninitialised. Moves, does not copy.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t count)
      : data_(static_cast<T*>(allocate_device(count * sizeof(T)))), count_(count) {}
  explicit DeviceBuffer(std::span<const T> host) : DeviceBuffer(host.size()) { upload(host); }
  ~DeviceBuffer() { release_device(data_); }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

  /// Grows to at least `count` elements; the contents are lost when it does.
  void reserve(std::size_t count) {
    if (count > count_) {
      *this = DeviceBuffer();
      *this = DeviceBuffer(count);
    }
  }
  /// Copies host.size() elements from the host; blocks.
  void upload(std::span<const T> host) {
    check(cudaMemcpy(data_, host.data(), host.size_bytes(), cudaMemcpyHostToDevice),
          "copy to the GPU");
  }
  /// Copies the first `count` elements to the host; blocks.
  std::vector<T> download(std::size_t count) const {
    std::vector<T> host(count);
    check(cudaMemcpy(host.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost),
          "copy from the GPU");
    return host;
  }
  std::vector<T> download() const { return download(count_); }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace sw::cuda
