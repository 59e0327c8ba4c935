#include "kernels/cpu/tile.hpp"

#define SW_VECTOR_BYTES 16
#define SW_ROWS 4
#define SW_VECTORS 2
#include "kernels/cpu/tile.inl"

namespace sw::cpu {

const TileKernel kPortableTile = kTile;

}  // namespace sw::cpu
