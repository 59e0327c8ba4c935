#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "support/tiny_trace.hpp"
#include "trace_files.hpp"

namespace sw {
namespace {

using namespace sw::testing;

/// The message of the Error that reading all of a trace throws, "" when it is good.
std::string reading_error(const std::string& path) {
  try {
    const TraceReader reader(path);
    for (auto layer = reader.info().first_layer; layer <= reader.info().last_layer(); ++layer) {
      reader.layer(layer);
    }
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInput) << error.what();
    EXPECT_FALSE(error.hint().empty()) << error.what();
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    return error.what();
  }
}

void expect_refused(const std::string& path, const std::string& part) {
  const std::string message = reading_error(path);
  EXPECT_NE(message.find(part), std::string::npos) << path << ": '" << message << "'";
  bool listed = false;
  for (const Error& problem : validate_trace(path)) {
    listed = listed || std::string(problem.what()).find(part) != std::string::npos;
  }
  EXPECT_TRUE(listed) << path;
}

TEST(BadHdf5, IsRefusedWithAReason) {
  const std::pair<const char*, const char*> files[] = {
      {"no_format", "attribute 'format' is missing"},
      {"format_type", "'format' cannot be read"},
      {"version", "version 2 of the trace format is newer"},
      {"version_zero", "version 0"},
      {"zero_tokens", "'total_tokens' is 0"},
      {"zero_heads", "'num_heads' is 0"},
      {"negative_dim", "'head_dim' is -8"},
      {"group", "num_heads 4 is not a multiple of num_kv_heads 3"},
      {"prefill", "prefill_tokens 9"},
      {"dtype_name", "'f64'"},
      {"dtype", "not stored as f16"},
      {"number", "'num_layers' cannot be read"},
      {"overflow", "overflow"},
      {"many_layers", "layer 5 is missing with 2147483645 more"},
      {"rope", "rope_applied is 0"},
      {"no_rope", "'rope_applied' is missing"},
      {"missing_layer", "layer 3 is missing"},
      {"no_layers", "layer 3 is missing with 1 more"},
      {"missing_tensor", "layer 4: v is missing"},
      {"extra_layer", "layer 5 is outside"},
      {"layer_name", "/layers/4 is not a layer index"},
      {"layer_is_dataset", "layer 4: q cannot be read"},
      {"tensor_is_group", "layer 4: q cannot be read"},
      {"shape", "layer 4: q has the shape [4, 7, 8]"},
      {"rank", "layer 4: q has the shape [4, 64]"},
      {"signed", "layer 4: q is not stored as bf16"},
      {"double", "layer 4: q is not stored as f32"},
      {"element_dtype", "layer 4: q is not stored as f32"},
      {"nan", "layer 4: k holds a NaN or an infinity at head 1, token 5"},
      {"inf", "layer 3: v holds a NaN or an infinity at head 0, token 7"},
      {"tokens_length", "tokens holds 7 ids"},
      {"tokens_type", "tokens cannot be read"},
      {"token", "tokens[2] is -5"},
      {"span", "answer_span[1] is [6, 9)"},
      {"span_order", "answer_span[0] is [3, 3)"},
      {"span_shape", "answer_span cannot be read"},
      {"text", "text cannot be read"},
      {"text_count", "text cannot be read"},
      {"unwritten", "more than the file holds"},
      {"huge", "more than the file holds"},
      {"soft_link", "'k' is a link"},
      {"external_link", "'k' is a link"},
      {"external_storage", "in other files"},
      {"virtual", "in other files"},
      {"filter", "filter 32000"},
  };
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SW_TEST_DIR "/data/trace")) {
    count += entry.path().filename().string().starts_with("bad_");
  }
  EXPECT_EQ(count, std::size(files));
  for (const auto& [name, part] : files) {
    const std::string path = std::string(SW_TEST_DIR "/data/trace/bad_") + name + ".h5";
    if (std::string(name) == "huge") {  // found after the tokens that do not match
      expect_refused(path, "tokens holds 8 ids");
      EXPECT_GE(validate_trace(path).size(), 7u);
      EXPECT_NE(std::string(validate_trace(path)[1].what()).find(part), std::string::npos);
    } else {
      expect_refused(path, part);
    }
  }
}

TEST(BadHdf5, TheHintOnRopeSaysHowToExport) {
  try {
    TraceReader reader(SW_TEST_DIR "/data/trace/bad_rope.h5");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.hint().find("after apply_rotary_pos_emb"), std::string::npos);
  }
}

TEST(BadFile, OfAnotherKind) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.h5");
  EXPECT_NE(reading_error(path).find("No such file"), std::string::npos);
  EXPECT_NE(reading_error(folder.path()).find("folder"), std::string::npos);
  for (const std::string& bytes :
       {std::string(), std::string("GGUF\3\0\0\0 and so on", 18), std::string("hello"),
        std::string(100, '\0'), std::string("\x89HDF\r\n\x1a\n", 8)}) {
    write_bytes(path, bytes);
    EXPECT_NE(reading_error(path), "");
  }
}

/// A safetensors trace whose header and data a test can bend.
struct BentTrace {
  nlohmann::json header;
  std::string data;

  BentTrace() {
    header["__metadata__"] = {{"format", "sketchwalk-trace"},
                              {"version", "1"},
                              {"model", "bent"},
                              {"num_layers", "1"},
                              {"num_heads", "2"},
                              {"num_kv_heads", "1"},
                              {"head_dim", "4"},
                              {"prefill_tokens", "3"},
                              {"total_tokens", "4"},
                              {"dtype", "f32"},
                              {"rope_applied", "1"}};
    add("layers.0.q", "F32", {2, 4, 4}, 4);
    add("layers.0.k", "F32", {1, 4, 4}, 4);
    add("layers.0.v", "F32", {1, 4, 4}, 4);
    add("tokens", "I32", {4}, 4);
    add("answer_span", "I64", {0, 2}, 8);
  }
  void add(const std::string& name, const std::string& dtype,
           const std::vector<std::uint64_t>& shape, std::uint64_t element) {
    const std::uint64_t begin = data.size();
    for (const std::uint64_t extent : shape) element *= extent;
    data.append(element, '\0');
    header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, begin + element}}};
  }
  std::string bytes() const {
    const std::string text = header.dump();
    const std::uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + data;
  }
};

TEST(BadSafetensors, IsRefusedWithAReason) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  write_bytes(path, BentTrace().bytes());
  EXPECT_EQ(reading_error(path), "");

  using Bend = std::function<void(BentTrace&)>;
  const auto metadata = [](const char* name, nlohmann::json value) -> Bend {
    return [=](BentTrace& t) { t.header["__metadata__"][name] = value; };
  };
  const auto entry = [](const char* name, const char* key, nlohmann::json value) -> Bend {
    return [=](BentTrace& t) { t.header[name][key] = value; };
  };
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 63;
  const std::pair<Bend, const char*> cases[] = {
      {[](BentTrace& t) { t.header.erase("__metadata__"); }, "not a trace"},
      {[](BentTrace& t) { t.header["__metadata__"] = 3; }, "__metadata__ is not an object"},
      {metadata("num_heads", 2), "metadata 'num_heads' is not a string"},
      {metadata("num_heads", "two"), "not a whole number"},
      {metadata("num_heads", "2 "), "not a whole number"},
      {metadata("num_heads", "99999999999999999999"), "not a whole number"},
      {metadata("num_heads", "0"), "'num_heads' is 0"},
      {metadata("num_heads", "-1"), "'num_heads' is -1"},
      {metadata("num_heads", "9223372036854775807"), "overflow"},
      {metadata("num_heads", "3"), "layer 0: q has the shape [2, 4, 4]"},
      {metadata("num_kv_heads", "4"), "not a multiple"},
      {metadata("total_tokens", "0"), "'total_tokens' is 0"},
      {metadata("prefill_tokens", "0"), "prefill_tokens 0"},
      {metadata("num_layers", "2"), "layer 1 is missing"},
      {metadata("first_layer", "1"), "layer 1 is missing"},
      {metadata("first_layer", "-1"), "cannot be"},
      {metadata("first_layer", "9223372036854775807"), "cannot be"},
      {metadata("model_layers", "0"), "do not exist"},
      {metadata("rope_applied", "0"), "rope_applied is 0"},
      {metadata("version", "2"), "newer"},
      {metadata("dtype", "bf16"), "stored as F32"},
      {metadata("planted_block", "0"), "planted has the shape"},
      {entry("layers.0.q", "shape", {2, 4, 5}), "bytes"},
      {entry("layers.0.q", "shape", {4, 4, 2}), "layer 0: q has the shape [4, 4, 2]"},
      {entry("layers.0.q", "shape", {2, 16}), "layer 0: q has the shape [2, 16]"},
      {entry("layers.0.q", "shape", {2, -4, 4}), "shape that is not of whole numbers"},
      {entry("layers.0.q", "shape", {2.5}), "shape that is not of whole numbers"},
      {entry("layers.0.q", "shape", {kHuge, 2}), "overflows"},
      {entry("layers.0.q", "shape", {kHuge / 4, 16}), "bytes"},
      {entry("layers.0.q", "shape", 32), "lacks dtype, shape or data_offsets"},
      {entry("layers.0.q", "dtype", "F16"), "bytes"},
      {entry("layers.0.q", "dtype", "I32"), "layer 0: q is stored as I32"},
      {entry("layers.0.q", "dtype", "F128"), "unknown dtype"},
      {entry("layers.0.q", "data_offsets", {0, 129}), "bytes"},
      {entry("layers.0.q", "data_offsets", {128, 0}), "lies at bytes"},
      {entry("layers.0.q", "data_offsets", {0}), "lacks dtype, shape or data_offsets"},
      {entry("layers.0.q", "data_offsets", {-128, 0}), "whole numbers"},
      {entry("layers.0.v", "data_offsets", {kHuge, kHuge + 64}), "lies at bytes"},
      {entry("layers.0.v", "data_offsets", {128, 192}), "the tensors before it end at"},
      {[](BentTrace& t) { t.header.erase("layers.0.v"); }, "the tensors before it end at"},
      {[](BentTrace& t) {
         t.header["layers.0.w"] = t.header["layers.0.v"];
         t.header.erase("layers.0.v");
       },
       "layer 0: v is missing"},
      {[](BentTrace& t) {
         t.header["layers.00.v"] = t.header["layers.0.v"];
         t.header.erase("layers.0.v");
       },
       "has no layer index"},
      {[](BentTrace& t) {
         t.add("layers.1.q", "F32", {2, 4, 4}, 4);
       },
       "layer 1 is outside"},
      {[](BentTrace& t) { t.data += "more"; }, "the tensors end at byte"},
      {[](BentTrace& t) { t.header["tokens"]["dtype"] = "F32"; }, "tokens is F32"},
      {[](BentTrace& t) { t.data[t.data.size() - 1] = '\x80'; }, "tokens[3] is -2147483648"},
      {[](BentTrace& t) {
         t.add("answer_span", "I64", {1, 3}, 8);
       },
       "not [k, 2]"},
      {[](BentTrace& t) {
         t.add("answer_span", "I64", {1, 2}, 8);
       },
       "answer_span[0] is [0, 0)"},
      {[](BentTrace& t) {
         t.data[130] = '\x80';
         t.data[131] = '\x7f';
       },
       "layer 0: k holds a NaN or an infinity at head 0, token 0"},
      {[](BentTrace& t) {
         t.data[124] = '\1';
         t.data[126] = '\x80';
         t.data[127] = '\xff';
       },
       "layer 0: q holds a NaN or an infinity at head 1, token 3"},
  };
  for (const auto& [bend, part] : cases) {
    BentTrace trace;
    bend(trace);
    write_bytes(path, trace.bytes());
    SCOPED_TRACE(trace.header.dump());
    expect_refused(path, part);
  }
}

TEST(BadSafetensors, HeadersThatAreNone) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const auto with_size = [&](std::uint64_t size, const std::string& rest) {
    write_bytes(path, std::string(reinterpret_cast<const char*>(&size), 8) + rest);
  };
  const std::string good = BentTrace().bytes().substr(8);
  for (const std::uint64_t size :
       {~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63, std::uint64_t{1} << 32,
        std::uint64_t{good.size() + 1}, std::uint64_t{100}, std::uint64_t{1}, std::uint64_t{0}}) {
    with_size(size, good);
    EXPECT_NE(reading_error(path), "") << size;
  }
  for (const std::string& text :
       {std::string("{"), std::string("{}"), std::string("{\"a\": nul}"), std::string("{\xff}"),
        "{\"a\":" + std::string(1 << 20, '['), "{\"a\":{\"b\":{\"c\":{\"d\":1}}}}" + std::string(),
        std::string("{\"a\":{},\"a\":{}}"), std::string("{\"__metadata__\":{\"format\":null}}")}) {
    with_size(text.size(), text);
    EXPECT_NE(reading_error(path), "") << text.substr(0, 60);
  }
}

/// Small traces as this project, the format's defaults, and h5py write them.
std::vector<std::string> sample_files(const TemporaryFolder& folder) {
  TraceInfo info = small_info(DType::kBf16);
  info.num_layers = 1;
  info.prefill_tokens = 20;
  info.total_tokens = 21;
  info.tokens.resize(21);
  info.answer_spans = {{3, 4}};
  info.planted = PlantedBlocks{8, 1, 3, 1, {-1, 0, 1}};
  std::vector<std::string> files;
  for (const char* name : {"own.h5", "own.safetensors"}) {
    files.push_back(folder.file(name));
    write_small(files.back(), info, 21);
  }
  files.push_back(SW_TEST_DIR "/data/trace/good_little_f32.h5");
  files.push_back(SW_TEST_DIR "/data/trace/good_big_f16.h5");
  return files;
}

TEST(Damage, TruncatedFilesAreRefused) {
  const TemporaryFolder folder;
  const std::string path = folder.file("damaged");
  for (const std::string& file : sample_files(folder)) {
    const std::string bytes = read_bytes(file);
    for (std::size_t i = 0; i < 50; ++i) {
      write_bytes(path, bytes.substr(0, bytes.size() * i / 50));
      EXPECT_NE(reading_error(path), "") << file << " cut to " << 2 * i << "%";
    }
    write_bytes(path, bytes.substr(0, bytes.size() - 1));
    EXPECT_NE(reading_error(path), "") << file;
  }
}

/// The HDF5 library itself crashes and hangs on some of these.
TEST(Damage, FlippedBitsNeverCrashOrHang) {
  const TemporaryFolder folder;
  const std::string path = folder.file("damaged");
  for (const std::string& file : sample_files(folder)) {
    const std::string bytes = read_bytes(file);
    SplitMix64 random(11);
    int refused = 0;
    constexpr int kFlips = 120;
    for (int i = 0; i < kFlips; ++i) {
      std::string bent = bytes;
      bent[random.below(bent.size())] ^= static_cast<char>(1 << random.below(8));
      write_bytes(path, bent);
      refused += reading_error(path).empty() ? 0 : 1;
    }
    EXPECT_GT(refused, kFlips / 20) << file;
  }
}

/// Own HDF5 files have a checksum in every header and in compressed data, so that damage does not
/// change q, k and v unnoticed; in safetensors the header must fit the data.
TEST(Damage, FlippedBitsOfHeadersAreNoticed) {
  const TemporaryFolder folder;
  const std::string path = folder.file("damaged");
  const auto files = sample_files(folder);
  for (int f = 0; f < 2; ++f) {
    const std::string bytes = read_bytes(files[static_cast<std::size_t>(f)]);
    const TraceLayer good = TraceReader(files[static_cast<std::size_t>(f)]).layer(9);
    std::size_t end = bytes.size();
    if (f == 1) {
      std::uint64_t header_bytes = 0;
      std::memcpy(&header_bytes, bytes.data(), 8);
      end = 8 + header_bytes;
    }
    for (std::size_t bit = 3; bit < end * 8; bit += f == 0 ? 641 : 29) {
      std::string bent = bytes;
      bent[bit / 8] ^= static_cast<char>(1 << bit % 8);
      write_bytes(path, bent);
      try {
        const TraceLayer read = TraceReader(path).layer(9);
        EXPECT_TRUE(same(read.q, good.q) && same(read.k, good.k) && same(read.v, good.v)) << bit;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kInput) << error.what();
      }
    }
  }
}

TEST(Validate, ListsEveryProblem) {
  BentTrace trace;
  trace.header["__metadata__"]["rope_applied"] = "0";
  trace.header["__metadata__"]["prefill_tokens"] = "9";
  trace.header["layers.0.q"]["shape"] = {4, 4, 2};
  trace.data[130] = '\x80';
  trace.data[131] = '\x7f';
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  write_bytes(path, trace.bytes());
  const auto problems = validate_trace(path);
  ASSERT_EQ(problems.size(), 4u);
  EXPECT_NE(std::string(problems[0].what()).find("prefill_tokens"), std::string::npos);
  EXPECT_NE(std::string(problems[1].what()).find("rope_applied"), std::string::npos);
  EXPECT_NE(std::string(problems[2].what()).find("layer 0: q"), std::string::npos);
  EXPECT_NE(std::string(problems[3].what()).find("layer 0: k holds a NaN"), std::string::npos);
  EXPECT_NE(reading_error(path).find("(and 2 more; sw-trace validate lists them)"),
            std::string::npos);
}

TEST(FindNonFinite, FindsTheFirst) {
  for (const DType dtype : {DType::kBf16, DType::kF16, DType::kF32}) {
    HeadsTensor tensor = random_tensor(dtype, 3, 70, 10, 1);
    EXPECT_FALSE(find_non_finite(tensor.view()));
    const auto put = [&](std::int64_t head, std::int64_t token, float value) {
      convert_from_float(&value, dtype, 1,
                         tensor.data() + static_cast<std::size_t>((head * 70 + token) * 10 + 9) *
                                             dtype_size(dtype));
    };
    put(2, 0, std::numeric_limits<float>::infinity());
    put(1, 69, std::numeric_limits<float>::quiet_NaN());
    const auto found = find_non_finite(tensor.view());
    ASSERT_TRUE(found);
    EXPECT_EQ(found->head, 1);
    EXPECT_EQ(found->token, 69);
  }
}

}  // namespace
}  // namespace sw
