#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/command.hpp"
#include "support/tiny_trace.hpp"
#include "trace_files.hpp"

namespace sw {
namespace {

using namespace sw::testing;

class RoundTrip : public ::testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(RoundTrip, ContentSurvives) {
  const auto& [extension, dtype] = GetParam();
  const TemporaryFolder folder;
  const TraceInfo info = small_info(dtype);
  // A step of 603 writes all tokens at once; 7 and 256 cross chunks and heads in every way.
  for (const std::int64_t step : {7, 256, 603}) {
    const std::string path = folder.file(std::to_string(step) + extension);
    write_small(path, info, step);
    const TraceReader reader(path);
    EXPECT_EQ(reader.format(), extension == ".h5" ? TraceFormat::kHdf5 : TraceFormat::kSafetensors);
    EXPECT_EQ(reader.info(), info);
    for (std::int64_t layer = 9; layer <= 10; ++layer) {
      const TraceLayer read = reader.layer(layer);
      EXPECT_EQ(read.layer, layer);
      EXPECT_TRUE(same(read.q, small_tensor(info, layer, TraceTensor::kQ)));
      EXPECT_TRUE(same(read.k, small_tensor(info, layer, TraceTensor::kK)));
      EXPECT_TRUE(same(read.v, small_tensor(info, layer, TraceTensor::kV)));
    }
    EXPECT_TRUE(validate_trace(path).empty());
  }
  EXPECT_EQ(files_in(folder.path()), 3u);
}

INSTANTIATE_TEST_SUITE_P(Formats, RoundTrip,
                         ::testing::Combine(::testing::Values(".h5", ".safetensors"),
                                            ::testing::Values(DType::kBf16, DType::kF16,
                                                              DType::kF32)),
                         [](const auto& test) {
                           return std::get<0>(test.param).substr(1) + "_" +
                                  std::string(dtype_name(std::get<1>(test.param)));
                         });

TEST(Trace, ReadsRangesOfTokens) {
  const TemporaryFolder folder;
  const TraceInfo info = small_info(DType::kBf16);
  for (const char* name : {"a.h5", "a.safetensors"}) {
    write_small(folder.file(name), info, 603);
    const TraceReader reader(folder.file(name));
    const HeadsTensor all = small_tensor(info, 10, TraceTensor::kV);
    const HeadsTensor part = reader.read(10, TraceTensor::kV, 250, 520);
    ASSERT_EQ(part.tokens(), 270);
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t t = 0; t < 270; ++t) {
        ASSERT_EQ(0, std::memcmp(part.row<Bf16>(head, t), all.row<Bf16>(head, 250 + t), 16));
      }
    }
    EXPECT_EQ(reader.read(10, TraceTensor::kV, 5, 5).elements(), 0);
    EXPECT_THROW(reader.layer(8), Error);
    EXPECT_THROW(reader.layer(11), Error);
  }
}

TEST(Trace, FormatIsToldByContent) {
  const TemporaryFolder folder;
  const TraceInfo info = small_info(DType::kF32);
  write_small(folder.file("a.h5"), info, 603);
  write_small(folder.file("b.safetensors"), info, 603);
  std::filesystem::rename(folder.file("a.h5"), folder.file("a.safetensors"));
  std::filesystem::rename(folder.file("b.safetensors"), folder.file("b"));
  EXPECT_EQ(TraceReader(folder.file("a.safetensors")).format(), TraceFormat::kHdf5);
  EXPECT_EQ(TraceReader(folder.file("b")).format(), TraceFormat::kSafetensors);
}

TEST(Trace, OptionalPartsMayBeAbsentOrLate) {
  const TemporaryFolder folder;
  TraceInfo bare = small_info(DType::kF16);
  bare.tokens.clear();
  bare.answer_spans.clear();
  bare.text.clear();
  bare.planted.reset();
  bare.model_layers.reset();
  for (const char* extension : {".h5", ".safetensors"}) {
    const std::string path = folder.file(std::string("bare") + extension);
    write_small(path, bare, 603);
    EXPECT_EQ(TraceReader(path).info(), bare);

    const TraceInfo full = small_info(DType::kF16);
    TraceInfo early = full;
    early.tokens.clear();
    early.answer_spans.clear();
    const std::string late = folder.file(std::string("late") + extension);
    TraceWriter writer(late, early);
    for (std::int64_t layer = 9; layer <= 10; ++layer) {
      writer.append(layer, small_tensor(full, layer, TraceTensor::kQ).view(),
                    small_tensor(full, layer, TraceTensor::kK).view(),
                    small_tensor(full, layer, TraceTensor::kV).view());
    }
    writer.set_tokens(full.tokens);
    writer.set_answer_spans(full.answer_spans);
    writer.commit();
    EXPECT_EQ(TraceReader(late).info(), full);
  }
}

TEST(Trace, SafetensorsFileIsWellFormed) {
  const TemporaryFolder folder;
  const TraceInfo info = small_info(DType::kBf16);
  write_small(folder.file("a.safetensors"), info, 100);
  const std::string bytes = read_bytes(folder.file("a.safetensors"));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  EXPECT_EQ((header_bytes + 8) % 64, 0u);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_bytes));
  EXPECT_EQ(header["__metadata__"]["num_kv_heads"], "2");
  EXPECT_EQ(header["__metadata__"]["dtype"], "bf16");
  EXPECT_EQ(header["__metadata__"]["text"], info.text);
  EXPECT_EQ(header["tokens"]["dtype"], "I32");
  EXPECT_EQ(header["answer_span"]["shape"], nlohmann::json({2, 2}));
  const auto& k = header["layers.10.k"];
  EXPECT_EQ(k["dtype"], "BF16");
  EXPECT_EQ(k["shape"], nlohmann::json({2, 603, 8}));
  const HeadsTensor expected = small_tensor(info, 10, TraceTensor::kK);
  const std::uint64_t begin = k["data_offsets"][0];
  EXPECT_EQ(
      0, std::memcmp(bytes.data() + 8 + header_bytes + begin, expected.data(), expected.bytes()));
  std::uint64_t sum = 0;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    sum += tensor["data_offsets"][1].get<std::uint64_t>() -
           tensor["data_offsets"][0].get<std::uint64_t>();
  }
  EXPECT_EQ(sum, bytes.size() - 8 - header_bytes);
}

TEST(Trace, H5pyReadsWhatIsWritten) {
  const std::string python = testing::python();
  if (!testing::python_has("h5py")) GTEST_SKIP() << python << " has no h5py";
  const TemporaryFolder folder;
  const TraceInfo info = small_info(DType::kBf16);
  write_small(folder.file("a.h5"), info, 100);
  const auto result = testing::run_command(
      python +
      " -c '\n"
      "import h5py, sys\n"
      "f = h5py.File(sys.argv[1], \"r\")\n"
      "print(f.attrs[\"model\"], f.attrs[\"num_heads\"], f.attrs[\"created_by\"])\n"
      "q = f[\"layers/09/q\"]\n"
      "print(q.shape, q.dtype, q.attrs[\"dtype\"], q.chunks, q.compression, q.shuffle)\n"
      "print(q[3, 602, 7], f[\"layers/10/v\"][0, 0, 0])\n"
      "print(f[\"tokens\"].dtype, f[\"tokens\"][602], f[\"answer_span\"][:].tolist())\n"
      "print(repr(f[\"text\"].asstr()[()]), f[\"planted\"].shape)\n"
      "' " +
      folder.file("a.h5"));
  const HeadsTensor q = small_tensor(info, 9, TraceTensor::kQ);
  const HeadsTensor v = small_tensor(info, 10, TraceTensor::kV);
  EXPECT_EQ(result.output,
            "small \"model\" 4 Grüße\n"
            "(4, 603, 8) uint16 bf16 (1, 256, 8) gzip True\n" +
                std::to_string(q.row<Bf16>(3, 602)[7].bits) + " " +
                std::to_string(v.row<Bf16>(0, 0)[0].bits) +
                "\nint32 1602 [[0, 1], [599, 603]]\n"
                "'line\\n\\ttab \u20ac' (2, 10, 1)\n");
}

/// The formula of tests/data/make_trace_files.py.
float formula(std::int64_t layer, int n, std::int64_t h, std::int64_t t, std::int64_t c) {
  return static_cast<float>((7 * h + 3 * t + 5 * c + 11 * layer + 13 * n) % 64 - 32) / 16;
}

class GoodFile : public ::testing::TestWithParam<std::pair<std::string, DType>> {};

TEST_P(GoodFile, IsRead) {
  const auto& [name, dtype] = GetParam();
  const TraceReader reader(std::string(SW_TEST_DIR "/data/trace/good_") + name + ".h5");
  const TraceInfo& info = reader.info();
  EXPECT_EQ(info.model, "formula");
  EXPECT_EQ(info.dtype, dtype);
  EXPECT_EQ(info.first_layer, 3);
  EXPECT_EQ(info.num_layers, 2);
  EXPECT_EQ(info.prefill_tokens, 6);
  EXPECT_EQ(info.tokens, (std::vector<std::int32_t>{10, 11, 12, 13, 14, 15, 16, 17}));
  EXPECT_EQ(info.answer_spans, (std::vector<TokenSpan>{{1, 3}, {6, 8}}));
  EXPECT_EQ(info.text, "Größe: 7");
  for (std::int64_t layer = 3; layer <= 4; ++layer) {
    const TraceLayer read = reader.layer(layer);
    int n = 0;
    for (const HeadsTensor* tensor : {&read.q, &read.k, &read.v}) {
      ASSERT_EQ(tensor->heads(), n == 0 ? 4 : 2);
      for (std::int64_t h = 0; h < tensor->heads(); ++h) {
        for (std::int64_t t = 0; t < 8; ++t) {
          float row[8];
          tensor->view().load_row(h, t, row);
          for (std::int64_t c = 0; c < 8; ++c) ASSERT_EQ(row[c], formula(layer, n, h, t, c));
        }
      }
      ++n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Files, GoodFile,
    ::testing::Values(std::pair("little_bf16", DType::kBf16), std::pair("little_f16", DType::kF16),
                      std::pair("little_f32", DType::kF32), std::pair("big_bf16", DType::kBf16),
                      std::pair("big_f16", DType::kF16), std::pair("big_f32", DType::kF32),
                      std::pair("fixed_strings", DType::kF16), std::pair("userblock", DType::kF32)),
    [](const auto& test) { return test.param.first; });

TEST(Trace, ExportersFilesAgree) {
  const TraceReader bf16(SW_TEST_DIR "/data/hf_tiny.h5");
  const TraceReader f32(SW_TEST_DIR "/data/hf_tiny.safetensors");
  EXPECT_EQ(bf16.info().tokens, f32.info().tokens);
  const TraceLayer a = bf16.layer(1);
  const TraceLayer b = f32.layer(1);
  for (const auto& [x, y] : {std::pair(&a.q, &b.q), std::pair(&a.k, &b.k), std::pair(&a.v, &b.v)}) {
    ASSERT_EQ(x->elements(), y->elements());
    const auto* bits = reinterpret_cast<const Bf16*>(x->data());
    const auto* values = reinterpret_cast<const float*>(y->data());
    for (std::int64_t i = 0; i < x->elements(); ++i) {
      ASSERT_EQ(bits[i].bits, to_bf16(values[i]).bits) << i;
    }
  }
}

}  // namespace
}  // namespace sw
