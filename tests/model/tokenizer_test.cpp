#include "model/tokenizer.hpp"

#include <chrono>

#include "core/error.hpp"
#include "support.hpp"

namespace sw {
namespace {

using Ids = std::vector<std::int32_t>;

/// Tokenizer over the golden vocabulary.
Tokenizer make_tokenizer(const nlohmann::json& g, const std::string& pre) {
  test::GgufBuilder b;
  const std::vector<std::string> tokens = g["tokens"];
  const std::vector<std::string> specials = g["specials"];
  std::vector<std::int32_t> types;
  types.reserve(tokens.size());
  for (const auto& t : tokens) {
    types.push_back(std::find(specials.begin(), specials.end(), t) == specials.end() ? 1 : 3);
  }
  b.text("tokenizer.ggml.model", "gpt2");
  b.text("tokenizer.ggml.pre", pre);
  b.texts("tokenizer.ggml.tokens", tokens);
  b.i32s("tokenizer.ggml.token_type", types);
  b.texts("tokenizer.ggml.merges", g["merges"].get<std::vector<std::string>>());
  b.u32("tokenizer.ggml.eos_token_id", 2);
  b.u32("tokenizer.ggml.bos_token_id", 1);
  const test::TemporaryFile file;
  file.write(b.bytes());
  return Tokenizer(Gguf(file.path()));
}

// Expected values: Hugging Face's tokenizers with the same vocabulary and merges.
TEST(Tokenizer, EqualsHuggingFace) {
  const auto g = test::golden("tokenizer.json");
  const std::vector<std::string> strings = g["strings"];
  for (const std::string pre : {"smollm", "gpt2", "qwen2", "llama-bpe"}) {
    const Tokenizer tokenizer = make_tokenizer(g, pre);
    for (std::size_t i = 0; i < strings.size(); ++i) {
      SCOPED_TRACE(pre + ": " + strings[i]);
      const Ids plain = tokenizer.encode(strings[i], SpecialText::kPlain);
      EXPECT_EQ(plain, g["plain"][pre][i].get<Ids>());
      EXPECT_EQ(tokenizer.encode(strings[i], SpecialText::kParse), g["parsed"][pre][i].get<Ids>());
      EXPECT_EQ(tokenizer.decode(plain), strings[i]);
    }
  }
}

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const Tokenizer tokenizer(Gguf(test::golden_path("tiny_llama.gguf")));
  EXPECT_EQ(tokenizer.size(), 480);
  EXPECT_EQ(tokenizer.special_id("<|im_start|>"), 1);
  EXPECT_EQ(tokenizer.special_id("<|im"), std::nullopt);
  EXPECT_EQ(tokenizer.bos(), 1);
  EXPECT_FALSE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.end_tokens(), (Ids{0, 2}));
  EXPECT_TRUE(tokenizer.is_end(2));
  EXPECT_FALSE(tokenizer.is_end(1));
  EXPECT_EQ(tokenizer.decode(Ids{1, 2}), "<|im_start|><|im_end|>");
  EXPECT_THROW(tokenizer.decode(Ids{480}), Error);
  EXPECT_THROW(tokenizer.decode(Ids{-1}), Error);
}

TEST(Tokenizer, TakesTheLongestSpecialToken) {
  test::GgufBuilder b;
  std::vector<std::string> tokens;
  for (int c = 0x21; c <= 0x7e; ++c) tokens.push_back(std::string(1, static_cast<char>(c)));
  const auto first = static_cast<std::int32_t>(tokens.size());
  std::vector<std::int32_t> types(tokens.size(), 1);
  for (const char* special : {"<a>", "<a><b>", "<a><b><c", "<"}) {
    tokens.push_back(special);
    types.push_back(3);
  }
  b.text("tokenizer.ggml.model", "gpt2");
  b.text("tokenizer.ggml.pre", "gpt2");
  b.texts("tokenizer.ggml.tokens", tokens);
  b.i32s("tokenizer.ggml.token_type", types);
  b.texts("tokenizer.ggml.merges", {});
  const test::TemporaryFile file;
  file.write(b.bytes());
  const Tokenizer tokenizer{Gguf(file.path())};
  EXPECT_EQ(tokenizer.encode("<a><b><c", SpecialText::kParse), (Ids{first + 2}));
  EXPECT_EQ(tokenizer.encode("<a><b><", SpecialText::kParse), (Ids{first + 1, first + 3}));
  EXPECT_EQ(tokenizer.encode("<a><a>", SpecialText::kParse), (Ids{first, first}));
  EXPECT_EQ(tokenizer.encode("<a", SpecialText::kParse), (Ids{first + 3, 'a' - 0x21}));
  EXPECT_EQ(tokenizer.encode("<a>", SpecialText::kPlain),
            (Ids{'<' - 0x21, 'a' - 0x21, '>' - 0x21}));
  // The space and the bytes beyond ASCII have no token in this vocabulary.
  EXPECT_EQ(tokenizer.encode("a é b", SpecialText::kPlain), (Ids{'a' - 0x21, 'b' - 0x21}));
}

// As in the library, and in llama.cpp: what is not special is found in documents too.
TEST(Tokenizer, FindsUserDefinedTokensInPlainText) {
  test::GgufBuilder b;
  b.text("tokenizer.ggml.model", "gpt2");
  b.text("tokenizer.ggml.pre", "gpt2");
  b.texts("tokenizer.ggml.tokens", {"a", "b", "<", ">", "<a>", "<b>"});
  b.i32s("tokenizer.ggml.token_type", {1, 1, 1, 1, 3, 4});
  b.texts("tokenizer.ggml.merges", {});
  const test::TemporaryFile file;
  file.write(b.bytes());
  const Tokenizer tokenizer{Gguf(file.path())};
  EXPECT_EQ(tokenizer.encode("<a><b>", SpecialText::kPlain), (Ids{2, 0, 3, 5}));
  EXPECT_EQ(tokenizer.encode("<a><b>", SpecialText::kParse), (Ids{4, 5}));
}

TEST(Tokenizer, KeepsInvalidUtf8) {
  const auto g = test::golden("tokenizer.json");
  for (const std::string pre : {"smollm", "gpt2", "qwen2", "llama-bpe"}) {
    const Tokenizer tokenizer = make_tokenizer(g, pre);
    for (const std::string& text :
         {std::string("\xff"), std::string("ab\x80 cd"), std::string("\xc3"),
          std::string("x\xe2\x82"), std::string("\xc0\xaf"), std::string("\xed\xa0\x80 y"),
          std::string("\xf5\x80\x80\x80"), std::string("\xf0\x9f\x98"),
          std::string("a\0b\xfe", 4)}) {
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, SpecialText::kPlain)), text);
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, SpecialText::kParse)), text);
    }
    // A broken byte ends the word before it and does not touch the words around it.
    Ids expected = tokenizer.encode("the", SpecialText::kPlain);
    const Ids broken = tokenizer.encode("\xff", SpecialText::kPlain);
    ASSERT_EQ(broken.size(), 1u);
    expected.push_back(broken[0]);
    const Ids rest = tokenizer.encode("the", SpecialText::kPlain);
    expected.insert(expected.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokenizer.encode("the\xffthe", SpecialText::kPlain), expected);
  }
}

TEST(Tokenizer, IsNotQuadratic) {
  const Tokenizer tokenizer(Gguf(test::golden_path("tiny_qwen2.gguf")));
  const auto start = std::chrono::steady_clock::now();
  for (const char* unit : {"a", " ", "<", "\n", "1", "\xff", "th"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    for (const std::string& t : {text, text + "x"}) {
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(t, SpecialText::kParse)), t);
    }
  }
  // Quadratic time would be hours; the bound leaves room for sanitizers.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(120));
}

TEST(Tokenizer, RefusesWrongTables) {
  const auto g = test::golden("tokenizer.json");
  EXPECT_THROW(make_tokenizer(g, "tekken"), Error);
  auto missing = g;
  missing["merges"].push_back("xq zj");
  EXPECT_THROW(make_tokenizer(missing, "gpt2"), Error);
  for (const char* merge : {"", " ", "ab", "a ", " a"}) {
    auto bad = g;
    bad["merges"].push_back(merge);
    EXPECT_THROW(make_tokenizer(bad, "gpt2"), Error) << merge;
  }
  test::GgufBuilder b;
  b.text("tokenizer.ggml.model", "gpt2");
  b.texts("tokenizer.ggml.tokens", {"a", "b"});
  b.texts("tokenizer.ggml.merges", {});
  b.i32s("tokenizer.ggml.token_type", {1});
  const test::TemporaryFile file;
  file.write(b.bytes());
  EXPECT_THROW(Tokenizer(Gguf(file.path())), Error);
}

}  // namespace
}  // namespace sw
