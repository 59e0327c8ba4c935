#include "kernels/cuda/common/selection/walk_products.cuh"
#include "kernels/cuda/common/selection/walk_step.cuh"

namespace sw::cuda {
namespace {

/// Large tiles once they fill the GPU.
template <class T, int kTerms>
void launch_sized(const WalkArgs& args, cudaStream_t stream) {
  if (args.blocks > 1280) {
    launch_walk<PortableWalk<T, 4, 4, kTerms>>(args, stream);  // 256 x 128
  } else {
    launch_walk<PortableWalk<T, 2, 2, kTerms>>(args, stream);  // 64 x 128
  }
}

}  // namespace

void launch_walk_portable(const WalkArgs& args, Split split, bool single, cudaStream_t stream) {
  for_products(split, single,
               [&]<class T, int kTerms>() { launch_sized<T, kTerms>(args, stream); });
}

}  // namespace sw::cuda
