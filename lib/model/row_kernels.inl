// Body of the row kernels, included once by each row_kernels_<isa>.cpp, which names the result by
// SW_ROW_KERNELS. Plain loops for the compiler to vectorise. Everything is in an unnamed namespace
// and no inline function of a library is called, so that no code compiled for one instruction set
// can end up in another one's path.
#include "model/row_kernels.hpp"

namespace sw {
namespace {

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

void put(float x, float* out) { *out = x; }

/// bf16, ties to even, a NaN stays one.
void put(float x, std::uint16_t* out) {
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  *out = static_cast<std::uint16_t>(is_nan ? bits >> 16 | 0x40u : rounded);
}

/// body(out) with the storage of `type`.
template <class F>
void with_type(DType type, void* out, const F& body) {
  type == DType::kF32 ? body(static_cast<float*>(out)) : body(static_cast<std::uint16_t*>(out));
}

/// e^x; x beyond +-87 counts as +-87.
float exponential(float x) {
  const float t = x * 1.44269504f;
  const float clamped = t < -126.0f ? -126.0f : t > 126.0f ? 126.0f : t;
  const float shifted = clamped + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const float f = clamped - (shifted - 12582912.0f);
  // Taylor series of 2^f on [-1/2, 1/2]: ln(2)^k / k!.
  float y = 1.54035304e-4f;
  y = y * f + 1.33335581e-3f;
  y = y * f + 9.61812911e-3f;
  y = y * f + 5.55041087e-2f;
  y = y * f + 2.40226507e-1f;
  y = y * f + 6.93147181e-1f;
  y = y * f + 1.0f;
  return float_of(bits_of(y) + (bits_of(shifted) << 23));
}

void convert(const float* x, std::int64_t n, DType type, void* out) {
  with_type(type, out, [&](auto* y) {
    for (std::int64_t j = 0; j < n; ++j) put(x[j], y + j);
  });
}

void rms_norm(const float* x, const float* weight, std::int64_t n, double epsilon, DType type,
              void* out) {
  constexpr int kSums = 32;  // enough independent sums for the compiler to vectorise
  float partial[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int j = 0; j < kSums; ++j) partial[j] += x[i + j] * x[i + j];
  }
  double sum = 0.0;
  for (const float p : partial) sum += p;
  for (; i < n; ++i) sum += double{x[i]} * x[i];
  const auto scale =
      static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(n) + epsilon));
  with_type(type, out, [&](auto* y) {
    for (std::int64_t j = 0; j < n; ++j) put(x[j] * scale * weight[j], y + j);
  });
}

void rotate(const float* x, const float* cos, const float* sin, std::int64_t half, DType type,
            void* out) {
  with_type(type, out, [&](auto* y) {
    for (std::int64_t i = 0; i < half; ++i) put(x[i] * cos[i] - x[i + half] * sin[i], y + i);
    for (std::int64_t i = 0; i < half; ++i) {
      put(x[i + half] * cos[i] + x[i] * sin[i], y + half + i);
    }
  });
}

void swiglu(const float* gate, const float* up, std::int64_t n, DType type, void* out) {
  with_type(type, out, [&](auto* y) {
    for (std::int64_t j = 0; j < n; ++j) {
      put(gate[j] / (1.0f + exponential(-gate[j])) * up[j], y + j);
    }
  });
}

}  // namespace

extern const RowKernels SW_ROW_KERNELS;
const RowKernels SW_ROW_KERNELS{convert, rms_norm, rotate, swiglu};

}  // namespace sw
