#include "model/quant.hpp"

#include <string>
#include <vector>

#include "support.hpp"

namespace sw {
namespace {

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

// Expected values: the Python package gguf.
TEST(Quant, EqualsTheIndependentImplementation) {
  const auto expected = test::golden("quant.json");
  int types = 0;
  for (std::uint32_t code = 0; code < 64; ++code) {
    const QuantFormat* format = find_quant_format(code);
    if (!format) continue;
    ++types;
    SCOPED_TRACE(format->name);
    const auto& entry = expected.at(format->name);
    const std::vector<std::byte> bytes = from_hex(entry["bytes"]);
    const std::vector<double> values = entry["values"];
    const auto elements = static_cast<std::int64_t>(values.size());
    ASSERT_EQ(static_cast<std::int64_t>(bytes.size()),
              elements / format->block_elements * format->block_bytes);
    std::vector<float> out(values.size());
    dequantize(static_cast<QuantType>(code), bytes.data(), elements, out.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      EXPECT_FLOAT_EQ(out[i], static_cast<float>(values[i])) << "element " << i;
    }
  }
  EXPECT_EQ(types, 11);
  EXPECT_EQ(expected.size(), 11u);
}

TEST(Quant, NamesAllTypes) {
  EXPECT_EQ(quant_type_names(), "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K");
  EXPECT_EQ(find_quant_format(4), nullptr);
  EXPECT_STREQ(quant_format(QuantType::kQ6K).name, "Q6_K");
}

}  // namespace
}  // namespace sw
