#include "common/backend_choice.hpp"

#include "core/error.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/reference/backend.hpp"

namespace sw {

std::unique_ptr<Backend> make_backend(const std::string& name) {
  if (name == "reference") return make_reference_backend();
  if (name == "cpu" || name == "auto") return make_cpu_backend();
  if (name == "cuda") {
    throw Error(ErrorKind::kUnsupported, "this build has no CUDA attention kernels",
                "use --backend cpu");
  }
  throw Error(ErrorKind::kUsage, "unknown backend '" + name + "'",
              "known: auto, reference, cpu, cuda");
}

}  // namespace sw
