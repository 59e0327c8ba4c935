// Compiled for AVX-512 with BF16. No inline function of a library is called, so that no code for
// this instruction set can end up in another one's path.
#include <immintrin.h>

#include "model/panel_kernel.hpp"

namespace sw {
namespace {

constexpr int kVectors = kPanelOutputs / 16;
constexpr int kRows = 12;  // kRows * kVectors sums, the weights and one factor fill 27 registers

struct Bf16Step {
  using Element = std::uint16_t;
  static constexpr int kInputs = 2;  // consumed by one step
  static __m512i factor(const Element* x) {
    std::int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static __m512i last_factor(const Element* x) { return _mm512_set1_epi32(*x); }
  static __m512 multiply_add(__m512 sum, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
  }
};

struct F32Step {
  using Element = float;
  static constexpr int kInputs = 1;
  static __m512i factor(const Element* x) { return _mm512_castps_si512(_mm512_set1_ps(*x)); }
  static __m512i last_factor(const Element* x) { return factor(x); }
  static __m512 multiply_add(__m512 sum, __m512i x, __m512i w) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
  }
};

template <class Step, int Rows>
void multiply_rows(const PanelProduct& p, std::int64_t first) {
  const auto* x = static_cast<const typename Step::Element*>(p.x) + first * p.inputs;
  const auto* w = static_cast<const __m512i*>(p.weights);
  __m512 sum[Rows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  const auto step = [&](const auto& factor) {
    __m512i weights[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_load_si512(w + v);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const __m512i a = factor(x + r * p.inputs);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = Step::multiply_add(sum[r][v], a, weights[v]);
      }
    }
    x += Step::kInputs;
    w += kVectors;
  };
  const std::int64_t steps = p.inputs / Step::kInputs;
  for (std::int64_t i = 0; i < steps; ++i) step(Step::factor);
  if (p.inputs % Step::kInputs != 0) step(Step::last_factor);

  for (int v = 0; v < kVectors; ++v) {
    const int valid = p.outputs - 16 * v;
    if (valid <= 0) break;
    const auto mask = static_cast<__mmask16>(valid >= 16 ? 0xffff : (1 << valid) - 1);
    const __m512 bias = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + 16 * v) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      float* y = p.y + (first + r) * p.y_stride + 16 * v;
      __m512 value = _mm512_add_ps(sum[r][v], bias);
      if (p.add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), value);
      _mm512_mask_storeu_ps(y, mask, value);
    }
  }
}

/// The last `rows` < Rows + 1 rows, with the block of exactly that height.
template <class Step, int Rows>
void multiply_rest(const PanelProduct& p, std::int64_t first) {
  if constexpr (Rows > 0) {
    if (p.rows - first == Rows) return multiply_rows<Step, Rows>(p, first);
    multiply_rest<Step, Rows - 1>(p, first);
  }
}

template <class Step>
void multiply(const PanelProduct& p) {
  std::int64_t first = 0;
  for (; first + kRows <= p.rows; first += kRows) multiply_rows<Step, kRows>(p, first);
  multiply_rest<Step, kRows - 1>(p, first);
}

}  // namespace

extern const PanelKernel kAvx512Bf16PanelKernel;
const PanelKernel kAvx512Bf16PanelKernel = {"avx512_bf16", DType::kBf16, multiply<Bf16Step>,
                                            multiply<F32Step>};

}  // namespace sw
