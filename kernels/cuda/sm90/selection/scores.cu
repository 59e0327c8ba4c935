#include "kernels/cuda/common/selection/scores.cuh"
#include "kernels/cuda/sm90/selection/hopper_tile.cuh"

namespace sw::cuda {

void launch_scores_hopper(const ScoreArgs& args, int head_chunks, cudaStream_t stream) {
  launch_scores<HopperTile<2>, HopperTile<1>>(args, head_chunks, stream);
}

}  // namespace sw::cuda
