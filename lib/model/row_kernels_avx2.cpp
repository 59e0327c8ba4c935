#define SW_ROW_KERNELS avx2_row_kernels
#include "model/row_kernels.inl"
