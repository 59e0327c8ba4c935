#pragma once

#include <memory>
#include <optional>
#include <string>

#include "attention/backend.hpp"

namespace sw {

/// The backend that --backend names: "reference", "cpu", or "auto", which is the best one for
/// attention in this build. `cpu_isa` is the instruction set of the CPU backend, as in --cpu-isa.
/// Throws Error(kUnsupported) for "cuda" in a build without its kernels, and for an instruction set
/// that this CPU does not run.
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
