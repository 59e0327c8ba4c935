// Compiled for AVX-512 without BF16.
#define SW_VECTOR_BYTES 64
#define SW_ROWS 12
#define SW_BF16_ROWS 12
#define SW_VECTORS 2
#include "model/panel_kernel.inl"

namespace sw {

extern const PanelKernel kAvx512PanelKernel;
const PanelKernel kAvx512PanelKernel = {"avx512", DType::kF32, multiply<Bf16Step>,
                                        multiply<F32Step>};

}  // namespace sw
