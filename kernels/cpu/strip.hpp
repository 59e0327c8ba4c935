#pragma once

#include <cstdint>

#include "kernels/cpu/tile.hpp"

/// The inner loops of prefill attention for CPUs with matrix tiles: strips of query rows against
/// panels of keys, with the online softmax state of the rows carried along. Rows of logits lie as
/// the next product takes them, so that softmax weights are only rounded; products with keys and
/// values read panels that were packed once for all rows. Elements are bf16 and the arithmetic is
/// that of tile.hpp.
///
/// Where nobody asks for log-sum-exps or block masses, weights may be rounded for their sums as for
/// the product with V (StripRun::rounded): each by a relative e of at most 0.0059 (root mean square
/// 0.0020), against 0.0039 (0.0017) of weights of bf16 that are rounded once. An output is then
/// wrong by |sum p e (v - out)| / |1 + sum p e| for exact weights p, hence by at most
/// 2 max|v| 0.0059 / (1 - 0.0059).
namespace sw::cpu {

inline constexpr int kStripRows = 32;
inline constexpr int kPanelKeys = 32;
inline constexpr int kStripDimStep = 32;  ///< dims are padded with zeros to a multiple of it
inline constexpr int kStripSums = 16;     ///< a row's sum is that of so many
/// Where StripRun::base starts, by StripRun::rounded.
inline constexpr float kStripBase[] = {0.0f, 0x1p30f};
/// Largest magnitude of logits in base 2 that rounded weights can be of.
inline constexpr float kMostRoundedLogit = 0x1p21f;
/// Bytes of StripRun::scratch.
inline constexpr int kStripScratchBytes = 28 << 10;

/// Keys of one panel and who sees them: query p sees key k = first_key + i if bit i of `keys` is
/// set and `mask` lets it.
struct KeyPanel {
  const void* k;  ///< as pack_keys leaves it
  const void* v;  ///< as pack_values leaves it; null: masses only
  std::int32_t first_key;
  std::uint32_t keys;
  Mask mask;
};

/// `panels` against `strips` strips of queries. Arrays start on a cache line.
struct StripRun {
  const void* q;                 ///< [strips], as pack_queries leaves them
  const std::int32_t* position;  ///< [strips][kStripRows] query positions, for masks
  const KeyPanel* panels;
  std::int32_t num_panels;
  std::int32_t strips;
  std::int32_t dim;  ///< padded
  float scale;       ///< of the logits, times log2(e)
  std::int32_t token_window;
  std::int32_t token_sink;
  bool rounded;  ///< see above; panel_sum is null, and base is not in units of logits
  float* base;   ///< [strips][kStripRows] of the exponentials in base 2; starts at kStripBase
  float* limit;  ///< [strips][kStripRows] logit that moves the base; starts at -infinity (exact)
  float* l;      ///< [strips][kStripRows][kStripSums] running sums of 2^(logit - base); start at 0
  float* o;      ///< [strips][kStripRows * dim] running outputs, not divided
  bool fresh;    ///< o has not been written yet
  float* panel_sum;   ///< [num_panels][strips][kStripRows] sums at base panel_base, or null
  float* panel_base;  ///< as panel_sum
  void* scratch;
};

struct StripKernel {
  void (*run)(const StripRun& run);
  /// Up to kPanelKeys rows of bf16, filled up with zeros, into a panel of kPanelKeys * dim
  /// elements.
  void (*pack_keys)(const TokenRows& rows, void* k);
  void (*pack_values)(const TokenRows& rows, void* v);
  /// Puts rows of bf16 into the rows from `row` on of strips that hold zeros.
  void (*pack_queries)(const TokenRows& rows, std::int64_t row, void* q);
  /// The largest magnitude of an element, as its bits in bf16.
  std::uint16_t (*largest)(const TokenRows& rows);
  /// sum[i] := sum of l[i] [kStripSums]; `count` a multiple of kStripRows.
  void (*add_sums)(const float* l, std::int64_t count, float* sum);
  /// out[i] [dim] := output of row `row` + i over its sum; 0 where that is 0.
  void (*finish)(const float* o, const float* sum, std::int64_t row, std::int32_t count,
                 std::int32_t dim, float* out);
  /// As in TileKernel.
  void (*normalize)(float* sum, const float* max, const float* m, const float* l,
                    std::int64_t count);
};

extern const StripKernel kAmxBf16Strip;

}  // namespace sw::cpu
