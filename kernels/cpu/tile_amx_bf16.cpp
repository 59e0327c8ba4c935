// Tiles of bf16 elements with the matrix tiles of AMX-BF16: logits and outputs in blocks of 32 x
// 32, the softmax between them with AVX-512.
#include "kernels/cpu/tile_bf16.inl"

namespace sw::cpu {
namespace {

constexpr int kSide = 16;                   // rows of a tile, and columns of f32
constexpr int kDepth = 32;                  // bf16 of a row of a left factor
constexpr int kRowBytes = kLanes * 4;       // of every [.][kLanes] array
constexpr int kValueBytes = kTileKeys * 2;  // of a row of v
constexpr int kSteps = kTileKeys / kDepth;  // of the sum over the keys of a tile

inline int whole_tiles(int count, int size) { return (count + size - 1) / size; }

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

/// c [16 Rows][16 Cols] (+)= a b over `steps` times 32 elements: a has rows of bf16, `a_bytes`
/// apart, b has rows of pairs and c of f32, both kRowBytes apart.
template <int Rows, int Cols, bool Accumulate>
inline void multiply(const std::byte* a, std::int64_t a_bytes, const std::byte* b, std::byte* c,
                     int steps) {
  std::byte* const below = c + kSide * kRowBytes;
  if constexpr (Accumulate) {
    _tile_loadd(0, c, kRowBytes);
    if constexpr (Cols > 1) _tile_loadd(1, c + 64, kRowBytes);
    if constexpr (Rows > 1) _tile_loadd(2, below, kRowBytes);
    if constexpr (Rows > 1 && Cols > 1) _tile_loadd(3, below + 64, kRowBytes);
  } else {
    _tile_zero(0);
    if constexpr (Cols > 1) _tile_zero(1);
    if constexpr (Rows > 1) _tile_zero(2);
    if constexpr (Rows > 1 && Cols > 1) _tile_zero(3);
  }
  for (int step = 0; step < steps; ++step, a += 2 * kDepth, b += kSide * kRowBytes) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Cols > 1) {
      _tile_loadd(7, b + 64, kRowBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (Rows > 1) {
      _tile_loadd(5, a + kSide * a_bytes, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (Rows > 1 && Cols > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kRowBytes);
  if constexpr (Cols > 1) _tile_stored(1, c + 64, kRowBytes);
  if constexpr (Rows > 1) _tile_stored(2, below, kRowBytes);
  if constexpr (Rows > 1 && Cols > 1) _tile_stored(3, below + 64, kRowBytes);
}

/// The same for any number of tiles.
template <bool Accumulate>
inline void multiply(const void* a, std::int64_t a_bytes, const void* b, void* c, int row_tiles,
                     int col_tiles, int steps) {
  order_memory();
  for (int i = 0; i < row_tiles; i += 2) {
    const std::byte* rows = static_cast<const std::byte*>(a) + i * kSide * a_bytes;
    for (int j = 0; j < col_tiles; j += 2) {
      const std::byte* cols = static_cast<const std::byte*>(b) + j * 64;
      std::byte* to = static_cast<std::byte*>(c) + i * kSide * kRowBytes + j * 64;
      const bool two_rows = i + 1 < row_tiles;
      const bool two_cols = j + 1 < col_tiles;
      if (two_rows && two_cols) {
        multiply<2, 2, Accumulate>(rows, a_bytes, cols, to, steps);
      } else if (two_rows) {
        multiply<2, 1, Accumulate>(rows, a_bytes, cols, to, steps);
      } else if (two_cols) {
        multiply<1, 2, Accumulate>(rows, a_bytes, cols, to, steps);
      } else {
        multiply<1, 1, Accumulate>(rows, a_bytes, cols, to, steps);
      }
    }
  }
  order_memory();
}

void run_tile(const Tile& t) {
  configure();
  const int depth_steps = whole_tiles(t.dim, kDepth);
  const int lane_tiles = whole_tiles(t.lanes, kSide);
  const int key_steps = whole_tiles(t.keys, kDepth);
  multiply<false>(t.k, 2 * kDepth * depth_steps, t.qt, t.s, whole_tiles(t.keys, kSide), lane_tiles,
                  depth_steps);
  for (int lane = 0; lane < t.lanes; lane += kSide) {
    if (t.mask != Mask::kNone) apply_mask(t, lane, t.keys);
    __m512 largest = _mm512_set1_ps(-kInfinity);
    for (int i = 0; i < t.keys; ++i) {
      largest = _mm512_max_ps(largest, _mm512_loadu_ps(t.s + i * kLanes + lane));
    }
    const __m512 factor = softmax(t, lane, t.keys, largest);
    for (int i = (t.keys + 1) / 2; i < key_steps * kSide; ++i) {
      _mm512_storeu_ps(t.s + i * kLanes + lane, _mm512_setzero_ps());
    }
    const __mmask16 rescaled = _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ);
    if (t.v == nullptr || rescaled == 0) continue;
    for (int j = 0; j < t.dim; ++j) {
      float* o = t.ot + j * kLanes + lane;
      _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
    }
  }
  if (t.v != nullptr) {
    multiply<true>(t.v, kValueBytes, t.s, t.ot, whole_tiles(t.dim, kSide), lane_tiles, key_steps);
  }
  _tile_release();
}

void pack_keys(const TokenRows& rows, void* k) {
  const int padded = whole_tiles(rows.dim, kDepth) * kDepth;
  auto* to = static_cast<std::uint16_t*>(k);
  for (int i = 0; i < whole_tiles(rows.count, kSide) * kSide; ++i) {
    for (int j = 0; j < padded; j += 32) {
      const __mmask32 inside = i < rows.count ? first32(rows.dim - j) : 0;
      _mm512_storeu_si512(to + i * padded + j,
                          _mm512_maskz_loadu_epi16(inside, row_of(rows, i) + j));
    }
  }
}

/// [dim][kTileKeys]
void pack_values(const TokenRows& rows, void* v) {
  auto* to = static_cast<std::uint16_t*>(v);
  for (int step = 0; step < kSteps; ++step) {
    for (int j = 0; j < rows.dim; j += 32) {
      const __mmask32 inside = first32(rows.dim - j);
      __m512i half[2][16];
      for (int r = 0; r < 16; ++r) {
        const int i = step * kDepth + 2 * r;
        const __mmask32 first = i < rows.count ? inside : 0;
        const __mmask32 second = i + 1 < rows.count ? inside : 0;
        __m512i pairs[2];
        interleave(_mm512_maskz_loadu_epi16(first, row_of(rows, i) + j),
                   _mm512_maskz_loadu_epi16(second, row_of(rows, i + 1) + j), pairs);
        half[0][r] = pairs[0];
        half[1][r] = pairs[1];
      }
      for (int h = 0; h < 2; ++h) {
        transpose(half[h]);
        for (int r = 0; r < 16; ++r) {
          _mm512_storeu_si512(to + (j + 16 * h + r) * kTileKeys + step * kDepth, half[h][r]);
        }
      }
    }
  }
}

}  // namespace

const TileKernel kAmxBf16Tile = {DType::kBf16, kSide,        kDepth, run_tile, pack_keys,
                                 pack_values,  pack_queries, finish, normalize};

}  // namespace sw::cpu
