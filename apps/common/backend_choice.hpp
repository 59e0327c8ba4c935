#pragma once

#include <memory>
#include <optional>
#include <string>

#include "attention/backend.hpp"

namespace sw {

/// The backend that --backend names: "reference", "cpu", "cuda", or "auto", which is "cpu": whether
/// a GPU computes all that an input asks for is known only when the input is read. Throws
/// Error(kUnsupported) for "cuda" in a build without its kernels, or on a machine without its GPU.
std::unique_ptr<Backend> make_backend(const std::string& name);

/// The first GPU as text for reports: name, driver and clocks. Nothing without one, or without CUDA
/// in this build.
struct GpuDescription {
  std::string name;
  std::string driver;
  std::string clocks;
};
std::optional<GpuDescription> describe_gpu();

}  // namespace sw
