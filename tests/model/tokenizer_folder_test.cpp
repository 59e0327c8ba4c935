#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/sha256.hpp"
#include "model/tokenizer.hpp"
#include "support.hpp"

// Tokenizers of Hugging Face folders against the `tokenizers` library
// (golden/tokenizers/, written by make_tokenizer_goldens.py).

namespace sw {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

constexpr const char* kFamilies[] = {"llama3", "qwen2", "qwen3", "smollm2", "gpt2",
                                     "o200k",  "mixed", "kept",  "unknown"};

std::string golden_folder(const std::string& name) {
  return test::golden_path("tokenizers/" + name);
}

json golden_state(const std::string& name) {
  return test::golden("tokenizers/" + name + "/tokenizer.json");
}

class Family : public ::testing::TestWithParam<const char*> {};

TEST_P(Family, EqualsHuggingFace) {
  const std::string name = GetParam();
  const json expected = test::golden("tokenizers/" + name + "/ids.json");
  const std::vector<std::string> corpus = test::golden("tokenizers/corpus.json");
  const Tokenizer tokenizer = Tokenizer::from_folder(golden_folder(name));
  EXPECT_EQ(tokenizer.adds_bos(), expected["bos"].get<bool>());
  ASSERT_EQ(expected["plain"].size(), corpus.size());
  for (std::size_t i = 0; i < corpus.size(); ++i) {
    SCOPED_TRACE(corpus[i]);
    const Ids plain = tokenizer.encode(corpus[i], SpecialText::kPlain);
    const Ids parsed = tokenizer.encode(corpus[i], SpecialText::kParse);
    EXPECT_EQ(plain, expected["plain"][i].get<Ids>());
    EXPECT_EQ(parsed, expected["parsed"][i].get<Ids>());
    if (expected["lossy"]) continue;
    EXPECT_EQ(tokenizer.decode(plain), expected["normalized"][i].get<std::string>());
    EXPECT_EQ(tokenizer.decode(parsed), expected["normalized"][i].get<std::string>());
  }
}

/// The families that have a token for every byte: all but the last, "unknown".
class ByteFamily : public Family {};

TEST_P(ByteFamily, KeepsInvalidUtf8) {
  const Tokenizer tokenizer = Tokenizer::from_folder(golden_folder(GetParam()));
  const Ids the = tokenizer.encode("the", SpecialText::kPlain);
  const std::vector<std::string> broken = {"\xff",         "\x80", "\xc3",         "\xe2\x82",
                                           "\xf0\x9f\x98", "\xc0", "\xed\xa0\x80", "\xf5"};
  for (const std::string& bytes : broken) {
    Ids expected = the;
    for (const char byte : bytes) {
      const Ids id = tokenizer.encode(std::string(1, byte), SpecialText::kPlain);
      ASSERT_EQ(id.size(), 1u);
      EXPECT_EQ(tokenizer.decode(id), std::string(1, byte));
      expected.insert(expected.end(), id.begin(), id.end());
    }
    expected.insert(expected.end(), the.begin(), the.end());
    for (const SpecialText mode : {SpecialText::kPlain, SpecialText::kParse}) {
      EXPECT_EQ(tokenizer.encode("the" + bytes + "the", mode), expected);
    }
  }
}

// Quadratic time would be minutes; sanitizers take ten times as long.
TEST_P(Family, IsFastOnLongRuns) {
  const Tokenizer tokenizer = Tokenizer::from_folder(golden_folder(GetParam()));
  for (const char* unit : {"a", " ", "\n", "1", "\xff", "\xcc\x81\xcc\xa3", " \n", "!"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    text += "x";
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(tokenizer.encode(text, SpecialText::kParse).empty());
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    EXPECT_LT(time.count(), 20) << unit;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Family, ::testing::ValuesIn(kFamilies),
                         [](const auto& family) { return std::string(family.param); });
INSTANTIATE_TEST_SUITE_P(All, ByteFamily,
                         ::testing::ValuesIn(std::begin(kFamilies), std::end(kFamilies) - 1),
                         [](const auto& family) { return std::string(family.param); });

TEST(TokenizerFolder, ReadsTheFilesBeside) {
  const test::TemporaryFolder folder;
  json state = golden_state("llama3");
  folder.write("tokenizer.json", state.dump());
  const auto id = [&](const char* text) {
    for (const json& token : state["added_tokens"]) {
      if (token["content"] == text) return token["id"].get<std::int32_t>();
    }
    return -1;
  };
  const std::int32_t bos = id("<|begin_of_text|>");
  const std::int32_t end = id("<|end_of_text|>");
  const std::int32_t eot = id("<|eot_id|>");
  EXPECT_EQ(Tokenizer::from_folder(folder.path()).bos(), bos);
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "the"})");
  folder.write("generation_config.json", R"({"eos_token_id": [5, 9]})");
  const Tokenizer tokenizer = Tokenizer::from_folder(folder.path());
  const Ids the = tokenizer.encode("the", SpecialText::kPlain);
  ASSERT_EQ(the.size(), 1u);
  EXPECT_EQ(tokenizer.bos(), bos);
  EXPECT_TRUE(tokenizer.adds_bos());
  EXPECT_EQ(tokenizer.end_tokens(), (Ids{5, 9, the[0], end, eot}));
  EXPECT_TRUE(tokenizer.is_end(9));

  folder.write("tokenizer_config.json", R"({"add_bos_token": false, "bos_token": null})");
  folder.write("generation_config.json", R"({"eos_token_id": 7})");
  const Tokenizer other = Tokenizer::from_folder(folder.path());
  EXPECT_FALSE(other.adds_bos());
  EXPECT_EQ(other.end_tokens(), (Ids{7, end, eot}));

  state["post_processor"] = nullptr;
  folder.write("tokenizer.json", state.dump());
  folder.write("tokenizer_config.json", R"({"add_bos_token": true, "bos_token": "<|eot_id|>"})");
  EXPECT_EQ(Tokenizer::from_folder(folder.path()).bos(), eot);
  EXPECT_TRUE(Tokenizer::from_folder(folder.path()).adds_bos());
}

/// The error for a folder with this tokenizer.json; fails the test when there is none.
void expect_error(const test::TemporaryFolder& folder, ErrorKind kind, const std::string& part) {
  try {
    Tokenizer::from_folder(folder.path());
    ADD_FAILURE() << "no error that names " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(folder.path()), std::string::npos) << error.what();
  }
}

void expect_error(const std::string& text, ErrorKind kind, const std::string& part) {
  const test::TemporaryFolder folder;
  folder.write("tokenizer.json", text);
  expect_error(folder, kind, part);
}

TEST(TokenizerFolder, RefusesHostileText) {
  const auto input = ErrorKind::kInput;
  expect_error(test::TemporaryFolder(), input, "tokenizer.json");
  for (const char* text : {"", "{", "nonsense", "\xff", "{\"a\": \"\xc3\"}", "{\"a\": 1e999}"}) {
    expect_error(text, input, "is not JSON");
  }
  expect_error("[1]", input, "is not a JSON object");
  expect_error(R"({"model": {"vocab": {"a": 0, "a": 1}}})", input, "twice");
  expect_error("{\"a\": " + std::string(200'000, '['), input, "nested");
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += R"({"a":)";
  expect_error(deep, input, "nested");
  expect_error("{}", input, "model");
  for (const char* model : {"1", "\"BPE\"", "[]", "null", "{}"}) {
    expect_error(std::string(R"({"model": )") + model + "}", input, "'");
  }
  const std::string full = golden_state("gpt2").dump();
  for (std::size_t size = 0; size < full.size(); size += 997) {
    expect_error(full.substr(0, size), input, "is not JSON");
  }
}

TEST(TokenizerFolder, RefusesHostileTables) {
  struct Case {
    std::string patch;  ///< JSON patch on a good file
    ErrorKind kind;
    std::string part;
  };
  const auto input = ErrorKind::kInput;
  const auto unsupported = ErrorKind::kUnsupported;
  const auto set = [](const std::string& path, const std::string& value) {
    return R"([{"op": "add", "path": ")" + path + R"(", "value": )" + value + "}]";
  };
  const auto remove = [](const std::string& path) {
    return R"([{"op": "remove", "path": ")" + path + "\"}]";
  };
  const std::string split = R"({"type": "Split", "behavior": "Isolated", "pattern": )";
  const auto pattern = [&](const std::string& regex) {
    return set("/pre_tokenizer/pretokenizers/0",
               split + R"({"Regex": )" + json(regex).dump() + "}}");
  };
  const std::vector<Case> cases = {
      {remove("/model/vocab"), input, "vocab"},
      {remove("/model/merges"), input, "merges"},
      {set("/model/vocab", "[]"), input, "model.vocab"},
      {set("/model/vocab", "{}"), input, "but there are 7 tokens"},
      {set("/model/vocab/the", "\"1\""), input, "model.vocab.the"},
      {set("/model/vocab/the", "1.5"), input, "model.vocab.the"},
      {set("/model/vocab/the", "0"), input, "which"},
      {set("/model/vocab/the", "-1"), input, "-1"},
      {set("/model/vocab/the", "-9223372036854775808"), input, "model.vocab.the"},
      {set("/model/vocab/the", "2147483648"), input, "2147483648"},
      {set("/model/vocab/the", "18446744073709551615"), input, "18446744073709551615"},
      {set("/model/vocab/zzzzz", "1000"), input, "1000"},
      {set("/model/vocab/zzzzz", "3"), input, "zzzzz"},
      {set("/model/merges", "{}"), input, "model.merges"},
      {set("/model/merges/5", "7"), input, "model.merges[5]"},
      {set("/model/merges/5", "\"\""), input, "model.merges[5]"},
      {set("/model/merges/5", "\"ab\""), input, "model.merges[5]"},
      {set("/model/merges/5", "\"a b c\""), input, "model.merges[5]"},
      {set("/model/merges/5", "\" b\""), input, "model.merges[5]"},
      {set("/model/merges/5", R"(["a"])"), input, "model.merges[5]"},
      {set("/model/merges/5", R"(["a", 1])"), input, "model.merges[5]"},
      {set("/model/merges/5", R"(["xq", "zj"])"), input, "xq"},
      {set("/model/merges/5", R"(["q", "Z"])"), input, "qZ"},
      {set("/model/type", "\"Unigram\""), unsupported, "Unigram"},
      {set("/model/type", "3"), input, "model.type"},
      {set("/model/dropout", "0.1"), unsupported, "dropout"},
      {set("/model/dropout", "true"), input, "dropout"},
      {set("/model/byte_fallback", "true"), unsupported, "byte_fallback"},
      {set("/model/byte_fallback", "1"), input, "byte_fallback"},
      {set("/model/continuing_subword_prefix", "\"##\""), unsupported, "##"},
      {set("/model/end_of_word_suffix", "\"</w>\""), unsupported, "</w>"},
      {set("/model/ignore_merges", "\"no\""), input, "ignore_merges"},
      {set("/added_tokens", "{}"), input, "added_tokens"},
      {set("/added_tokens/0", "1"), input, "added_tokens[0]"},
      {set("/added_tokens/0/id", "1"), input, "added_tokens[0]"},
      {set("/added_tokens/0/id", "-1"), input, "added_tokens[0].id"},
      {set("/added_tokens/0/id", "99999999999"), input, "added_tokens[0].id"},
      {set("/added_tokens/0/content", "\"\""), input, "content"},
      {set("/added_tokens/0/content", "null"), input, "content"},
      {set("/added_tokens/0/content", "\"the\""), input, "the"},
      {set("/added_tokens/0/special", "1"), input, "special"},
      {remove("/added_tokens/0"), input, "tokens, with the ids from 0 on"},
      {set("/normalizer", R"({"type": "Lowercase"})"), unsupported, "Lowercase"},
      {set("/normalizer",
           R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend"}]})"),
       unsupported, "'normalizer.normalizers[1]' has the type 'Prepend'"},
      {set("/normalizer", "{}"), input, "normalizer"},
      {set("/normalizer", "\"NFC\""), input, "normalizer"},
      {set("/pre_tokenizer", "null"), unsupported, "ByteLevel"},
      {set("/pre_tokenizer", R"({"type": "Metaspace"})"), unsupported, "Metaspace"},
      {set("/pre_tokenizer/pretokenizers", "[]"), unsupported, "ByteLevel"},
      {set("/pre_tokenizer/pretokenizers/-", R"({"type": "Digits"})"), unsupported,
       "'pre_tokenizer.pretokenizers[2]' stands behind ByteLevel"},
      {set("/pre_tokenizer/pretokenizers/0/behavior", "\"MergedWithNext\""), unsupported,
       "MergedWithNext"},
      {set("/pre_tokenizer/pretokenizers/0/pattern", "{}"), input, "pattern"},
      {pattern("("), input, "not a regular expression"},
      {pattern("[a"), input, "not a regular expression"},
      {pattern("a**b("), input, "not a regular expression"},
      {pattern("\\p{Nonsense}"), unsupported, "\\p{Nonsense}"},
      {pattern("\\p{Mn}"), unsupported, "\\p{Mn}"},
      {pattern("a*"), unsupported, "empty text"},
      {pattern("a|"), unsupported, "empty text"},
      {pattern("^a"), unsupported, "'^'"},
      {pattern("a$"), unsupported, "'$'"},
      {pattern("\\bx"), unsupported, "\\b"},
      {pattern("\\w+"), unsupported, "\\w"},
      {pattern("x\\h"), unsupported, "\\h"},
      {pattern("[\\p{L}-x]"), unsupported, "a range of classes"},
      {pattern("[a-\\s]"), unsupported, "a range of classes"},
      {pattern("[\\P{L}]"), unsupported, "\\P{L}"},
      {set("/model/unk_token", "\"<none>\""), input, "<none>"},
      {pattern("(a)\\1"), unsupported, "\\1"},
      {pattern("[a[b]]"), unsupported, "class"},
      {pattern("[a&&b]"), unsupported, "&&"},
      {pattern("(?m:a)"), unsupported, "(?m:"},
      {pattern("(*UTF)a"), unsupported, "(*"},
      {pattern("a{,3}b"), unsupported, "{"},
      {pattern("a{2}+"), unsupported, "}+"},
      {pattern("x\\"), input, "not a regular expression"},
      {set("/decoder", R"({"type": "WordPiece"})"), unsupported, "WordPiece"},
      {set("/post_processor", R"({"type": "BertProcessing"})"), unsupported, "BertProcessing"},
      {set("/post_processor", R"({"type": "TemplateProcessing", "single": []})"), input,
       "template"},
      {set("/post_processor",
           R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]})"),
       input, "<s>"},
  };
  json good = golden_state("qwen3");
  // The vocabulary lacks a byte, for which there is no unknown token.
  good["model"]["vocab"]["no byte"] = good["model"]["vocab"]["!"];
  good["model"]["vocab"].erase("!");
  good["model"]["merges"] = json::array();
  const json all = golden_state("qwen3");
  for (const json& merge : all["model"]["merges"]) {
    if (merge.dump().find('!') == std::string::npos) good["model"]["merges"].push_back(merge);
  }
  const test::TemporaryFolder folder;
  folder.write("tokenizer.json", good.dump());
  EXPECT_NO_THROW(Tokenizer::from_folder(folder.path()));
  for (const Case& c : cases) {
    SCOPED_TRACE(c.patch);
    expect_error(good.patch(json::parse(c.patch)).dump(), c.kind, c.part);
  }
  const std::vector<std::pair<std::string, std::string>> beside = {
      {"tokenizer_config.json", "{"},
      {"tokenizer_config.json", R"({"bos_token": 3})"},
      {"tokenizer_config.json", R"({"bos_token": "<none>"})"},
      {"tokenizer_config.json", R"({"eos_token": {"content": []}})"},
      {"tokenizer_config.json", R"({"add_bos_token": "yes"})"},
      {"generation_config.json", "[]"},
      {"generation_config.json", R"({"eos_token_id": -1})"},
      {"generation_config.json", R"({"eos_token_id": [1, 1000000]})"},
      {"generation_config.json", R"({"eos_token_id": "2"})"},
  };
  for (const auto& [name, text] : beside) {
    SCOPED_TRACE(text);
    const test::TemporaryFolder other;
    other.write("tokenizer.json", good.dump());
    other.write(name, text);
    expect_error(other, ErrorKind::kInput, name);
  }
}

TEST(TokenizerFolder, GivesUpOnAPatternWithoutEnd) {
  json state = golden_state("qwen3");
  state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(?:a+)+[bd]";
  const test::TemporaryFolder folder;
  folder.write("tokenizer.json", state.dump());
  const Tokenizer tokenizer = Tokenizer::from_folder(folder.path());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("aaab aab", SpecialText::kPlain)), "aaab aab");
  try {
    tokenizer.encode(std::string(1000, 'a') + "c", SpecialText::kPlain);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResource);
  }
}

std::string folder_of(const char* variable, const std::string& otherwise) {
  const char* value = std::getenv(variable);
  return value && *value ? value : otherwise;
}

/// The texts that make_tokenizer_goldens.py takes from a file of the data folder.
std::vector<std::string> texts_of(const std::string& path) {
  if (path.ends_with(".txt")) return {read_file(path)};
  std::vector<std::string> texts;
  std::ifstream lines(path);
  for (std::string line; texts.size() < 20 && std::getline(lines, line);) {
    const json record = json::parse(line);
    texts.push_back(record.value("context", "") + "\n\n" +
                    record.value("input", record.value("question", "")));
  }
  return texts;
}

// The vocabularies of real GGUF files on whole books and records of every benchmark; the library's
// ids are kept as checksums.
TEST(TokenizerFiles, BooksAndBenchmarksEqualHuggingFace) {
  const char* home = std::getenv("HOME");
  const std::string models =
      folder_of("SW_MODEL_DIR", std::string(home ? home : "") + "/.cache/sketchwalk/models");
  const std::string data =
      folder_of("SW_DATA_DIR", std::string(SW_TEST_DIR) + "/../../shared/data");
  int compared = 0;
  const json golden = test::golden("tokenizers/data.json");
  for (const auto& [model, files] : golden.items()) {
    const std::string path = models + "/" + model + ".gguf";
    if (!std::filesystem::exists(path)) continue;
    const Tokenizer tokenizer{Gguf(path)};
    for (const auto& [name, expected] : files.items()) {
      const std::string file = data + "/" + name;
      if (!std::filesystem::exists(file)) continue;
      Ids ids;
      for (const std::string& text : texts_of(file)) {
        const Ids more = tokenizer.encode(text, SpecialText::kPlain);
        ids.insert(ids.end(), more.begin(), more.end());
      }
      EXPECT_EQ(ids.size(), expected["count"].get<std::size_t>()) << model << " " << name;
      EXPECT_EQ(sha256(std::as_bytes(std::span(ids))), expected["sha256"]) << model << " " << name;
      ++compared;
    }
  }
  if (compared == 0) GTEST_SKIP() << "there are no models in " << models << " or no " << data;
}

TEST(TokenizerFolder, TakesADashBesideAClass) {
  json state = golden_state("qwen3");
  const test::TemporaryFolder folder;
  for (const char* pattern : {"[-\\s]", "[\\s-]", "[a\\-\\p{N}]", "[^-\\p{L}]"}) {
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern;
    folder.write("tokenizer.json", state.dump());
    EXPECT_NO_THROW(Tokenizer::from_folder(folder.path())) << pattern;
  }
}

TEST(TokenizerFolder, TakesVeryLongRuns) {
  // More steps than PCRE2 allows by itself: each character of a run of spaces is given back.
  const Tokenizer tokenizer = Tokenizer::from_folder(golden_folder("llama3"));
  const std::string spaces(12'000'000, ' ');
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(spaces, SpecialText::kPlain)), spaces);
}

TEST(TokenizerFolder, RefusesAHugeFile) {
  const test::TemporaryFolder folder;
  folder.write("tokenizer.json", "{");
  std::filesystem::resize_file(folder.file("tokenizer.json"), std::uintmax_t{1} << 31);
  expect_error(folder, ErrorKind::kInput, "larger than 64.0 MiB");
}

}  // namespace
}  // namespace sw
