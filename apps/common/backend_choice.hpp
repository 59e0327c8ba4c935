#pragma once

#include <memory>
#include <string>

#include "attention/backend.hpp"

namespace sw {

/// The backend that --backend names: "reference", "cpu", or "auto", which is the best one for
/// attention in this build. Throws Error(kUnsupported) for "cuda" in a build without its kernels.
std::unique_ptr<Backend> make_backend(const std::string& name);

}  // namespace sw
