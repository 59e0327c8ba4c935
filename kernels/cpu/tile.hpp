#pragma once

#include <cstdint>

#include "core/dtype.hpp"

/// The inner step of CPU prefill attention, one implementation for each instruction set: a tile of
/// keys against up to 64 queries, with the online softmax state of those queries carried along.
/// Queries are the vector lanes: row maxima and sums need no shuffles, keys are read in their
/// natural layout, and the query side is transposed once for a whole row of key blocks.
///
/// Arithmetic. With f32 elements every product and sum is f32. With bf16 elements the products
/// q_i k_i and p v are of bf16 values, accumulated in f32; the softmax weights p are rounded to
/// bf16 (relative error 2^-8) for the product with V only, while their sum, the log-sum-exp and
/// block masses take them as f32. Subnormal operands of bf16 products count as zero.
namespace sw::cpu {

inline constexpr int kLanes = 64;     ///< row length of every [.][lanes] array below
inline constexpr int kTileKeys = 64;  ///< most keys of one tile

enum class Mask : std::int32_t {
  kNone,        ///< every key is visible
  kCausal,      ///< key <= query
  kTokenParts,  ///< key <= query, and (key > query - token_window or key < token_sink)
};

/// Layouts for f32 elements, and in brackets for bf16, where two elements of a sum are neighbours
/// and an odd dim or number of keys is filled up with zeros.
struct Tile {
  const void* qt;                ///< [dim][kLanes] (bf16: [dim / 2][kLanes][2])
  const void* k;                 ///< [keys][dim], rounded up to even
  const void* v;                 ///< [keys][dim] (bf16: [keys / 2][dim][2]); null: masses only
  const std::int32_t* position;  ///< [kLanes] query positions, for masks
  float scale;                   ///< of the logits, times log2(e)
  std::int32_t dim;
  std::int32_t lanes;      ///< lanes in use, rounded up to `vector_lanes`
  std::int32_t keys;       ///< keys of this tile, 1 .. kTileKeys
  std::int32_t key_begin;  ///< position of the first key
  Mask mask;
  std::int32_t token_window;
  std::int32_t token_sink;
  float* s;         ///< scratch [kTileKeys][kLanes]
  float* m;         ///< [kLanes] running base of the exponentials in base 2; starts at -infinity
  float* l;         ///< [kLanes] running sum of 2^(logit - m); starts at 0
  float* ot;        ///< [dim][kLanes] running output, not divided by l; starts at 0
  float* tile_sum;  ///< [kLanes] sum of this tile at base tile_max, or null
  float* tile_max;  ///< [kLanes]
};

/// Rows [count][dim] of a tensor, `stride` elements apart.
struct TokenRows {
  const void* data;
  DType dtype;
  std::int64_t stride;
  std::int32_t count;
  std::int32_t dim;
};

struct TileKernel {
  DType element;  ///< of qt, k and v
  std::int32_t vector_lanes;
  std::int32_t dim_step;  ///< qt, ot and the buffers of k and v have room for a multiple of it
  void (*run)(const Tile& tile);
  /// Put up to kTileKeys rows (f32 elements: of any dtype; bf16 elements: of bf16) into the layout
  /// of Tile::k and Tile::v.
  void (*pack_keys)(const TokenRows& rows, void* k);
  void (*pack_values)(const TokenRows& rows, void* v);
  /// Puts rows into the lanes [lane, lane + rows.count) of one Tile::qt.
  void (*pack_queries)(const TokenRows& rows, std::int32_t lane, void* qt);
  /// out[row] [dim] := column lane + row of ot over l; 0 where l is 0.
  void (*finish)(const float* ot, const float* l, std::int32_t lane, std::int32_t count,
                 std::int32_t dim, float* out);
  /// sum[i] := sum[i] * 2^(max[i] - m[i]) / l[i], 0 where l[i] is 0; `count` a multiple of kLanes.
  void (*normalize)(float* sum, const float* max, const float* m, const float* l,
                    std::int64_t count);
};

extern const TileKernel kPortableTile;
extern const TileKernel kAvx2Tile;
extern const TileKernel kAvx512Tile;
extern const TileKernel kAvx512Bf16Tile;

}  // namespace sw::cpu
