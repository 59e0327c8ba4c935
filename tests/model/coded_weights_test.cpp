#include "model/coded_weights.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "gtest/gtest.h"
#include "model/linear.hpp"

// Products with quantised weights as they are, against double sums over the values of load_row().

namespace sw {
namespace {

constexpr QuantType kTypes[] = {QuantType::kQ40, QuantType::kQ41, QuantType::kQ50, QuantType::kQ51,
                                QuantType::kQ80, QuantType::kQ4K, QuantType::kQ5K, QuantType::kQ6K};

/// Random blocks, with scales and minima of sensible sizes.
struct RandomMatrix {
  std::vector<std::byte> bytes;
  StoredMatrix stored;

  RandomMatrix(QuantType type, std::int64_t rows, std::int64_t elements, SplitMix64& rng) {
    const QuantFormat& format = quant_format(type);
    const auto size = static_cast<std::size_t>(format.block_bytes);
    bytes.resize(static_cast<std::size_t>(rows * elements / format.block_elements) * size);
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next() >> 56);
    const bool two = type != QuantType::kQ40 && type != QuantType::kQ50 &&
                     type != QuantType::kQ80 && type != QuantType::kQ6K;
    for (std::size_t block = 0; block < bytes.size(); block += size) {
      const std::size_t at = block + (type == QuantType::kQ6K ? 208 : 0);
      for (std::size_t field = 0; field < (two ? 2u : 1u); ++field) {
        // 2^-7 to 2^-4, of either sign: half precision, high byte second.
        const auto high = 0x20u + rng.below(12) + (rng.below(2) != 0 ? 0x80u : 0u);
        bytes[at + 2 * field + 1] = static_cast<std::byte>(high);
      }
    }
    stored = {type, rows, elements, bytes};
  }
};

/// bf16, with a group of zeros, one of large and one of tiny values.
std::vector<Bf16> random_vector(std::int64_t count, SplitMix64& rng) {
  std::vector<Bf16> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double size = i / 32 == 1 ? 0.0 : i / 32 == 2 ? 1e4 : i / 32 == 3 ? 1e-39 : 1.0;
    x[i] = to_bf16(static_cast<float>(size * rng.normal()));
  }
  return x;
}

/// `format` may ask for more than the rows need.
void check(const std::vector<RandomMatrix>& parts, const CodeFormat& format, SplitMix64& rng) {
  const std::int64_t inputs = parts.front().stored.row_elements;
  std::vector<std::pair<const StoredMatrix*, std::int64_t>> rows;
  for (const RandomMatrix& part : parts) {
    for (std::int64_t r = 0; r < part.stored.rows; ++r) rows.emplace_back(&part.stored, r);
  }
  const std::int64_t outputs = std::ssize(rows);
  WeightArena arena;
  const CodedWeights weights(
      *find_coded_kernel(), inputs, outputs, format,
      [&](std::int64_t row, const CodedRow& out) {
        const auto& [matrix, index] = rows[static_cast<std::size_t>(row)];
        matrix->load_codes(index, out);
      },
      arena);
  const std::vector<Bf16> x = random_vector(inputs, rng);
  std::vector<float> bias(static_cast<std::size_t>(outputs));
  for (float& b : bias) b = static_cast<float>(rng.normal());
  for (const bool add : {false, true}) {
    std::vector<float> y(static_cast<std::size_t>(outputs), add ? 2.0f : std::nanf(""));
    weights.multiply(x.data(), bias, add, y.data());
    std::vector<float> w(static_cast<std::size_t>(inputs));
    std::vector<std::int8_t> code(w.size());
    std::vector<float> scale(w.size() / kCodeGroup), minimum(scale.size());
    for (std::int64_t o = 0; o < outputs; ++o) {
      const auto& [matrix, index] = rows[static_cast<std::size_t>(o)];
      matrix->load_row(index, w.data());
      matrix->load_codes(index, {code.data(), scale.data(), minimum.data()});
      double want = double{bias[static_cast<std::size_t>(o)]} + (add ? 2.0 : 0.0);
      double terms = std::fabs(want);
      double rounding = 0.0;
      for (std::int64_t first = 0; first < inputs; first += 32) {
        double largest = 0.0;
        double codes = 0.0;
        for (std::int64_t i = first; i < first + 32; ++i) {
          const double value = to_float(x[i]);
          const double product = double{scale[i / kCodeGroup]} * code[i];
          ASSERT_EQ(w[i],
                    scale[i / kCodeGroup] * static_cast<float>(code[i]) + minimum[i / kCodeGroup]);
          want += value * double{w[i]};
          terms += std::fabs(value) * (std::fabs(product) + std::fabs(minimum[i / kCodeGroup]));
          largest = std::max(largest, std::fabs(value));
          codes += std::fabs(product);
        }
        rounding += largest / 65534.0 * codes;  // half a step of 16 bits
      }
      // Groups are added up in float: two roundings for each, and some for its factors.
      const double tolerance =
          rounding + static_cast<double>(2 * inputs / format.group + 8) * 0x1p-24 * terms;
      ASSERT_NEAR(y[static_cast<std::size_t>(o)], want, tolerance) << "output " << o;
    }
  }
}

class CodedWeightsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!find_coded_kernel()) GTEST_SKIP() << "no kernel for quantised weights for this CPU";
  }
  SplitMix64 rng_{7};
};

TEST_F(CodedWeightsTest, EqualDoubleSumsOverTheStoredValues) {
  for (const QuantType type : kTypes) {
    SCOPED_TRACE(quant_format(type).name);
    for (const std::int64_t outputs : {1, 16, 33, 70}) {
      check({RandomMatrix(type, outputs, 512, rng_)}, *code_format(type), rng_);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(CodedWeightsTest, MatricesOfSeveralTypesShareALayout) {
  std::vector<RandomMatrix> parts;
  CodeFormat all{0, 0, 32, false};
  for (const QuantType type : kTypes) {
    parts.emplace_back(type, 5, 256, rng_);
    all = all | *code_format(type);
    check(parts, all, rng_);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CodedWeightsTest, DoNotDependOnTheNumberOfThreads) {
  const RandomMatrix w(QuantType::kQ50, 3000, 896, rng_);
  WeightArena arena;
  const CodedWeights weights(
      *find_coded_kernel(), 896, 3000, *code_format(QuantType::kQ50),
      [&](std::int64_t row, const CodedRow& out) { w.stored.load_codes(row, out); }, arena);
  const std::vector<Bf16> x = random_vector(896, rng_);
  std::vector<float> one(3000), several(3000);
  const int threads = num_threads();
  set_num_threads(1);
  weights.multiply(x.data(), {}, false, one.data());
  set_num_threads(3);
  weights.multiply(x.data(), {}, false, several.data());
  set_num_threads(threads);
  EXPECT_EQ(one, several);
}

/// A lone row takes the integers, several rows the rounded weights.
TEST_F(CodedWeightsTest, LinearUsesThemForLoneRows) {
  const RandomMatrix w(QuantType::kQ41, 40, 64, rng_);
  WeightArena arena;
  Linear linear(
      64, 40, DType::kBf16, [&](std::int64_t row, float* out) { w.stored.load_row(row, out); },
      arena);
  const std::uint64_t before = linear.bytes();
  linear.keep_codes(
      *code_format(QuantType::kQ41),
      [&](std::int64_t row, const CodedRow& out) { w.stored.load_codes(row, out); }, arena);
  // 4 bits, and a scale and a minimum for 32 of them; outputs rounded up to a multiple of 32.
  EXPECT_EQ(linear.lone_row_bytes(), 64u * 64u * 3 / 4);
  EXPECT_EQ(linear.bytes(), before + 64u * 64u * 3 / 4);
  EXPECT_FALSE(linear.lone_rows_equal_others());
  const std::vector<Bf16> x = random_vector(64, rng_);
  std::vector<Bf16> twice(x);
  twice.insert(twice.end(), x.begin(), x.end());
  std::vector<float> lone(40), both(80);
  linear.apply(x.data(), 1, lone.data());
  linear.apply(twice.data(), 2, both.data());
  double difference = 0.0;
  double size = 0.0;
  for (std::size_t o = 0; o < 40; ++o) {
    difference = std::max(difference, std::fabs(double{lone[o]} - double{both[o]}));
    size = std::max(size, std::fabs(double{lone[o]}));
  }
  EXPECT_GT(difference, 0.0);
  EXPECT_LT(difference, 0x1p-6 * size);
}

}  // namespace
}  // namespace sw
