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

/// c [16 Rows][16 lanes] (+)= a b over `steps` times 32 elements: a has rows of bf16, `a_bytes`
/// apart, b has rows of pairs and c of f32, both kRowBytes apart.
template <int Rows, bool Accumulate>
inline void multiply(const std::byte* a, std::int64_t a_bytes, const std::byte* b, std::byte* c,
                     int steps) {
  constexpr int kTileBytes = kSide * kRowBytes;
  if constexpr (Accumulate) {
    _tile_loadd(0, c, kRowBytes);
    if constexpr (Rows > 1) _tile_loadd(1, c + kTileBytes, kRowBytes);
    if constexpr (Rows > 2) _tile_loadd(2, c + 2 * kTileBytes, kRowBytes);
    if constexpr (Rows > 3) _tile_loadd(3, c + 3 * kTileBytes, kRowBytes);
  } else {
    _tile_zero(0);
    if constexpr (Rows > 1) _tile_zero(1);
    if constexpr (Rows > 2) _tile_zero(2);
    if constexpr (Rows > 3) _tile_zero(3);
  }
  for (int step = 0; step < steps; ++step, a += 2 * kDepth, b += kTileBytes) {
    _tile_loadd(7, b, kRowBytes);
    _tile_loadd(4, a, a_bytes);
    _tile_dpbf16ps(0, 4, 7);
    if constexpr (Rows > 1) {
      _tile_loadd(5, a + kSide * a_bytes, a_bytes);
      _tile_dpbf16ps(1, 5, 7);
    }
    if constexpr (Rows > 2) {
      _tile_loadd(6, a + 2 * kSide * a_bytes, a_bytes);
      _tile_dpbf16ps(2, 6, 7);
    }
    if constexpr (Rows > 3) {
      _tile_loadd(4, a + 3 * kSide * a_bytes, a_bytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, c, kRowBytes);
  if constexpr (Rows > 1) _tile_stored(1, c + kTileBytes, kRowBytes);
  if constexpr (Rows > 2) _tile_stored(2, c + 2 * kTileBytes, kRowBytes);
  if constexpr (Rows > 3) _tile_stored(3, c + 3 * kTileBytes, kRowBytes);
}

/// The same for any number of tiles, one below the other.
template <bool Accumulate>
inline void multiply(const void* a, std::int64_t a_bytes, const void* b, void* c, int row_tiles,
                     int steps) {
  order_memory();
  const auto* cols = static_cast<const std::byte*>(b);
  for (int i = 0; i < row_tiles; i += 4) {
    const std::byte* rows = static_cast<const std::byte*>(a) + i * kSide * a_bytes;
    std::byte* to = static_cast<std::byte*>(c) + i * kSide * kRowBytes;
    switch (row_tiles - i) {
      case 1:
        multiply<1, Accumulate>(rows, a_bytes, cols, to, steps);
        break;
      case 2:
        multiply<2, Accumulate>(rows, a_bytes, cols, to, steps);
        break;
      case 3:
        multiply<3, Accumulate>(rows, a_bytes, cols, to, steps);
        break;
      default:
        multiply<4, Accumulate>(rows, a_bytes, cols, to, steps);
    }
  }
  order_memory();
}

/// Logits of 16 lanes.
inline void logits(const Tile& t, int lane) {
  const int steps = whole_tiles(t.dim, kDepth);
  multiply<false>(t.k, 2 * kDepth * steps, static_cast<const float*>(t.qt) + lane, t.s + lane,
                  whole_tiles(t.keys, kSide), steps);
}

/// Softmax weights of 16 lanes, with zeros to the end of the last tile, and their output rescaled.
inline void weights(const Tile& t, int lane) {
  if (t.mask != Mask::kNone) apply_mask(t, lane, t.keys);
  __m512 largest = _mm512_set1_ps(-kInfinity);
  for (int i = 0; i < t.keys; ++i) {
    largest = _mm512_max_ps(largest, _mm512_loadu_ps(t.s + i * kLanes + lane));
  }
  const __m512 factor = softmax(t, lane, t.keys, largest);
  for (int i = (t.keys + 1) / 2; i < whole_tiles(t.keys, kDepth) * kSide; ++i) {
    _mm512_storeu_ps(t.s + i * kLanes + lane, _mm512_setzero_ps());
  }
  const __mmask16 rescaled = _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ);
  if (t.v == nullptr || rescaled == 0) return;
  for (int j = 0; j < t.dim; ++j) {
    float* o = t.ot + j * kLanes + lane;
    _mm512_storeu_ps(o, _mm512_mul_ps(_mm512_loadu_ps(o), factor));
  }
}

/// Adds the products of V with the weights of 16 lanes to their output.
inline void outputs(const Tile& t, int lane) {
  if (t.v == nullptr) return;
  multiply<true>(t.v, kValueBytes, t.s + lane, t.ot + lane, whole_tiles(t.dim, kSide),
                 whole_tiles(t.keys, kDepth));
}

void run_tile(const Tile& t) {
  configure();
  // The products of the next and of the last 16 lanes run beside the softmax of these.
  logits(t, 0);
  for (int lane = 0; lane < t.lanes; lane += kSide) {
    if (lane + kSide < t.lanes) logits(t, lane + kSide);
    if (lane > 0) outputs(t, lane - kSide);
    weights(t, lane);
  }
  outputs(t, t.lanes - kSide);
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
