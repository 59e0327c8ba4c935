#include "model/linear.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu_isa.hpp"
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

/// Every way to store weights: oneDNN's, and the panels of each kernel that this CPU runs.
class LinearTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (onednn()) return;
    for (const PanelKernel* kernel : available_panel_kernels()) {
      if (std::string(GetParam()) == kernel->name) kernel_ = kernel;
    }
    if (kernel_ == nullptr) GTEST_SKIP() << "this CPU does not run " << GetParam();
  }
  bool onednn() const { return std::string(GetParam()) == "onednn"; }

  std::unique_ptr<const PackedWeights> pack(std::int64_t inputs, std::int64_t outputs, DType dtype,
                                            const std::vector<float>& w) {
    const auto load_row = [&](std::int64_t row, float* out) {
      std::copy_n(w.data() + row * inputs, inputs, out);
    };
    return onednn() ? pack_onednn(inputs, outputs, dtype, load_row, arena_)
                    : pack_panels(*kernel_, inputs, outputs, dtype, load_row, arena_);
  }

  /// Runs body(dtype) in f32 and, where it can be computed, in bf16.
  template <class F>
  void each_dtype(const F& body) {
    body(DType::kF32);
    try {
      body(DType::kBf16);
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
    }
  }

  const PanelKernel* kernel_ = nullptr;
  WeightArena arena_;
};

const Case kCases[] = {{1, 1, 1},    {5, 3, 7},      {64, 48, 1},    {96, 257, 127},
                       {64, 700, 2}, {33, 250, 129}, {128, 256, 300}};

TEST_P(LinearTest, EqualsDoubleSumsOverTheStoredValues) {
  each_dtype([&](DType dtype) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(std::to_string(c.inputs) + " -> " + std::to_string(c.outputs) + ", " +
                   std::to_string(c.rows) + " rows, " + std::string(dtype_name(dtype)));
      std::vector<float> w = random_values(c.inputs * c.outputs, 1);
      std::vector<float> x = random_values(c.inputs * c.rows, 2);
      const std::vector<float> bias = random_values(c.rows % 2 == 0 ? c.outputs : 0, 3);
      std::vector<std::byte> stored(x.size() * dtype_size(dtype));
      convert_from_float(x.data(), dtype, std::ssize(x), stored.data());
      convert_to_float(stored.data(), dtype, std::ssize(x), x.data());
      if (dtype == DType::kBf16) {
        for (float& v : w) v = to_float(to_bf16(v));
      }
      const auto weights = pack(c.inputs, c.outputs, dtype, w);
      EXPECT_GE(weights->bytes(), w.size() * dtype_size(dtype));
      for (const bool add : {false, true}) {
        const std::vector<float> before(static_cast<std::size_t>(c.rows * c.outputs),
                                        add ? 0.5f : NAN);
        std::vector<float> y = before;
        weights->multiply(stored.data(), c.rows, bias, add, y.data());
        for (std::int64_t r = 0; r < c.rows; ++r) {
          for (std::int64_t o = 0; o < c.outputs; ++o) {
            double sum = (add ? 0.5 : 0.0) + (bias.empty() ? 0.0 : bias[o]);
            for (std::int64_t i = 0; i < c.inputs; ++i) {
              sum += double{x[r * c.inputs + i]} * w[o * c.inputs + i];
            }
            ASSERT_NEAR(y[r * c.outputs + o], sum, 1e-5 * std::sqrt(c.inputs) + 1e-6)
                << "row " << r << ", output " << o;
          }
        }
        const int threads = num_threads();
        set_num_threads(threads == 1 ? 3 : 1);
        std::vector<float> again = before;
        weights->multiply(stored.data(), c.rows, bias, add, again.data());
        set_num_threads(threads);
        EXPECT_EQ(y, again) << "the result depends on the thread count";
      }
    }
  });
}

/// The first rows of a product equal, bit for bit, the product of these rows alone; a lone row only
/// where the weights say so.
TEST_P(LinearTest, ARowDoesNotDependOnTheNumberOfRows) {
  each_dtype([&](DType dtype) {
    const std::int64_t inputs = 576, outputs = 700, most = 260;
    const std::vector<float> w = random_values(inputs * outputs, 1);
    const std::vector<float> x = random_values(inputs * most, 2);
    std::vector<std::byte> stored(x.size() * dtype_size(dtype));
    convert_from_float(x.data(), dtype, std::ssize(x), stored.data());
    const auto weights = pack(inputs, outputs, dtype, w);
    std::vector<float> all(static_cast<std::size_t>(most * outputs));
    weights->multiply(stored.data(), most, {}, false, all.data());
    for (const std::int64_t rows : {1, 2, 3, 5, 14, 15, 31, 64, 95, 96, 97, 127, 128, 130, 255}) {
      if (rows == 1 && !weights->lone_rows_equal_others()) continue;
      std::vector<float> some(static_cast<std::size_t>(rows * outputs));
      weights->multiply(stored.data(), rows, {}, false, some.data());
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << rows << " rows";
    }
  });
}

/// The kernel that is chosen is the widest within the limit, and none with AMX or without AVX2.
TEST(PanelKernel, FollowsTheLimitOnInstructionSets) {
  const auto name = [](CpuIsa limit) {
    limit_cpu_isa(limit);
    const PanelKernel* kernel = find_panel_kernel();
    limit_cpu_isa(CpuIsa::kAmxBf16);
    return std::string(kernel != nullptr ? kernel->name : "none");
  };
  EXPECT_EQ(name(CpuIsa::kPortable), "none");
  for (const PanelKernel* kernel : available_panel_kernels()) {
    EXPECT_EQ(name(*parse_cpu_isa(kernel->name)), kernel->name);
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, LinearTest,
                         ::testing::Values("avx512_bf16", "avx512", "avx2", "onednn"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace sw
