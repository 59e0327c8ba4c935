// Compiled for AVX2 and FMA.
#define SW_VECTOR_BYTES 32
#define SW_ROWS 6
#define SW_BF16_ROWS 5
#define SW_VECTORS 2
#include "model/panel_kernel.inl"

namespace sw {

extern const PanelKernel kAvx2PanelKernel;
const PanelKernel kAvx2PanelKernel = {"avx2", DType::kF32, multiply<Bf16Step>, multiply<F32Step>};

}  // namespace sw
