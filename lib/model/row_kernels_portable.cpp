#define SW_ROW_KERNELS portable_row_kernels
#include "model/row_kernels.inl"
