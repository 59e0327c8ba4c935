#include "kernels/cuda/common/selection/scores.cuh"

namespace sw::cuda {

void launch_scores_portable(const ScoreArgs& args, int head_chunks, cudaStream_t stream) {
  launch_scores<PortableTile<__half, 3>>(args, head_chunks, stream);
}

}  // namespace sw::cuda
