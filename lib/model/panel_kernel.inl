// Body of the panel kernels for CPUs without products of bf16, included once by each
// panel_kernel_<isa>.cpp, with SW_VECTOR_BYTES, SW_ROWS, SW_BF16_ROWS and SW_VECTORS (rows of x and
// vectors of outputs whose sums stay in registers) set. Weights of bf16 are widened to f32 as they
// are read, which makes their products exact. Everything is in an unnamed namespace and no inline
// function of a library is called, so that no code for one instruction set can end up in another
// one's path.
#include <cstdint>

#include "model/panel_kernel.hpp"

namespace sw {
namespace {

constexpr int kWidth = SW_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(SW_VECTOR_BYTES)));
typedef std::int32_t IntVec __attribute__((vector_size(SW_VECTOR_BYTES)));
typedef float MemVec __attribute__((vector_size(SW_VECTOR_BYTES), aligned(4), may_alias));
typedef std::int32_t MemIntVec __attribute__((vector_size(SW_VECTOR_BYTES), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const MemVec*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<MemVec*>(p) = x; }

/// x - 0 is x for every x, so that nothing is left to compute; x + 0 is not for -0.
inline Vec broadcast(float x) { return x - Vec{}; }

/// The two elements of pairs of bf16.
inline Vec first_of(IntVec pairs) { return reinterpret_cast<Vec>(pairs << 16); }
inline Vec second_of(IntVec pairs) {
  return reinterpret_cast<Vec>(pairs & static_cast<std::int32_t>(0xffff0000u));
}

struct F32Step {
  static constexpr int kRows = SW_ROWS;
  static constexpr int kInputs = 1;  // consumed by one step

  /// sum[r][v] += x[r] w[v] for `inputs` <= kInputs inputs.
  template <int Rows, int Vectors>
  static void add(const float* x, std::int64_t stride, const float* w, int,
                  Vec (&sum)[Rows][Vectors]) {
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = broadcast(x[r * stride]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * load(w + v * kWidth);
    }
  }
};

struct Bf16Step {
  static constexpr int kRows = SW_BF16_ROWS;  // a register is for the mask
  static constexpr int kInputs = 2;

  template <int Rows, int Vectors>
  static void add(const float* x, std::int64_t stride, const float* w, int inputs,
                  Vec (&sum)[Rows][Vectors]) {
    const auto* pairs = reinterpret_cast<const MemIntVec*>(w);
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = broadcast(x[r * stride]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * first_of(pairs[v]);
    }
    if (inputs == 1) return;
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = broadcast(x[r * stride + 1]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] += factor * second_of(pairs[v]);
    }
  }
};

/// Rows of y from `first` on, their outputs from `output` on.
template <class Step, int Rows, int Vectors>
void multiply_block(const PanelProduct& p, std::int64_t first, int output) {
  const auto* x = static_cast<const float*>(p.x) + first * p.inputs;
  const auto* w = static_cast<const float*>(p.weights) + output;
  Vec sum[Rows][Vectors] = {};
  const std::int64_t steps = p.inputs / Step::kInputs;
  for (std::int64_t i = 0; i < steps; ++i, x += Step::kInputs, w += kPanelOutputs) {
    Step::template add<Rows, Vectors>(x, p.inputs, w, Step::kInputs, sum);
  }
  if (p.inputs % Step::kInputs != 0) {
    Step::template add<Rows, Vectors>(x, p.inputs, w, 1, sum);
  }
  for (int v = 0; v < Vectors; ++v) {
    const int begin = output + v * kWidth;
    const int valid = p.outputs - begin < kWidth ? p.outputs - begin : kWidth;
    for (int r = 0; r < Rows; ++r) {
      float* y = p.y + (first + r) * p.y_stride + begin;
      if (valid == kWidth) {
        Vec value = p.bias != nullptr ? sum[r][v] + load(p.bias + begin) : sum[r][v];
        if (p.add) value += load(y);
        store(y, value);
        continue;
      }
      for (int i = 0; i < valid; ++i) {
        float value = p.bias != nullptr ? sum[r][v][i] + p.bias[begin + i] : sum[r][v][i];
        y[i] = p.add ? value + y[i] : value;
      }
    }
  }
}

template <class Step, int Rows>
void multiply_rows(const PanelProduct& p, std::int64_t first) {
  // Few rows read the panel from end to end.
  constexpr int kAll = kPanelOutputs / kWidth;
  constexpr int kVectors = Rows * kAll <= Step::kRows * SW_VECTORS ? kAll : SW_VECTORS;
  for (int output = 0; output < p.outputs; output += kVectors * kWidth) {
    multiply_block<Step, Rows, kVectors>(p, first, output);
  }
}

/// The last rows, fewer than Rows + 1, with the block of exactly that height.
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
  for (; first + Step::kRows <= p.rows; first += Step::kRows) {
    multiply_rows<Step, Step::kRows>(p, first);
  }
  multiply_rest<Step, Step::kRows - 1>(p, first);
}

}  // namespace
}  // namespace sw
