#pragma once

#include <memory>
#include <string_view>

#include "attention/backend.hpp"

/// Multi-threaded CPU backend: streams tiles of keys against 64 queries with an online softmax in
/// f32, so that memory grows with n, never with n^2. Results do not depend on the number of
/// threads.
namespace sw {

/// `isa` is "auto" (the widest that this CPU runs), "amx_bf16", "avx512_bf16", "avx512", "avx2" or
/// "portable". Throws Error(kUsage) for another name and Error(kUnsupported) for one that this CPU
/// does not run.
std::unique_ptr<Backend> make_cpu_backend(std::string_view isa = "auto");

}  // namespace sw
