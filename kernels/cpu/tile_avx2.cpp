#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 32
#define SW_ROWS 6
#define SW_VECTORS 2
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel& avx2_tile_kernel() {
  static constexpr TileKernel kKernel = {"avx2", kWidth, run_tile, normalize_masses};
  return kKernel;
}

}  // namespace sw::cpu
