#include "model/panel_kernel.hpp"

namespace sw {

#ifdef SW_MODEL_X86
const PanelKernel& avx512_bf16_panel_kernel();

namespace {

/// AMX-BF16 (CPUID leaf 7, EDX bit 22), which compilers before GCC 13 cannot be asked about.
bool has_amx_bf16() {
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (edx >> 22 & 1) != 0;
}

}  // namespace
#endif

const PanelKernel* find_panel_kernel() {
#ifdef SW_MODEL_X86
  static const bool supported =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") && !has_amx_bf16();
  if (supported) return &avx512_bf16_panel_kernel();
#endif
  return nullptr;
}

}  // namespace sw
