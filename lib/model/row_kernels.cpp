#include "model/row_kernels.hpp"

#include "core/cpu_isa.hpp"

namespace sw {

extern const RowKernels portable_row_kernels;
#ifdef SW_MODEL_X86
extern const RowKernels avx2_row_kernels;
extern const RowKernels avx512_row_kernels;
#endif

std::vector<const RowKernels*> available_row_kernels() {
  std::vector<const RowKernels*> kernels;
#ifdef SW_MODEL_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    kernels.push_back(&avx512_row_kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&avx2_row_kernels);
  }
#endif
  kernels.push_back(&portable_row_kernels);
  return kernels;
}

const RowKernels& row_kernels() {
#ifdef SW_MODEL_X86
  static const std::vector<const RowKernels*> available = available_row_kernels();
  const CpuIsa limit = cpu_isa_limit();
  for (const RowKernels* kernels : available) {
    if (kernels == &avx512_row_kernels && limit < CpuIsa::kAvx512) continue;
    if (kernels == &avx2_row_kernels && limit < CpuIsa::kAvx2) continue;
    return *kernels;
  }
#endif
  return portable_row_kernels;
}

}  // namespace sw
