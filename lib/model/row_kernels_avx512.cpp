#define SW_ROW_KERNELS avx512_row_kernels
#include "model/row_kernels.inl"
