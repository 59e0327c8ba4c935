#include <string>

#include "core/error.hpp"
#include "core/text.hpp"
#include "kernels/cpu/tile.hpp"

namespace sw::cpu {

std::vector<const TileKernel*> available_tile_kernels() {
  std::vector<const TileKernel*> kernels;
#ifdef SW_CPU_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    kernels.push_back(&avx512_tile_kernel());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&avx2_tile_kernel());
  }
#endif
  kernels.push_back(&portable_tile_kernel());
  return kernels;
}

const TileKernel& find_tile_kernel(std::string_view isa) {
  const std::vector<const TileKernel*> kernels = available_tile_kernels();
  if (isa == "auto") return *kernels.front();
  for (const TileKernel* kernel : kernels) {
    if (kernel->isa == isa) return *kernel;
  }
  const std::vector<std::string> names = {"avx512", "avx2", "portable"};
  for (const std::string& name : names) {
    if (name == isa) {
      throw Error(ErrorKind::kUnsupported, "this CPU does not run " + name, "use auto");
    }
  }
  throw Error(ErrorKind::kUsage, "unknown instruction set '" + std::string(isa) + "'",
              suggestion(isa, names));
}

}  // namespace sw::cpu
