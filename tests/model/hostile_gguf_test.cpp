#include <memory>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "model/chat_template.hpp"
#include "model/tokenizer.hpp"
#include "model/transformer.hpp"
#include "support.hpp"

// A damaged model file gives an Error or, where nothing can be noticed (a weight that changed), a
// model; it never crashes, hangs or allocates without bound. Run under sanitizers, too.

namespace sw {
namespace {

/// A whole model of one layer, as small as it can be.
std::string tiny_model(const std::string& arch = "llama",
                       const std::function<void(test::GgufBuilder&)>& extra = {},
                       const std::vector<std::string>& tokens = {"a", "b", "ab"},
                       const std::vector<std::string>& merges = {"a b"}) {
  test::GgufBuilder b;
  b.text("general.architecture", arch);
  b.u32(arch + ".block_count", 1);
  b.u32(arch + ".embedding_length", 4);
  b.u32(arch + ".feed_forward_length", 2);
  b.u32(arch + ".attention.head_count", 2);
  b.u32(arch + ".attention.head_count_kv", 1);
  b.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  b.text("tokenizer.ggml.model", "gpt2");
  b.text("tokenizer.ggml.pre", "smollm");
  b.texts("tokenizer.ggml.tokens", tokens);
  b.i32s("tokenizer.ggml.token_type", std::vector<std::int32_t>(tokens.size(), 1));
  b.texts("tokenizer.ggml.merges", merges);
  b.u32("tokenizer.ggml.eos_token_id", 1);
  if (extra) extra(b);
  b.floats("token_embd.weight", {4, 3});
  b.floats("output_norm.weight", {4});
  b.floats("blk.0.attn_norm.weight", {4});
  b.floats("blk.0.attn_q.weight", {4, 4});
  b.floats("blk.0.attn_k.weight", {4, 2});
  b.floats("blk.0.attn_v.weight", {4, 2});
  b.floats("blk.0.attn_output.weight", {4, 4});
  b.floats("blk.0.ffn_norm.weight", {4});
  b.floats("blk.0.ffn_gate.weight", {4, 2});
  b.floats("blk.0.ffn_up.weight", {4, 2});
  b.floats("blk.0.ffn_down.weight", {2, 4});
  return b.bytes();
}

enum class Depth { kHeader, kModel };

/// Opens and uses the file as far as it goes; true when nothing was noticed.
bool survives(const test::TemporaryFile& file, const std::string& bytes, Depth depth) {
  file.write(bytes);
  try {
    const Gguf gguf(file.path());
    for (const GgufTensor& tensor : gguf.tensors()) {
      std::vector<float> row(static_cast<std::size_t>(tensor.row_elements()));
      for (std::int64_t r = 0; r < tensor.rows(); ++r) tensor.matrix().load_row(r, row.data());
    }
    const Tokenizer tokenizer(gguf);
    tokenizer.decode(tokenizer.encode("abba ab", SpecialText::kParse));
    if (depth == Depth::kHeader) {
      read_config(gguf);
      return true;
    }
    const Model model(Checkpoint::open(file.path()), DType::kF32);
    Session session(model, [](const AttentionProblem& p, AttentionOutput& out) { out.reserve(p); },
                    {.capacity = 2, .observer = {}});
    session.run(std::vector<std::int32_t>{0});
    return true;
  } catch (const Error& error) {
    EXPECT_STRNE(error.what(), "");
    return false;
  }
}

TEST(HostileGguf, TheWholeFileIsFine) {
  const test::TemporaryFile file;
  EXPECT_TRUE(survives(file, tiny_model(), Depth::kModel));
}

TEST(HostileGguf, EveryTruncationIsAnError) {
  const test::TemporaryFile file;
  const std::string bytes = tiny_model();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_FALSE(survives(file, bytes.substr(0, size), Depth::kModel)) << size << " bytes";
  }
}

TEST(HostileGguf, EveryBitFlipIsSurvived) {
  const test::TemporaryFile file;
  const std::string bytes = tiny_model();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      const bool whole = bit == static_cast<int>(i % 8);
      const bool fine = survives(file, flipped, whole ? Depth::kModel : Depth::kHeader);
      if (i < 4) {  // the magic
        ASSERT_FALSE(fine) << "byte " << i << ", bit " << bit;
      }
    }
  }
}

void expect_refused(const std::string& bytes, ErrorKind kind, const std::string& part) {
  const test::TemporaryFile file;
  file.write(bytes);
  try {
    const Model model(Checkpoint::open(file.path()), DType::kF32);
    ADD_FAILURE() << "no error, expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_FALSE(error.hint().empty());
  }
}

TEST(HostileGguf, RefusesWhatTheRunnerDoesNotCompute) {
  const auto with = [](const std::function<void(test::GgufBuilder&)>& extra) {
    return tiny_model("llama", extra);
  };
  const ErrorKind unsupported = ErrorKind::kUnsupported;
  expect_refused(tiny_model("mamba"), unsupported, "mamba");
  expect_refused(with([](auto& b) { b.text("llama.rope.scaling.type", "yarn"); }), unsupported,
                 "RoPE scaling");
  expect_refused(with([](auto& b) { b.f32("llama.rope.scaling.factor", 8); }), unsupported,
                 "RoPE scaling");
  expect_refused(with([](auto& b) { b.f32("llama.rope.scale_linear", 2); }), unsupported,
                 "RoPE scaling 'linear'");
  expect_refused(with([](auto& b) { b.floats("rope_freqs.weight", {2}); }), ErrorKind::kInput,
                 "rope_freqs.weight");
  expect_refused(
      with([](auto& b) { b.tensor("rope_freqs.weight", {1}, 0, std::string("\0\0\x80\xbf", 4)); }),
      ErrorKind::kInput, "rope_freqs.weight");
  expect_refused(with([](auto& b) { b.u32("llama.rope.dimension_count", 1); }), unsupported,
                 "part of the head");
  expect_refused(with([](auto& b) { b.u32("llama.expert_count", 8); }), unsupported, "experts");
  expect_refused(with([](auto& b) { b.u32("llama.attention.sliding_window", 128); }), unsupported,
                 "sliding");
  expect_refused(with([](auto& b) { b.u32("llama.attention.value_length", 4); }), unsupported,
                 "value dimension");
  expect_refused(with([](auto& b) { b.floats("blk.0.attn_q_norm.weight", {2}); }), unsupported,
                 "attn_q_norm");
}

TEST(HostileGguf, RefusesMoreTokensThanTheEmbeddingHas) {
  const test::TemporaryFile file;
  file.write(tiny_model());
  EXPECT_EQ(Checkpoint::open(file.path())->tokenizer().size(), 3);
  file.write(tiny_model("llama", {}, {"a", "b", "ab", "c"}));
  const auto checkpoint = Checkpoint::open(file.path());
  try {
    checkpoint->tokenizer();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInput);
    EXPECT_NE(std::string(error.what()).find("4 tokens, but the embedding only 3"),
              std::string::npos)
        << error.what();
  }
  file.write(tiny_model("llama", {}, {"a", "b"}, {}));
  EXPECT_EQ(Checkpoint::open(file.path())->tokenizer().size(), 2);  // rows may be padding
}

TEST(HostileGguf, RefusesWrongMetadata) {
  const auto without = [](const std::string& key, const std::string& replacement) {
    std::string bytes = tiny_model();
    bytes.replace(bytes.find(key), key.size(), replacement);
    return bytes;
  };
  expect_refused(without("llama.block_count", "llama.block_kount"), ErrorKind::kInput,
                 "llama.block_count");
  expect_refused(without("blk.0.ffn_up.weight", "blk.9.ffn_up.weight"), ErrorKind::kInput,
                 "blk.0.ffn_up.weight");
  expect_refused(without("token_embd", "token_embt"), ErrorKind::kInput, "token_embd");
  expect_refused(tiny_model("qwen2"), ErrorKind::kInput, "attn_q.bias");
  const auto with_value = [](const std::string& key, std::uint32_t value) {
    std::string bytes = tiny_model();
    const std::size_t at = bytes.find(key) + key.size() + 4;
    bytes.replace(at, 4, reinterpret_cast<const char*>(&value), 4);
    return bytes;
  };
  for (const char* key : {"llama.block_count", "llama.embedding_length",
                          "llama.feed_forward_length", "llama.attention.head_count"}) {
    for (const std::uint32_t value : {0u, 3u, 1u << 20, 1u << 31, ~0u}) {
      if (std::string(key) == "llama.attention.head_count" && value == 0) continue;
      const test::TemporaryFile file;
      EXPECT_FALSE(survives(file, with_value(key, value), Depth::kModel)) << key << " " << value;
    }
  }
  for (const float epsilon : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    expect_refused(
        with_value("llama.attention.layer_norm_rms_epsilon", std::bit_cast<std::uint32_t>(epsilon)),
        ErrorKind::kInput, "layer_norm_rms_epsilon");
  }
}

}  // namespace
}  // namespace sw
