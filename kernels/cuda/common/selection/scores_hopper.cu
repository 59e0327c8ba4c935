#include "kernels/cuda/common/selection/hopper_tile.cuh"
#include "kernels/cuda/common/selection/scores.cuh"

namespace sw::cuda {

void launch_scores_hopper(const ScoreArgs& args, int head_chunks, cudaStream_t stream) {
  launch_scores<HopperTile<__half, 3>>(args, head_chunks, stream);
}

}  // namespace sw::cuda
