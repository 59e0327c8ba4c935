#include "common/backend_choice.hpp"

#include <vector>

#include "core/cpu_isa.hpp"
#include "core/error.hpp"
#include "core/text.hpp"
#include "kernels/cpu/backend.hpp"
#include "kernels/cpu/isa.hpp"
#include "kernels/reference/backend.hpp"
#ifdef SW_WITH_CUDA
#include "kernels/cuda/backend.hpp"
#include "kernels/cuda/common/device.hpp"
#endif

namespace sw {

std::unique_ptr<Backend> make_backend(const std::string& name, const std::string& cpu_isa) {
  if (cpu_isa != "auto") {
    cpu::find_isa(cpu_isa);  // refuses what this CPU does not run
    limit_cpu_isa(*parse_cpu_isa(cpu_isa));
  }
  if (name == "reference") return make_reference_backend();
  if (name == "cpu" || name == "auto") return make_cpu_backend(cpu_isa);
  if (name == "cuda") {
#ifdef SW_WITH_CUDA
    return make_cuda_backend();
#else
    throw Error(ErrorKind::kUnsupported, "this build has no CUDA kernels",
                "use --backend cpu, or build with the CUDA Toolkit");
#endif
  }
  throw Error(ErrorKind::kUsage, "unknown backend '" + name + "'",
              "known: auto, reference, cpu, cuda");
}

std::optional<GpuDescription> describe_gpu() {
#ifdef SW_WITH_CUDA
  std::string why;
  const std::vector<cuda::DeviceInfo> devices = cuda::list_devices(why);
  if (devices.empty()) return {};
  const cuda::DeviceInfo& gpu = devices.front();
  return GpuDescription{gpu.name + " (sm_" + std::to_string(gpu.major) + std::to_string(gpu.minor) +
                            ", " + std::to_string(gpu.multiprocessors) + " SMs, " +
                            format_bytes(static_cast<std::uint64_t>(gpu.memory_bytes)) + ")",
                        "CUDA " + std::to_string(gpu.driver_version / 1000) + "." +
                            std::to_string(gpu.driver_version % 1000 / 10),
                        std::to_string(gpu.clock_khz / 1000) + " MHz SM, " +
                            std::to_string(gpu.memory_clock_khz / 1000) + " MHz memory (largest)"};
#else
  return {};
#endif
}

}  // namespace sw
