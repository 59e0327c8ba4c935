#pragma once

#include <memory>
#include <optional>
#include <string>

#include "attention/backend.hpp"

namespace sw {

/// The backend that --backend names: "reference", "cpu", "cuda", or "auto", which is "cpu": whether
/// a GPU computes all that an input asks for is known only when the input is read. `cpu_isa` is the
/// instruction set of the CPU backend, as in --cpu-isa. Throws Error(kUnsupported) for "cuda" in a
/// build without its kernels or on a machine without its GPU, and for an instruction set that this
/// CPU does not run.
std::unique_ptr<Backend> make_backend(const std::string& name, const std::string& cpu_isa);

/// The first GPU as text for reports: name, driver and clocks. Nothing without one, or without CUDA
/// in this build.
struct GpuDescription {
  std::string name;
  std::string driver;
  std::string clocks;
};
std::optional<GpuDescription> describe_gpu();

}  // namespace sw
