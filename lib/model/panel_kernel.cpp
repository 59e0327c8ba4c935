#include "model/panel_kernel.hpp"

#include "core/cpu_isa.hpp"

namespace sw {

#ifdef SW_MODEL_X86
extern const PanelKernel kAvx512Bf16PanelKernel;
extern const PanelKernel kAvx512PanelKernel;
extern const PanelKernel kAvx2PanelKernel;

namespace {

/// AMX-BF16 (CPUID leaf 7, EDX bit 22), which compilers before GCC 13 cannot be asked about.
bool has_amx_bf16() {
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (edx >> 22 & 1) != 0;
}

}  // namespace
#endif

std::vector<const PanelKernel*> available_panel_kernels() {
  std::vector<const PanelKernel*> kernels;
#ifdef SW_MODEL_X86
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) kernels.push_back(&kAvx512Bf16PanelKernel);
  if (avx512) kernels.push_back(&kAvx512PanelKernel);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&kAvx2PanelKernel);
  }
#endif
  return kernels;
}

const PanelKernel* find_panel_kernel() {
#ifdef SW_MODEL_X86
  const CpuIsa limit = cpu_isa_limit();
  if (limit == CpuIsa::kAmxBf16 && has_amx_bf16()) return nullptr;
  for (const PanelKernel* kernel : available_panel_kernels()) {
    if (*parse_cpu_isa(kernel->name) <= limit) return kernel;
  }
#endif
  return nullptr;
}

}  // namespace sw
