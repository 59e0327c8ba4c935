#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "kernels/cpu/tile.hpp"

/// The inner step of decode attention: up to 64 consecutive keys against the one query of each head
/// of a KV group, so that keys and values are read once for all of them. Bound by memory, or nearly
/// so where many heads share a row: a tile asks for its values while it computes logits, and for
/// the keys to come while it adds values, so that memory and arithmetic are busy all the time.
/// Arithmetic as in tile.hpp.
namespace sw::cpu {

/// Rows of outputs are padded to a multiple of this.
inline constexpr int kDecodeStrip = 64;
/// Bytes of a packed query for each element of the padded row.
inline constexpr int kPackedQueryBytes = 8;
/// A head's running sum is that of so many, one for each lane.
inline constexpr int kDecodeSums = 16;
/// Bytes of DecodeTile::tail for each element of the padded row.
inline constexpr int kTailBytes = 64;

struct DecodeTile {
  const void* q;            ///< [heads] packed queries
  TokenRows k;              ///< keys, 1 .. kTileKeys of them, elements of the kernel
  TokenRows v;              ///< their values
  const void* next_k;       ///< the keys of the next tile, at the same stride
  std::int32_t next_count;  ///< 0: not known, or there are none
  std::int32_t heads;
  float scale;       ///< of the logits, times log2(e)
  float* s;          ///< scratch [heads][kTileKeys], on a cache line
  void* tail;        ///< scratch for copies of rows, on a cache line
  float* m;          ///< [heads] running base of the exponentials in base 2; starts at -infinity
  float* l;          ///< [heads][kDecodeSums] running sums of 2^(logit - m); start at 0
  float* o;          ///< [heads][padded dim] running output, not divided by l; starts at 0
  float* tile_sum;   ///< [heads] sum of this tile at base tile_base, or null
  float* tile_base;  ///< [heads]
};

struct DecodeKernel {
  DType element;  ///< of q, k and v: kF32 or kBf16
  /// One query [dim] in the layout that `run` reads.
  void (*pack_query)(const void* row, std::int32_t dim, void* q);
  void (*run)(const DecodeTile& tile);
  /// out [dim] := one head's running output, which `run` keeps in an order of its own.
  void (*unpack_output)(const float* o, std::int32_t dim, float* out);
};

extern const DecodeKernel kPortableDecode;
extern const DecodeKernel kAvx2Decode;
extern const DecodeKernel kAvx512Decode;
extern const DecodeKernel kAvx512Bf16Decode;

}  // namespace sw::cpu
