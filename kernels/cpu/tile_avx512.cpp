#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 64
#define SW_ROWS 6
#define SW_VECTORS 4
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel kAvx512Tile = kTile;

}  // namespace sw::cpu
