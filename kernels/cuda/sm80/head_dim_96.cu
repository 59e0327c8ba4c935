#include "kernels/cuda/sm80/kernels.cuh"

template struct sw::cuda::sm80::Kernels<96>;
