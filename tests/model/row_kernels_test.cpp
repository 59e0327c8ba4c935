#include "model/row_kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/rng.hpp"
#include "gtest/gtest.h"

namespace sw {
namespace {

constexpr std::int64_t kLengths[] = {1, 7, 16, 33, 64, 576};

std::vector<float> random_values(std::int64_t count, std::uint64_t seed, double size) {
  SplitMix64 rng(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) v = static_cast<float>(size * rng.normal());
  return values;
}

/// Calls body(kernels) for every instruction set of this CPU.
template <class F>
void each_kernel(const F& body) {
  for (const RowKernels* kernels : available_row_kernels()) body(*kernels);
}

/// run(type, out) writes `expected`: in f32 within `tolerance` of each value's size (and of
/// `floor`), in bf16 exactly what the f32 result rounds to.
template <class F>
void expect_row(const F& run, const std::vector<double>& expected, double tolerance, double floor) {
  std::vector<float> exact(expected.size());
  run(DType::kF32, exact.data());
  for (std::size_t j = 0; j < expected.size(); ++j) {
    ASSERT_NEAR(exact[j], expected[j], tolerance * (std::abs(expected[j]) + floor)) << j;
  }
  std::vector<Bf16> rounded(expected.size());
  run(DType::kBf16, rounded.data());
  for (std::size_t j = 0; j < expected.size(); ++j) {
    ASSERT_EQ(rounded[j].bits, to_bf16(exact[j]).bits) << j;
  }
}

TEST(RowKernels, ConvertRoundsAsTheScalarFunction) {
  std::vector<float> x = random_values(1000, 1, 10.0);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float special : {0.0f, -0.0f, infinity, -infinity, 1e-45f, -1e-40f, 3.4e38f}) {
    x.push_back(special);
  }
  for (std::uint32_t bits = 0x3f800000u; bits < 0x3f820000u; bits += 0x4000u) {  // ties
    float tie;
    std::memcpy(&tie, &bits, sizeof tie);
    x.push_back(tie);
  }
  x.push_back(std::numeric_limits<float>::quiet_NaN());
  each_kernel([&](const RowKernels& kernels) {
    std::vector<Bf16> y(x.size());
    kernels.convert(x.data(), std::ssize(x), DType::kBf16, y.data());
    for (std::size_t j = 0; j < x.size(); ++j) ASSERT_EQ(y[j].bits, to_bf16(x[j]).bits) << x[j];
    std::vector<float> same(x.size());
    kernels.convert(x.data(), std::ssize(x), DType::kF32, same.data());
    ASSERT_EQ(std::memcmp(same.data(), x.data(), x.size() * sizeof(float)), 0);
  });
}

TEST(RowKernels, RmsNormEqualsDouble) {
  for (const std::int64_t n : kLengths) {
    const std::vector<float> x = random_values(n, 2, 30.0);
    const std::vector<float> weight = random_values(n, 3, 1.0);
    double sum = 0.0;
    for (const float v : x) sum += double{v} * v;
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(n) + 1e-5);
    std::vector<double> expected;
    for (std::int64_t j = 0; j < n; ++j) expected.push_back(x[j] * scale * weight[j]);
    each_kernel([&](const RowKernels& kernels) {
      // n / 32 additions in each of 32 sums, and four roundings after them: below 2^-24 (18 + 4).
      expect_row([&](DType type,
                     void* out) { kernels.rms_norm(x.data(), weight.data(), n, 1e-5, type, out); },
                 expected, 22.0 * 0x1p-24, 0.0);
      std::vector<float> in_place = x;
      kernels.rms_norm(in_place.data(), weight.data(), n, 1e-5, DType::kF32, in_place.data());
      std::vector<float> apart(x.size());
      kernels.rms_norm(x.data(), weight.data(), n, 1e-5, DType::kF32, apart.data());
      EXPECT_EQ(in_place, apart);
    });
  }
}

TEST(RowKernels, RotateEqualsDouble) {
  for (const std::int64_t half : {4, 16, 20, 32, 64}) {
    const std::vector<float> x = random_values(2 * half, 4, 3.0);
    std::vector<float> cos, sin;
    std::vector<double> expected(x.size());
    for (std::int64_t i = 0; i < half; ++i) {
      cos.push_back(static_cast<float>(std::cos(0.7 * static_cast<double>(i))));
      sin.push_back(static_cast<float>(std::sin(0.7 * static_cast<double>(i))));
      expected[i] = double{x[i]} * cos[i] - double{x[i + half]} * sin[i];
      expected[i + half] = double{x[i + half]} * cos[i] + double{x[i]} * sin[i];
    }
    each_kernel([&](const RowKernels& kernels) {
      // Two products of at most |x| <= 15 each and their sum, each rounded once.
      expect_row(
          [&](DType type, void* out) {
            kernels.rotate(x.data(), cos.data(), sin.data(), half, type, out);
          },
          expected, 2.0 * 0x1p-24, 30.0);
    });
  }
}

TEST(RowKernels, SwigluEqualsDouble) {
  for (const double size : {0.01, 1.0, 20.0, 1000.0}) {
    const std::int64_t n = 1003;
    const std::vector<float> gate = random_values(n, 5, size);
    const std::vector<float> up = random_values(n, 6, 1.0);
    std::vector<double> expected;
    for (std::int64_t j = 0; j < n; ++j) {
      expected.push_back(gate[j] / (1.0 + std::exp(-double{gate[j]})) * up[j]);
    }
    each_kernel([&](const RowKernels& kernels) {
      // e^x rounds its argument times log2(e): 2^-24 |x|, for |x| up to 87. Beyond, silu counts
      // e^-x as 2^-126 at least: |gate up| 2^-126 < 6e-34 for these values.
      expect_row(
          [&](DType type, void* out) { kernels.swiglu(gate.data(), up.data(), n, type, out); },
          expected, 100.0 * 0x1p-24, 1e-28);
    });
  }
}

}  // namespace
}  // namespace sw
