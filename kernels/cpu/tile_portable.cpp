#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 16
#define SW_ROWS 4
#define SW_VECTORS 2
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel& portable_tile_kernel() {
  static constexpr TileKernel kKernel = {"portable", kWidth, run_tile, normalize_masses};
  return kKernel;
}

}  // namespace sw::cpu
