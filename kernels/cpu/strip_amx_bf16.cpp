// Strips of bf16 queries with the matrix tiles of AMX-BF16: 32 x 32 logits or outputs at a time
// stay in four tiles, with AVX-512 for the softmax between the two products.
//
// A tile product takes 16 cycles, 32 x 32 logits of head dim 64 take 16 of them, and as many
// instructions of 512 bits a vector of logits as an exact exponential has would take longer: hence
// rounded weights. Products and softmax share the ports of the core, so that what is won by
// interleaving them is mostly the time of loads and stores of tiles. Steps of two panels leave room
// for all they touch in the first cache; keys and values are loaded with the hint that they are not
// needed there.
#include "kernels/cpu/strip.hpp"
#include "kernels/cpu/tile_bf16.inl"

namespace sw::cpu {
namespace {

constexpr int kSide = 16;  // rows of a tile, and columns of f32
static_assert(kStripSums == kSide);
constexpr int kTileBytes = 1024;  // tiles lie one after the other
constexpr int kRowBytes = 64;     // of a tile
constexpr int kTileFloats = kTileBytes / 4;
constexpr int kStepPanels = 2;    // of one pass of the softmax
constexpr int kChunkPanels = 32;  // that stay near while all strips visit them
constexpr int kLogitBytes = kStripRows * kStepPanels * kPanelKeys * 4;
constexpr int kWeightBytes = kLogitBytes / 2;
constexpr int kPartBytes = kStepPanels * kStripRows * 64;
static_assert(2 * kLogitBytes + 2 * kWeightBytes + kPartBytes <= kStripScratchBytes);

/// What the compiler must not move loads and stores of tiles across.
inline void order_memory() { asm volatile("" ::: "memory"); }

/// Eight tiles of 16 rows of 64 bytes. Done for every run, since other code of the thread may have
/// tiles of its own.
inline void configure() {
  struct alignas(64) {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  _tile_loadconfig(&config);
}

/// One strip against a few panels. Three steps are under way at a time: the products of the next
/// with its keys and of the last with its values fill the time between the rows of a softmax.
struct Step {
  std::int32_t strip = 0;
  std::int32_t panel = 0;
  std::int32_t panels = 0;  ///< 0: none
  bool masked = false;
  bool fresh = false;  ///< the first one of its strip
  // Rows whose base moved, and by which factor, until their outputs have followed.
  std::uint32_t moved = 0;
  float factor[kStripRows];
  float* s = nullptr;  ///< [2][2 panels][16][16] logits
  void* p = nullptr;   ///< [2][panels][16][32] weights
};

/// Bits of the keys that a panel has in its first 16 columns, and in the others: both halves give
/// every second four, which is how packing two vectors of logits to 16 bits merges them.
constexpr std::uint32_t kFirstHalf = 0x0f0f0f0f;
inline __mmask16 first_half(std::uint32_t keys) {
  return static_cast<__mmask16>(_pext_u32(keys, kFirstHalf));
}
inline __mmask16 second_half(std::uint32_t keys) {
  return static_cast<__mmask16>(_pext_u32(keys, ~kFirstHalf));
}

/// The keys of a panel that a query sees, one bit each.
inline std::uint32_t visible(const StripRun& run, const KeyPanel& panel, std::int32_t position) {
  const auto below = [](std::int32_t n) { return n <= 0 ? 0u : n >= 32 ? ~0u : (1u << n) - 1u; };
  std::uint32_t keys = panel.keys;
  if (panel.mask == Mask::kNone) return keys;
  keys &= below(position - panel.first_key + 1);
  if (panel.mask == Mask::kCausal) return keys;
  return keys & (~below(position - run.token_window + 1 - panel.first_key) |
                 below(run.token_sink - panel.first_key));
}

/// Multiplies the sum of a row, and later its outputs, by what a new base asks for.
inline void rescale_sum(const StripRun& run, Step& step, int row, __m512 factor) {
  float* l = run.l + (step.strip * kStripRows + row) * kSide;
  _mm512_store_ps(l, _mm512_mul_ps(_mm512_load_ps(l), factor));
  step.factor[row] = _mm512_cvtss_f32(factor);
  step.moved |= 1u << row;
}

/// Gives a row the base that its logits ask for.
__attribute__((noinline)) void move_base(const StripRun& run, Step& step, int row, __m512 top) {
  const int r = step.strip * kStripRows + row;
  const bool first = run.limit[r] == -kInfinity;
  const float base = _mm512_reduce_max_ps(top);
  const __m512 factor = first ? _mm512_setzero_ps() : exp2(_mm512_set1_ps(run.base[r] - base));
  run.base[r] = base;
  run.limit[r] = base + 8.0f;  // weights up to 2^8 are as exact
  rescale_sum(run, step, row, factor);
}

// Rounded weights 2^(x - base - 16) of logits x, in 8 bits and by integers of 16. With T =
// 256 (x - base + 111), rounded, the bits of bf16 are T / 2 but for the mantissa, which should be
// 2^f - 1 and not the fraction f = T mod 256 over 256: the difference is looked up by the upper six
// bits of f. To look up no negative number T is less by kTooLow. Over all f (and with T's own
// rounding) the relative error is at most 0.0059, its root mean square 0.0020; weights of bf16 that
// are rounded once have 0.0039 and 0.0017.
//
// T >= 2^15 says that a logit exceeds its base by 17, which is when the base has to move.
constexpr float kSteps = 256.0f;
constexpr float kTooLow = 24.0f;
alignas(64) constexpr std::uint8_t kMantissa[64] = {
    16, 15, 14, 13, 13, 11, 11, 10, 9,  8,  8,  7,  6,  6,  5,  5,  4,  4,  3,  3, 3, 2,
    2,  2,  2,  2,  2,  1,  1,  2,  2,  2,  2,  2,  2,  3,  3,  4,  4,  4,  5,  6, 6, 7,
    8,  8,  10, 10, 11, 12, 14, 14, 16, 17, 18, 20, 21, 22, 23, 22, 21, 19, 19, 17};

/// What is added to 256 x.
inline float offset_of(float base) { return kSteps * (111.0f - base) - kTooLow; }

/// Gives a row the base that its logits s ask for; of the panel u it sees the keys [u].
__attribute__((noinline)) void move_offset(const StripRun& run, Step& step, int row, const float* s,
                                           const std::uint32_t* keys) {
  __m512 top = _mm512_set1_ps(-kInfinity);
  for (int u = 0; u < step.panels; ++u, s += 2 * kTileFloats) {
    top = _mm512_mask_max_ps(top, first_half(keys[u]), top, _mm512_load_ps(s));
    top = _mm512_mask_max_ps(top, second_half(keys[u]), top, _mm512_load_ps(s + kTileFloats));
  }
  float& offset = run.base[step.strip * kStripRows + row];
  const float moved = offset_of(_mm512_reduce_max_ps(top) * run.scale);
  if (moved >= offset) return;
  rescale_sum(run, step, row, exp2(_mm512_set1_ps((moved - offset) / kSteps)));
  offset = moved;
}

/// The first bases of a strip: the largest logits of a step whose keys every row sees.
inline void first_offsets(const StripRun& run, const Step& step) {
  for (int i = 0; i < kStripRows; i += kSide) {
    const float* s = step.s + i * 2 * step.panels * kSide;
    __m512i x[kSide];
    for (int r = 0; r < kSide; ++r, s += kSide) {
      __m512 top = _mm512_load_ps(s);
      for (int u = 1; u < 2 * step.panels; ++u) {
        top = _mm512_max_ps(top, _mm512_load_ps(s + u * kTileFloats));
      }
      x[r] = _mm512_castps_si512(top);
    }
    transpose(x);
    __m512 top = _mm512_castsi512_ps(x[0]);
    for (int r = 1; r < kSide; ++r) top = _mm512_max_ps(top, _mm512_castsi512_ps(x[r]));
    _mm512_store_ps(
        run.base + step.strip * kStripRows + i,
        _mm512_fmadd_ps(top, _mm512_set1_ps(-kSteps * run.scale), _mm512_set1_ps(offset_of(0.0f))));
  }
}

/// The softmax of a step, some rows at a time.
template <int Panels, bool Masked, bool Rounded>
class Softmax {
 public:
  /// To be done in `slots` calls of `advance`.
  Softmax(const StripRun& run, Step& step, float* parts, int slots)
      : run_(run), step_(step), parts_(parts), pace_(slots > 0 ? (kStripRows << 16) / slots : 0) {}

  __attribute__((always_inline)) void advance() {
    progress_ += pace_;
    advance_to(progress_ >> 16);
  }
  void finish() { advance_to(kStripRows); }

 private:
  __attribute__((always_inline)) void advance_to(int end) {
    if constexpr (Panels > 0) {
      if constexpr (Rounded) {
        for (; row_ < end; row_ += 2) rounded_weights(row_);
      } else {
        for (; row_ < end; ++row_) weights(row_);
      }
    }
  }
  void weights(int row);
  void rounded_weights(int row);

  const StripRun& run_;
  Step& step_;
  float* parts_;
  int pace_;  ///< rows of a slot, times 2^16
  int progress_ = 0;
  int row_ = 0;
};

/// Softmax weights of one row.
template <int Panels, bool Masked, bool Rounded>
inline __attribute__((always_inline)) void Softmax<Panels, Masked, Rounded>::weights(int row) {
  const int r = step_.strip * kStripRows + row;
  const float* s = step_.s + row / kSide * 2 * Panels * kTileFloats + row % kSide * kSide;
  __m512 x[2 * Panels];
  for (int i = 0; i < 2 * Panels; ++i) x[i] = _mm512_load_ps(s + i * kTileFloats);
  __mmask16 seen[2 * Panels];
  __m512 top;
  if constexpr (Masked) {
    top = _mm512_set1_ps(-kInfinity);
    for (int u = 0; u < Panels; ++u) {
      const std::uint32_t keys = visible(run_, run_.panels[step_.panel + u], run_.position[r]);
      seen[2 * u] = first_half(keys);
      seen[2 * u + 1] = second_half(keys);
    }
    for (int i = 0; i < 2 * Panels; ++i) top = _mm512_mask_max_ps(top, seen[i], top, x[i]);
  } else {
    __m512 y[Panels];
    for (int u = 0; u < Panels; ++u) y[u] = _mm512_max_ps(x[2 * u], x[2 * u + 1]);
    for (int u = Panels; u > 1; u = (u + 1) / 2) {
      for (int v = 0; v < u / 2; ++v) y[v] = _mm512_max_ps(y[v], y[u - 1 - v]);
    }
    top = y[0];
  }
  const __m512 scale = _mm512_set1_ps(run_.scale);
  top = _mm512_mul_ps(top, scale);
  if (_mm512_cmp_ps_mask(top, _mm512_set1_ps(run_.limit[r]), _CMP_GT_OQ) != 0) [[unlikely]] {
    move_base(run_, step_, row, top);
  }
  const __m512 base = _mm512_set1_ps(run_.base[r]);
  for (int i = 0; i < 2 * Panels; ++i) {
    x[i] = exp2(_mm512_fmsub_ps(x[i], scale, base));
    if constexpr (Masked) x[i] = _mm512_maskz_mov_ps(seen[i], x[i]);
  }
  auto* p = static_cast<std::uint16_t*>(step_.p) + row / kSide * Panels * 2 * kTileFloats +
            row % kSide * kPanelKeys;
  __m512 sum = _mm512_load_ps(run_.l + r * kSide);
  for (int u = 0; u < Panels; ++u) {
    const auto halves = (__m512i)_mm512_cvtne2ps_pbh(x[2 * u + 1], x[2 * u]);
    _mm512_store_si512(p + u * 2 * kTileFloats,
                       _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), halves));
    const __m512 part = _mm512_add_ps(x[2 * u], x[2 * u + 1]);
    if (parts_ != nullptr) _mm512_store_ps(parts_ + (u * kStripRows + row) * kSide, part);
    sum = _mm512_add_ps(sum, part);
  }
  _mm512_store_ps(run_.l + r * kSide, sum);
}

/// Rounded weights of two rows.
template <int Panels, bool Masked, bool Rounded>
inline __attribute__((always_inline)) void Softmax<Panels, Masked, Rounded>::rounded_weights(
    int row) {
  const int r = step_.strip * kStripRows + row;
  const float* s = step_.s + row / kSide * 2 * Panels * kTileFloats + row % kSide * kSide;
  const __m512 scale = _mm512_set1_ps(kSteps * run_.scale);
  std::uint32_t keys[2][Panels];
  __m512i t[2][Panels];
  const auto fill = [&](int i) __attribute__((always_inline)) {
    const __m512 offset = _mm512_set1_ps(run_.base[r + i]);
    const auto integers = [&](int half) __attribute__((always_inline)) {
      const __m512 x = _mm512_load_ps(s + half * kTileFloats + i * kSide);
      return _mm512_cvtps_epi32(_mm512_fmadd_ps(x, scale, offset));
    };
    for (int u = 0; u < Panels; ++u) {
      t[i][u] = _mm512_packus_epi32(integers(2 * u), integers(2 * u + 1));
      if constexpr (Masked) t[i][u] = _mm512_maskz_mov_epi16(keys[i][u], t[i][u]);
    }
  };
  __m512i any = _mm512_setzero_si512();
  for (int i = 0; i < 2; ++i) {
    for (int u = 0; u < Panels; ++u) {
      keys[i][u] = Masked ? visible(run_, run_.panels[step_.panel + u], run_.position[r + i]) : ~0u;
    }
    fill(i);
    for (int u = 0; u < Panels; ++u) any = _mm512_or_si512(any, t[i][u]);
  }
  if (_mm512_movepi16_mask(any) != 0) [[unlikely]] {
    for (int i = 0; i < 2; ++i) {
      move_offset(run_, step_, row + i, s + i * kSide, keys[i]);
      fill(i);
    }
  }
  auto* p = static_cast<std::uint16_t*>(step_.p) + row / kSide * Panels * 2 * kTileFloats +
            row % kSide * kPanelKeys;
  const __m512i table = _mm512_load_si512(kMantissa);
  const __m512bh ones = as_bf16(_mm512_set1_epi16(0x3f80));
  for (int i = 0; i < 2; ++i) {
    __m512 sum = _mm512_load_ps(run_.l + (r + i) * kSide);
    for (int u = 0; u < Panels; ++u) {
      const __m512i mantissa =
          _mm512_maskz_permutexvar_epi8(0x5555555555555555u, _mm512_srli_epi16(t[i][u], 2), table);
      __m512i weights = _mm512_avg_epu16(t[i][u], mantissa);
      if constexpr (Masked) weights = _mm512_maskz_mov_epi16(keys[i][u], weights);
      _mm512_store_si512(p + u * 2 * kTileFloats + i * kPanelKeys, weights);
      sum = _mm512_dpbf16_ps(sum, as_bf16(weights), ones);
    }
    _mm512_store_ps(run_.l + (r + i) * kSide, sum);
  }
}

/// Logits of a step: its strip times the keys of its panels. A panel's are stored among the
/// products of the next one, which need not wait for them then.
template <class Beside>
inline void multiply_keys(const StripRun& run, const Step& step, Beside& beside) {
  const int depth = run.dim / kStripDimStep;
  const auto* q =
      static_cast<const std::byte*>(run.q) + std::int64_t{step.strip} * 2 * depth * kTileBytes;
  auto* upper = reinterpret_cast<std::byte*>(step.s);
  auto* lower = upper + 2 * step.panels * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int u = 0; u < step.panels; ++u) {
    const auto* k = static_cast<const std::byte*>(run.panels[step.panel + u].k);
    for (int j = 0; j < depth; ++j) {
      const bool store = u > 0 && j == 0;
      _tile_loadd(4, q + j * kTileBytes, kRowBytes);
      _tile_stream_loadd(6, k + j * kTileBytes, kRowBytes);
      if (store) {
        _tile_stored(0, upper, kRowBytes);
        _tile_zero(0);
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_stream_loadd(7, k + (depth + j) * kTileBytes, kRowBytes);
      if (store) {
        _tile_stored(1, upper + kTileBytes, kRowBytes);
        _tile_zero(1);
      }
      _tile_dpbf16ps(1, 4, 7);
      beside.advance();
      _tile_loadd(5, q + (depth + j) * kTileBytes, kRowBytes);
      if (store) {
        _tile_stored(2, lower, kRowBytes);
        _tile_zero(2);
      }
      _tile_dpbf16ps(2, 5, 6);
      if (store) {
        _tile_stored(3, lower + kTileBytes, kRowBytes);
        _tile_zero(3);
        upper += 2 * kTileBytes;
        lower += 2 * kTileBytes;
      }
      _tile_dpbf16ps(3, 5, 7);
      beside.advance();
    }
  }
  _tile_stored(0, upper, kRowBytes);
  _tile_stored(1, upper + kTileBytes, kRowBytes);
  _tile_stored(2, lower, kRowBytes);
  _tile_stored(3, lower + kTileBytes, kRowBytes);
}

/// Outputs of the rows of a step whose base moved.
__attribute__((noinline)) void rescale(const StripRun& run, Step& step) {
  const int cols = run.dim / kSide;
  float* o = run.o + std::int64_t{step.strip} * kStripRows * run.dim;
  for (; step.moved != 0; step.moved &= step.moved - 1) {
    const int row = __builtin_ctz(step.moved);
    const __m512 factor = _mm512_set1_ps(step.factor[row]);
    float* from = o + row / kSide * cols * kTileFloats + row % kSide * kSide;
    for (int c = 0; c < cols; ++c) {
      float* x = from + c * kTileFloats;
      _mm512_store_ps(x, _mm512_mul_ps(_mm512_load_ps(x), factor));
    }
  }
}

/// Adds the weights of a step, which stay in tiles, times its values to the output of its strip.
template <class Beside>
inline void multiply_values(const StripRun& run, const Step& step, Beside& beside) {
  const int cols = run.dim / kSide;
  const auto* p = static_cast<const std::byte*>(step.p);
  const bool two = step.panels == 2;
  const int row_bytes = step.panels * kTileBytes;
  _tile_loadd(4, p, kRowBytes);
  _tile_loadd(5, p + row_bytes, kRowBytes);
  if (two) {
    _tile_loadd(6, p + kTileBytes, kRowBytes);
    _tile_loadd(7, p + row_bytes + kTileBytes, kRowBytes);
  }
  const auto* v = static_cast<const std::byte*>(run.panels[step.panel].v);
  const auto* second = static_cast<const std::byte*>(run.panels[step.panel + (two ? 1 : 0)].v);
  auto* upper =
      reinterpret_cast<std::byte*>(run.o + std::int64_t{step.strip} * kStripRows * run.dim);
  auto* lower = upper + cols * kTileBytes;
  for (int c = 0; c < cols * kTileBytes; c += kTileBytes) {
    if (step.fresh) {
      _tile_zero(0);
      _tile_zero(1);
    } else {
      _tile_loadd(0, upper + c, kRowBytes);
      _tile_loadd(1, lower + c, kRowBytes);
    }
    _tile_stream_loadd(2, v + c, kRowBytes);
    _tile_dpbf16ps(0, 4, 2);
    _tile_dpbf16ps(1, 5, 2);
    beside.advance();
    if (two) {
      _tile_stream_loadd(3, second + c, kRowBytes);
      _tile_dpbf16ps(0, 6, 3);
      _tile_dpbf16ps(1, 7, 3);
      beside.advance();
    }
    _tile_stored(0, upper + c, kRowBytes);
    _tile_stored(1, lower + c, kRowBytes);
  }
}

/// Sums of 16 vectors, one a lane.
inline __m512 sums_of(const float* x) {
  __m512 y[16];
  for (int i = 0; i < 16; ++i) y[i] = _mm512_load_ps(x + i * kSide);
  for (int i = 0; i < 8; ++i) y[i] = fold<8>(y[i], y[i + 8]);
  for (int i = 0; i < 4; ++i) y[i] = fold<4>(y[i], y[i + 4]);
  for (int i = 0; i < 2; ++i) y[i] = fold<2>(y[i], y[i + 2]);
  return fold<1>(y[0], y[1]);
}

void store_panel_sums(const StripRun& run, const Step& step, const float* parts) {
  for (int u = 0; u < step.panels; ++u) {
    const std::int64_t first =
        (std::int64_t{step.panel + u} * run.strips + step.strip) * kStripRows;
    for (int i = 0; i < kStripRows; i += kSide) {
      _mm512_store_ps(run.panel_sum + first + i, sums_of(parts + (u * kStripRows + i) * kSide));
      _mm512_store_ps(run.panel_base + first + i,
                      _mm512_load_ps(run.base + step.strip * kStripRows + i));
    }
  }
}

/// The softmax of `now` beside the logits of `next` and, for values, the outputs of `last`.
template <int Panels, bool Masked, bool Rounded>
__attribute__((noinline)) void run_step(const StripRun& run, const Step& next, Step& now,
                                        const Step& last, float* parts) {
  Softmax<Panels, Masked, Rounded> softmax(
      run, now, parts, 2 * (next.panels + last.panels) * (run.dim / kStripDimStep));
  order_memory();
  if (Rounded && !Masked && Panels > 0 && now.fresh) first_offsets(run, now);
  if (next.panels > 0) multiply_keys(run, next, softmax);
  if (last.panels > 0) multiply_values(run, last, softmax);
  softmax.finish();
  order_memory();
}

/// Steps in an order that keeps the panels of a chunk near while every strip visits them.
class Steps {
 public:
  explicit Steps(const StripRun& run) : run_(run) {}

  void next(Step& step) {
    step.panels = 0;
    if (chunk_ >= run_.num_panels) return;
    const int end =
        chunk_ + kChunkPanels < run_.num_panels ? chunk_ + kChunkPanels : run_.num_panels;
    step.strip = strip_;
    step.panel = panel_;
    step.panels = end - panel_ < kStepPanels ? end - panel_ : kStepPanels;
    step.masked = false;
    step.moved = 0;
    step.fresh = run_.fresh && chunk_ == 0 && panel_ == 0;
    for (int u = 0; u < step.panels; ++u) {
      const KeyPanel& panel = run_.panels[panel_ + u];
      step.masked |= panel.mask != Mask::kNone || panel.keys != ~0u;
    }
    panel_ += step.panels;
    if (step.panels == 2 && step.masked && hidden(run_.panels[panel_ - 1])) step.panels = 1;
    if (panel_ < end) return;
    panel_ = chunk_;
    if (++strip_ < run_.strips) return;
    strip_ = 0;
    panel_ = chunk_ = end;
  }

 private:
  /// Whether no row of the strip sees a panel, whose masses nobody asks for.
  bool hidden(const KeyPanel& panel) const {
    if (panel.mask == Mask::kNone || run_.panel_sum != nullptr) return false;
    const std::int32_t* position = run_.position + strip_ * kStripRows;
    return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_loadu_si512(position),
                                                    _mm512_loadu_si512(position + kSide))) <
           panel.first_key;
  }

  const StripRun& run_;
  int chunk_ = 0;
  int strip_ = 0;
  int panel_ = 0;
};

template <bool Rounded>
void run_steps(const StripRun& run) {
  using RunStep = void (*)(const StripRun&, const Step&, Step&, const Step&, float*);
  static constexpr RunStep kRunStep[kStepPanels + 1][2] = {
      {run_step<0, false, Rounded>, run_step<0, false, Rounded>},
      {run_step<1, false, Rounded>, run_step<1, true, Rounded>},
      {run_step<2, false, Rounded>, run_step<2, true, Rounded>}};
  configure();
  auto* scratch = static_cast<std::byte*>(run.scratch);
  Step steps[3];
  float* parts = run.panel_sum == nullptr
                     ? nullptr
                     : reinterpret_cast<float*>(scratch + 2 * kLogitBytes + 2 * kWeightBytes);
  const bool values = run.num_panels > 0 && run.panels[0].v != nullptr;
  Steps order(run);
  for (int i = 0;; ++i) {
    Step& next = steps[i % 3];
    Step& now = steps[(i + 2) % 3];
    Step& last = steps[(i + 1) % 3];
    order.next(next);
    if (next.panels == 0 && now.panels == 0 && last.panels == 0) break;
    next.s = reinterpret_cast<float*>(scratch + i % 2 * kLogitBytes);
    next.p = scratch + 2 * kLogitBytes + i % 2 * kWeightBytes;
    if (!values) last.panels = 0;
    if (last.moved != 0 && last.panels > 0 && !last.fresh) rescale(run, last);
    kRunStep[now.panels][now.masked ? 1 : 0](run, next, now, last, parts);
    if (parts != nullptr && now.panels > 0) store_panel_sums(run, now, parts);
  }
  _tile_release();
}

void run_strips(const StripRun& run) { run.rounded ? run_steps<true>(run) : run_steps<false>(run); }

/// [2][dim / 32][16 pairs of elements][16 keys][2]
void pack_keys(const TokenRows& rows, void* k) {
  auto* to = static_cast<std::uint16_t*>(k);
  for (int half = 0; half < 2; ++half) {
    for (int j = 0; j < rows.dim; j += 32, to += 2 * kTileFloats) {
      __m512i x[16];
      for (int r = 0; r < 16; ++r) {
        const int i = r / 4 * 8 + half * 4 + r % 4;  // see kFirstHalf
        const __mmask32 inside = i < rows.count ? first32(rows.dim - j) : 0;
        x[r] = _mm512_maskz_loadu_epi16(inside, row_of(rows, i) + j);
      }
      transpose(x);
      for (int r = 0; r < 16; ++r) _mm512_storeu_si512(to + r * 32, x[r]);
    }
  }
}

/// [dim / 16][16 pairs of keys][16 elements][2]
void pack_values(const TokenRows& rows, void* v) {
  for (int j = 0; j < rows.dim; j += 32) {
    auto* to = static_cast<std::uint16_t*>(v) + j / kSide * 2 * kTileFloats;
    const __mmask32 inside = first32(rows.dim - j);
    for (int i = 0; i < kPanelKeys; i += 2, to += 32) {
      __m512i pairs[2];
      interleave(_mm512_maskz_loadu_epi16(i < rows.count ? inside : 0, row_of(rows, i) + j),
                 _mm512_maskz_loadu_epi16(i + 1 < rows.count ? inside : 0, row_of(rows, i + 1) + j),
                 pairs);
      _mm512_storeu_si512(to, pairs[0]);
      _mm512_storeu_si512(to + 2 * kTileFloats, pairs[1]);
    }
  }
}

std::uint16_t largest(const TokenRows& rows) {
  __m512i top = _mm512_setzero_si512();
  for (int i = 0; i < rows.count; ++i) {
    for (int j = 0; j < rows.dim; j += 32) {
      const __m512i x = _mm512_maskz_loadu_epi16(first32(rows.dim - j), row_of(rows, i) + j);
      top = _mm512_max_epu16(top, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
    }
  }
  const __m512i other = _mm512_max_epu32(_mm512_and_si512(top, _mm512_set1_epi32(0xffff)),
                                         _mm512_srli_epi32(top, 16));
  return static_cast<std::uint16_t>(_mm512_reduce_max_epu32(other));
}

/// A strip is [2][dim / 32][16 rows][32 elements].
void pack_strip_queries(const TokenRows& rows, std::int64_t row, void* q) {
  const int depth = (rows.dim + kStripDimStep - 1) / kStripDimStep;
  for (int i = 0; i < rows.count; ++i, ++row) {
    auto* to = static_cast<std::uint16_t*>(q) + row / kSide * depth * 2 * kTileFloats +
               row % kSide * kStripDimStep;
    for (int j = 0; j < rows.dim; j += 32, to += 2 * kTileFloats) {
      _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(first32(rows.dim - j), row_of(rows, i) + j));
    }
  }
}

void add_sums(const float* l, std::int64_t count, float* sum) {
  for (std::int64_t i = 0; i < count; i += kSide) {
    _mm512_store_ps(sum + i, sums_of(l + i * kStripSums));
  }
}

/// Outputs go past the caches where they fill whole lines: they are more than those hold, and read
/// in another pass.
void finish_strip(const float* o, const float* sum, std::int64_t row, std::int32_t count,
                  std::int32_t dim, float* out) {
  const int cols = (dim + kStripDimStep - 1) / kStripDimStep * (kStripDimStep / kSide);
  const bool lines = dim % kSide == 0 && reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
  for (int i = 0; i < count; ++i, ++row, out += dim) {
    const __mmask16 seen = sum[row] > 0.0f ? 0xffff : 0;
    const __m512 inverse = _mm512_set1_ps(1.0f / sum[row]);
    const float* from = o + row / kSide * cols * kTileFloats + row % kSide * kSide;
    for (int j = 0; j < dim; j += kSide, from += kTileFloats) {
      const __m512 y = _mm512_maskz_mul_ps(seen, _mm512_load_ps(from), inverse);
      if (lines) {
        _mm512_stream_ps(out + j, y);
      } else {
        _mm512_mask_storeu_ps(out + j, first16(dim - j), y);
      }
    }
  }
  _mm_sfence();
}

}  // namespace

const StripKernel kAmxBf16Strip = {run_strips, pack_keys, pack_values,  pack_strip_queries,
                                   largest,    add_sums,  finish_strip, normalize};

}  // namespace sw::cpu
