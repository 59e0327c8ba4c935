#include "model/coded_kernel.hpp"

#include "core/cpu_isa.hpp"

namespace sw {

#ifdef SW_MODEL_X86
const CodedKernel& avx512_vnni_coded_kernel();
#endif

const CodedKernel* find_coded_kernel() {
#ifdef SW_MODEL_X86
  static const bool supported =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (supported && cpu_isa_limit() >= CpuIsa::kAvx512) return &avx512_vnni_coded_kernel();
#endif
  return nullptr;
}

}  // namespace sw
