#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 32
#define SW_ROWS 6
#define SW_VECTORS 2
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel kAvx2Tile = kTile;

}  // namespace sw::cpu
