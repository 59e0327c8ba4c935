#include <cstdlib>

#include "kernels/cuda/common/selection/hopper_tile.cuh"
#include "kernels/cuda/common/selection/scores.cuh"

namespace sw::cuda {

void launch_scores_hopper(const ScoreArgs& args, int head_chunks, cudaStream_t stream) {
  using Tile = HopperTile<__half, 3>;
  using Single = HopperTile<__half, 1>;
  const char* terms = std::getenv("SW_TERMS");
  if (terms != nullptr && terms[0] == '1') {
    if (terms[1] == '1') return launch_scores<Single, Single>(args, head_chunks, stream);
    return launch_scores<Single, Tile>(args, head_chunks, stream);
  }
  launch_scores<Tile, Tile>(args, head_chunks, stream);
}

}  // namespace sw::cuda
