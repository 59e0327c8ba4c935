#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

/// The inner step of CPU attention, one implementation for each instruction set: a tile of keys
/// against up to 64 queries, with the online softmax state of those queries carried along. Queries
/// are the vector lanes: keys and values are read in their natural layout, row maxima and sums need
/// no shuffles, and the query side is transposed once for a whole row of key blocks.
namespace sw::cpu {

inline constexpr int kLanes = 64;     ///< row length of every [.][lanes] array below
inline constexpr int kTileKeys = 64;  ///< most keys of one tile

enum class Mask : std::int32_t {
  kNone,        ///< every key is visible
  kCausal,      ///< key <= query
  kTokenParts,  ///< key <= query, and (key > query - token_window or key < token_sink)
};

struct Tile {
  const float* qt;               ///< [dim][kLanes], times softmax scale and log2(e)
  const float* k;                ///< [keys][dim]
  const float* v;                ///< [keys][dim]; null: no output, masses only
  const std::int32_t* position;  ///< [kLanes] query positions, for masks
  std::int32_t dim;
  std::int32_t lanes;      ///< lanes in use, rounded up to `vector_lanes`
  std::int32_t keys;       ///< keys of this tile, 1 .. kTileKeys
  std::int32_t key_begin;  ///< position of the first key
  Mask mask;
  std::int32_t token_window;
  std::int32_t token_sink;
  float* s;         ///< scratch [kTileKeys][kLanes]
  float* m;         ///< [kLanes] running maximum of the logits in base 2; starts at -infinity
  float* l;         ///< [kLanes] running sum of 2^(logit - m); starts at 0
  float* ot;        ///< [dim][kLanes] running output, not divided by l; starts at 0
  float* tile_sum;  ///< [kLanes] sum of this tile at maximum tile_max, or null
  float* tile_max;  ///< [kLanes]
};

struct TileKernel {
  const char* isa;
  std::int32_t vector_lanes;
  void (*run)(const Tile& tile);
  /// sum[i] := sum[i] * 2^(max[i] - m[i]) / l[i], 0 where l[i] is 0; `count` a multiple of kLanes.
  void (*normalize)(float* sum, const float* max, const float* m, const float* l,
                    std::int64_t count);
};

/// Kernels that this CPU can run, the widest first; never empty.
std::vector<const TileKernel*> available_tile_kernels();
/// The kernel named `isa`, or the widest for "auto". Throws Error(kUsage) for an unknown name and
/// Error(kUnsupported) for one that this CPU cannot run.
const TileKernel& find_tile_kernel(std::string_view isa);

const TileKernel& portable_tile_kernel();
const TileKernel& avx2_tile_kernel();
const TileKernel& avx512_tile_kernel();

}  // namespace sw::cpu
