#include "model/linear.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "gtest/gtest.h"

namespace sw {
namespace {

struct Case {
  std::int64_t inputs, outputs, rows;
};

std::vector<float> random_values(std::int64_t count, std::uint64_t seed) {
  SplitMix64 rng(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& v : values) v = static_cast<float>(rng.uniform() * 2 - 1);
  return values;
}

/// Runs one case in `dtype` and compares with sums in double over the values as stored.
void check(const Case& c, DType dtype, bool with_bias) {
  SCOPED_TRACE(std::to_string(c.inputs) + " -> " + std::to_string(c.outputs) + ", " +
               std::to_string(c.rows) + " rows, " + std::string(dtype_name(dtype)));
  std::vector<float> w = random_values(c.inputs * c.outputs, 1);
  std::vector<float> x = random_values(c.inputs * c.rows, 2);
  const std::vector<float> bias = random_values(with_bias ? c.outputs : 0, 3);
  std::vector<std::byte> stored(x.size() * dtype_size(dtype));
  convert_from_float(x.data(), dtype, static_cast<std::int64_t>(x.size()), stored.data());
  convert_to_float(stored.data(), dtype, static_cast<std::int64_t>(x.size()), x.data());
  if (dtype == DType::kBf16) {
    for (float& v : w) v = to_float(to_bf16(v));
  }
  const Linear linear(
      c.inputs, c.outputs, dtype,
      [&](std::int64_t row, float* out) { std::copy_n(w.data() + row * c.inputs, c.inputs, out); },
      bias);
  EXPECT_GE(linear.bytes(), w.size() * dtype_size(dtype) + bias.size() * sizeof(float));
  std::vector<float> y(static_cast<std::size_t>(c.rows * c.outputs), NAN);
  linear.apply(stored.data(), c.rows, y.data());
  for (std::int64_t r = 0; r < c.rows; ++r) {
    for (std::int64_t o = 0; o < c.outputs; ++o) {
      double sum = with_bias ? bias[o] : 0.0;
      for (std::int64_t i = 0; i < c.inputs; ++i) {
        sum += double{x[r * c.inputs + i]} * w[o * c.inputs + i];
      }
      ASSERT_NEAR(y[r * c.outputs + o], sum, 1e-5 * std::sqrt(c.inputs) + 1e-6)
          << "row " << r << ", output " << o;
    }
  }
  const int threads = num_threads();
  set_num_threads(threads == 1 ? 3 : 1);
  std::vector<float> again(y.size());
  linear.apply(stored.data(), c.rows, again.data());
  set_num_threads(threads);
  EXPECT_EQ(y, again) << "the result depends on the thread count";
}

/// The first rows of a product equal, bit for bit, the product of these rows alone; but a lone row
/// may be added up in another order.
void check_rows(DType dtype) {
  const std::int64_t inputs = 576, outputs = 700, most = 260;
  const std::vector<float> w = random_values(inputs * outputs, 1);
  const std::vector<float> x = random_values(inputs * most, 2);
  std::vector<std::byte> stored(x.size() * dtype_size(dtype));
  convert_from_float(x.data(), dtype, static_cast<std::int64_t>(x.size()), stored.data());
  const Linear linear(inputs, outputs, dtype, [&](std::int64_t row, float* out) {
    std::copy_n(w.data() + row * inputs, inputs, out);
  });
  std::vector<float> all(static_cast<std::size_t>(most * outputs));
  linear.apply(stored.data(), most, all.data());
  for (const std::int64_t rows : {2, 3, 5, 14, 15, 31, 64, 127, 128, 130, 255}) {
    std::vector<float> some(static_cast<std::size_t>(rows * outputs));
    linear.apply(stored.data(), rows, some.data());
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << rows << " rows";
  }
}

TEST(Linear, ARowDoesNotDependOnTheNumberOfRows) {
  check_rows(DType::kF32);
  try {
    check_rows(DType::kBf16);
  } catch (const Error& error) {
    ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
  }
}

const Case kCases[] = {{1, 1, 1},    {5, 3, 7},      {64, 48, 1},    {96, 257, 127},
                       {64, 700, 2}, {33, 250, 129}, {128, 256, 300}};

TEST(Linear, F32EqualsDoubleSums) {
  for (const Case& c : kCases) check(c, DType::kF32, c.rows % 2 == 1);
}

TEST(Linear, Bf16EqualsDoubleSums) {
  try {
    for (const Case& c : kCases) check(c, DType::kBf16, c.rows % 2 == 0);
  } catch (const Error& error) {
    ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
    GTEST_SKIP() << error.what();
  }
}

}  // namespace
}  // namespace sw
