#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 64
#define SW_ROWS 6
#define SW_VECTORS 4
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel& avx512_tile_kernel() {
  static constexpr TileKernel kKernel = {"avx512", kWidth, run_tile, normalize_masses};
  return kKernel;
}

}  // namespace sw::cpu
