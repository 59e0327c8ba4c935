#include "kernels/cuda/sm90/prefill_kernel.cuh"

namespace sw::cuda {

template PrefillInstance prefill_instance<Element::kBf16, 256>(int warpgroups, bool masked);
template PrefillInstance prefill_instance<Element::kF16, 256>(int warpgroups, bool masked);

}  // namespace sw::cuda
