#include "model/row_kernels.hpp"

namespace sw {

extern const RowKernels portable_row_kernels;
#ifdef SW_MODEL_X86
extern const RowKernels avx2_row_kernels;
extern const RowKernels avx512_row_kernels;
#endif

const RowKernels& row_kernels() {
#ifdef SW_MODEL_X86
  static const RowKernels& chosen =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
          ? avx512_row_kernels
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2_row_kernels
                                                                        : portable_row_kernels;
  return chosen;
#else
  return portable_row_kernels;
#endif
}

}  // namespace sw
