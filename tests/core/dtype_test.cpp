#include "core/dtype.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/tensor.hpp"

namespace sw {
namespace {

// The value of a binary16 pattern from its definition (IEEE 754-2019, 3.4).
double half_value(std::uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(F16, EveryPatternConvertsExactly) {
  for (int bits = 0; bits < 65536; ++bits) {
    const F16 x{static_cast<std::uint16_t>(bits)};
    const double want = half_value(x.bits);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(to_float(x)));
      EXPECT_TRUE(std::isnan(to_float(to_f16(to_float(x)))));
      continue;
    }
    ASSERT_EQ(to_float(x), want) << bits;
    ASSERT_EQ(to_f16(to_float(x)).bits, x.bits);
  }
}

TEST(F16, RoundsToNearestEven) {
  for (int bits = 0; bits < 0x7bff; ++bits) {
    const double low = half_value(static_cast<std::uint16_t>(bits));
    const double high = half_value(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    const int even = (bits & 1) == 0 ? bits : bits + 1;
    ASSERT_EQ(to_f16(middle).bits, even);
    ASSERT_EQ(to_f16(std::nextafter(middle, 0.0f)).bits, bits);
    ASSERT_EQ(to_f16(std::nextafter(middle, 1e9f)).bits, bits + 1);
    ASSERT_EQ(to_f16(-middle).bits, even | 0x8000);
  }
  EXPECT_EQ(to_f16(65519.9f).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, 0x3f80);            // half way, even below
  EXPECT_EQ(to_bf16(1.0f + 0x1p-7f + 0x1p-8f).bits, 0x3f82);  // half way, even above
  EXPECT_EQ(to_bf16(std::nextafter(1.0f + 0x1p-8f, 2.0f)).bits, 0x3f81);
  EXPECT_EQ(to_bf16(-0.0f).bits, 0x8000);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::nanf("")))));
}

TEST(DType, NamesReadBack) {
  for (DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  }
  EXPECT_THROW(parse_dtype("f64"), Error);
}

TEST(HeadsTensor, ImpossibleSizesAreErrors) {
  EXPECT_THROW(HeadsTensor(DType::kF32, 1 << 30, 1 << 30, 1 << 30), Error);
  EXPECT_THROW(HeadsTensor(DType::kBf16, 1 << 20, 1 << 20, 1 << 15), Error);
}

TEST(HeadsView, SlicesShareTheStorage) {
  HeadsTensor x(DType::kF32, 2, 5, 3);
  for (int i = 0; i < 30; ++i) x.row<float>(0, 0)[i] = static_cast<float>(i);
  const HeadsView v = x.view().heads_slice(1, 2).tokens_slice(2, 5);
  EXPECT_EQ(v.heads, 1);
  EXPECT_EQ(v.tokens, 3);
  EXPECT_EQ(static_cast<const float*>(v.row(0, 1))[2], 15 + 9 + 2);
}

}  // namespace
}  // namespace sw
