#include "model/gguf.hpp"

#include <functional>
#include <vector>

#include "core/error.hpp"
#include "support.hpp"

namespace sw {
namespace {

using test::GgufBuilder;

Gguf open(const std::string& bytes) {
  const test::TemporaryFile file;
  file.write(bytes);
  return Gguf(file.path());  // stays mapped after the file is removed
}

void expect_error(const std::string& bytes, ErrorKind kind, const std::string& part) {
  try {
    open(bytes);
    ADD_FAILURE() << "no error, expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(Gguf, ReadsEveryValueType) {
  GgufBuilder b;
  b.scalar<std::uint8_t>("u8", 0, 200);
  b.scalar<std::int8_t>("i8", 1, -3);
  b.scalar<std::uint16_t>("u16", 2, 65535);
  b.scalar<std::int16_t>("i16", 3, -300);
  b.u32("u32", 4000000000u);
  b.scalar<std::int32_t>("i32", 5, -70000);
  b.f32("f32", 0.5f);
  b.scalar<std::uint8_t>("bool", 7, 1);
  b.text("text", "word");
  b.texts("texts", {"a", "", "ccc"});
  b.i32s("i32s", {-1, 2});
  b.scalar<std::uint64_t>("u64", 10, ~std::uint64_t{0});
  b.scalar<std::int64_t>("i64", 11, std::int64_t{-5});
  b.scalar<double>("f64", 12, 0.25);
  const Gguf g = open(b.bytes());
  EXPECT_EQ(g.integer("u8"), 200);
  EXPECT_EQ(g.integer("i8"), -3);
  EXPECT_EQ(g.integer("u16"), 65535);
  EXPECT_EQ(g.integer("i16"), -300);
  EXPECT_EQ(g.integer("u32"), 4000000000);
  EXPECT_EQ(g.integer("i32"), -70000);
  EXPECT_EQ(g.number("f32"), 0.5);
  EXPECT_EQ(g.number("i32"), -70000.0);
  EXPECT_TRUE(g.boolean("bool", false));
  EXPECT_EQ(g.text("text"), "word");
  EXPECT_EQ(g.texts("texts"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(g.integers("i32s"), (std::vector<std::int64_t>{-1, 2}));
  EXPECT_EQ(g.integer("i64"), -5);
  EXPECT_EQ(g.number("f64"), 0.25);
  EXPECT_EQ(g.integer("none", 7), 7);
  EXPECT_EQ(g.text("none", "x"), "x");
  EXPECT_EQ(g.number("none", 1.5), 1.5);
  EXPECT_EQ(g.find("none"), nullptr);
  EXPECT_THROW(g.integer("u64"), Error);  // does not fit
  EXPECT_THROW(g.integer("text"), Error);
  EXPECT_THROW(g.integer("none"), Error);
  EXPECT_THROW(g.text("u8"), Error);
  EXPECT_THROW(g.texts("i32s"), Error);
  EXPECT_THROW(g.integers("texts"), Error);
}

TEST(Gguf, ReadsTensorsOfVersions2And3) {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBuilder b;
    b.version = version;
    b.alignment = 64;
    b.u32("general.alignment", 64);
    b.floats("first", {3, 2});
    b.tensor("second", {32}, 8, std::string("\x00\x3c", 2) + std::string(32, '\x02'));
    const Gguf g = open(b.bytes());
    ASSERT_EQ(g.tensors().size(), 2u);
    const GgufTensor* first = g.find_tensor("first");
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(first->row_elements(), 3);
    EXPECT_EQ(first->rows(), 2);
    std::vector<float> row(32);
    first->matrix().load_row(1, row.data());
    EXPECT_FLOAT_EQ(row[0], 0.1f * static_cast<float>((3 * 7 + 5) % 11 - 5));
    g.find_tensor("second")->matrix().load_row(0, row.data());
    EXPECT_EQ(row[31], 2.0f);
    EXPECT_EQ(g.find_tensor("third"), nullptr);
  }
}

TEST(Gguf, RefusesOtherFiles) {
  expect_error("", ErrorKind::kInput, "not a GGUF file");
  expect_error("GGU", ErrorKind::kInput, "not a GGUF file");
  expect_error("PK\x03\x04 something else", ErrorKind::kInput, "not a GGUF file");
  GgufBuilder b;
  b.version = 1;
  expect_error(b.bytes(), ErrorKind::kUnsupported, "version 1");
  b.version = 0x03000000;
  expect_error(b.bytes(), ErrorKind::kUnsupported, "big-endian");
  EXPECT_THROW(Gguf("/nonexistent/model.gguf"), Error);
}

TEST(Gguf, RefusesAbsurdCounts) {
  const auto header = [](std::uint64_t tensors, std::uint64_t entries) {
    std::string out = "GGUF";
    GgufBuilder::put<std::uint32_t>(out, 3);
    GgufBuilder::put(out, tensors);
    GgufBuilder::put(out, entries);
    return out + std::string(64, '\0');
  };
  for (const std::uint64_t n : {std::uint64_t{1000}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    expect_error(header(n, 0), ErrorKind::kInput, "tensors");
    expect_error(header(0, n), ErrorKind::kInput, "metadata entries");
    for (const std::uint32_t type : {0u, 5u, 8u, 12u}) {
      GgufBuilder b;
      std::string array;
      GgufBuilder::put(array, type);
      GgufBuilder::put(array, n);
      b.raw("array", 9, array + std::string(64, '\0'));
      expect_error(b.bytes(), ErrorKind::kInput, "array");
    }
    GgufBuilder b;
    std::string text;
    GgufBuilder::put(text, n);
    b.raw("text", 8, text + "abc");
    expect_error(b.bytes(), ErrorKind::kInput, "text");
  }
}

TEST(Gguf, RefusesBadMetadata) {
  GgufBuilder unknown;
  unknown.raw("key", 13, "12345678");
  expect_error(unknown.bytes(), ErrorKind::kInput, "unknown type 13");
  GgufBuilder nested;
  std::string array;
  GgufBuilder::put<std::uint32_t>(array, 9);
  GgufBuilder::put<std::uint64_t>(array, 1);
  nested.raw("key", 9, array);
  expect_error(nested.bytes(), ErrorKind::kInput, "unknown type 9");
  GgufBuilder twice;
  twice.u32("key", 1);
  twice.u32("key", 2);
  expect_error(twice.bytes(), ErrorKind::kInput, "occurs twice");
  for (const std::uint32_t alignment : {0u, 12u, 1u << 30}) {
    GgufBuilder b;
    b.u32("general.alignment", alignment);
    expect_error(b.bytes(), ErrorKind::kInput, "alignment");
  }
}

TEST(Gguf, RefusesLyingTensors) {
  const std::string data(128, '\0');
  const auto with = [&](const std::vector<std::uint64_t>& shape, std::uint32_t type,
                        std::int64_t offset = -1) {
    GgufBuilder b;
    b.floats("good", {8});
    b.tensor("bad", shape, type, data, offset);
    return b.bytes();
  };
  const std::uint64_t huge = std::uint64_t{1} << 62;
  expect_error(with({}, 0), ErrorKind::kInput, "0 dimensions");
  expect_error(with({1, 1, 1, 1, 1}, 0), ErrorKind::kInput, "5 dimensions");
  expect_error(with({0}, 0), ErrorKind::kInput, "impossible shape");
  expect_error(with({4, ~std::uint64_t{0}}, 0), ErrorKind::kInput, "impossible shape");
  expect_error(with({huge, huge}, 0), ErrorKind::kInput, "impossible shape");
  expect_error(with({huge, 1}, 0), ErrorKind::kInput, "64-bit");
  expect_error(with({huge / 4}, 0), ErrorKind::kInput, "reaches beyond");
  expect_error(with({33}, 0), ErrorKind::kInput, "reaches beyond");
  expect_error(with({33}, 8), ErrorKind::kInput, "multiple of the 32");
  expect_error(with({128}, 12), ErrorKind::kInput, "multiple of the 256");
  expect_error(with({32}, 23), ErrorKind::kUnsupported, "storage type 23");
  expect_error(with({8}, 0, 4), ErrorKind::kInput, "alignment");
  expect_error(with({8}, 0, 1 << 20), ErrorKind::kInput, "reaches beyond");
  expect_error(with({8}, 0, std::int64_t{0x7fffffffffffffe0}), ErrorKind::kInput, "reaches beyond");
  expect_error(with({8}, 0, 0), ErrorKind::kInput, "overlap");
  GgufBuilder twice;
  twice.floats("same", {8});
  twice.floats("same", {8});
  expect_error(twice.bytes(), ErrorKind::kInput, "occurs twice");
}

}  // namespace
}  // namespace sw
