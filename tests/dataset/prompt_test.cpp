#include "dataset/prompt.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/text.hpp"
#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using testing::ElementsAre;
using testing::HasSubstr;

using Ids = std::vector<std::int32_t>;

// A tokenizer that is easy to follow: one token for each byte.
PromptCodec byte_codec() {
  PromptCodec codec;
  codec.encode = [](std::string_view text) {
    Ids ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  };
  codec.decode = [](std::span<const std::int32_t> ids) {
    std::string text;
    for (const std::int32_t id : ids) text += static_cast<char>(id);
    return text;
  };
  return codec;
}

std::string spelled(const Prompt& prompt) { return byte_codec().decode(prompt.ids); }

Ids cut(std::int64_t count, std::int64_t limit) {
  Ids ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  const auto [head, tail] = truncate_middle(ids, limit);
  Ids kept(head.begin(), head.end());
  kept.insert(kept.end(), tail.begin(), tail.end());
  return kept;
}

TEST(TruncateMiddle, KeepsHalfFromEachEnd) {
  EXPECT_THAT(cut(5, 5), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(cut(5, 6), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(cut(5, 4), ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(cut(6, 5), ElementsAre(0, 1, 4, 5)) << "as int(max_length / 2) in the benchmark";
  EXPECT_THAT(cut(6, 2), ElementsAre(0, 5));
  EXPECT_THAT(cut(6, 1), ElementsAre());
  EXPECT_THAT(cut(6, 0), ElementsAre());
  EXPECT_THAT(cut(6, -3), ElementsAre());
  EXPECT_THAT(cut(0, 0), ElementsAre());
}

TEST(TokenText, BytesToTokens) {
  const std::vector<std::string> pieces = {"The", " num", "ber", "", " is", " 12", "3."};
  const TokenText text(pieces);
  EXPECT_EQ(text.text(), "The number is 123.");
  for (std::size_t begin = 0; begin < text.text().size(); ++begin) {
    for (std::size_t end = begin + 1; end <= text.text().size(); ++end) {
      // By definition: the first and the last token that share a byte with [begin, end).
      std::int64_t first = -1, last = -1;
      for (std::size_t i = 0, offset = 0; i < pieces.size(); offset += pieces[i++].size()) {
        if (offset < end && offset + pieces[i].size() > begin && !pieces[i].empty()) {
          if (first < 0) first = static_cast<std::int64_t>(i);
          last = static_cast<std::int64_t>(i);
        }
      }
      ASSERT_EQ(text.tokens(begin, end), (TokenRange{first, last + 1})) << begin << " " << end;
    }
  }
}

TEST(TokenText, FindsAnswers) {
  const std::vector<std::string> pieces = {"In", " 19", "61", " 6", " cats", ", six 6", "."};
  const TokenText text(pieces);  // "In 1961 6 cats, six 6."
  const auto find = [&](std::vector<std::string> answers) { return text.find(answers); };
  EXPECT_THAT(find({"6"}), ElementsAre(TokenRange{3, 4}, TokenRange{5, 6}));
  EXPECT_THAT(find({"1961"}), ElementsAre(TokenRange{1, 3}));
  EXPECT_THAT(find({"cat"}), ElementsAre()) << "a part of a word";
  EXPECT_THAT(find({", s"}), ElementsAre());
  EXPECT_THAT(find({" cats"}), ElementsAre(TokenRange{4, 5}));
  EXPECT_THAT(find({"six", "cats, six", "", "dogs"}),
              ElementsAre(TokenRange{4, 6}, TokenRange{5, 6}));
  EXPECT_THAT(text.find(std::vector<std::string>{"6"}, 12), ElementsAre(TokenRange{3, 4}));
}

TEST(TokenText, AnswersInPartsOfCharacters) {
  // "é" (C3 A9) is cut between two tokens.
  const std::vector<std::string> pieces = {"caf", "\xC3", "\xA9 ", "noir"};
  const TokenText text(pieces);
  EXPECT_THAT(text.find(std::vector<std::string>{"café"}), ElementsAre(TokenRange{0, 3}));
  EXPECT_THAT(text.find(std::vector<std::string>{"é"}), ElementsAre(TokenRange{1, 3}));
}

Sample task(const std::string& context, const std::string& question) {
  Sample sample;
  sample.dataset = "task";
  sample.id = "1";
  sample.prompt = context + question;
  sample.question = question;
  return sample;
}

TEST(BuildPrompt, UntouchedWhenItFits) {
  Sample sample = task("the sun is red", " What is red?");
  sample.answers = {"red", "the sun"};
  const Prompt prompt = build_prompt(sample, byte_codec(), 100);
  EXPECT_EQ(spelled(prompt), sample.prompt);
  EXPECT_EQ(prompt.untruncated, 27);
  // "red" in the question is no place that holds the answer.
  EXPECT_THAT(prompt.answer_spans, ElementsAre(TokenRange{0, 7}, TokenRange{11, 14}));
}

TEST(BuildPrompt, MiddleTruncationComesBeforeTheTemplate) {
  PromptCodec codec = byte_codec();
  codec.chat = [](std::string_view text) { return "<u>" + std::string(text) + "<a>"; };
  Sample sample = task("0123456789", "abcdef");
  sample.answer_prefix = "=";
  EXPECT_EQ(spelled(build_prompt(sample, codec, 23)), "<u>0123456789abcdef<a>=");
  EXPECT_EQ(spelled(build_prompt(sample, codec, 17)), "<u>01234bcdef<a>=");
  EXPECT_EQ(spelled(build_prompt(sample, codec, 16)), "<u>0123cdef<a>=");
  EXPECT_EQ(build_prompt(sample, codec, 16).untruncated, 23);
  EXPECT_EQ(spelled(build_prompt(sample, codec, 9)), "<u>0f<a>=");
  EXPECT_THAT(error_of(ErrorKind::kUsage, [&] { build_prompt(sample, codec, 8); }),
              HasSubstr("a context of 8 tokens has no room for the prompt of task 1 | choose a "
                        "longer context; the whole prompt has 23 tokens"));
}

TEST(BuildPrompt, BrokenCharactersAreReplacedAtTheCut) {
  const Sample sample = task("éééé", "éééé");  // 16 bytes
  // Half of 10 is 5 bytes: two characters and half of one, from each end. Each half of a character
  // becomes U+FFFD, which needs three tokens here, so the cut is made again.
  const Prompt prompt = build_prompt(sample, byte_codec(), 10);
  EXPECT_FALSE(find_invalid_utf8(spelled(prompt)));
  EXPECT_LE(prompt.ids.size(), 10u);
}

TEST(BuildPrompt, RunningTextKeepsItsFirstIds) {
  Sample sample = task("0123456789", "");
  sample.truncation = Truncation::kTail;
  sample.chat = false;
  EXPECT_EQ(spelled(build_prompt(sample, byte_codec(), 4)), "0123");
  PromptCodec codec = byte_codec();
  codec.bos = '^';
  EXPECT_EQ(spelled(build_prompt(sample, codec, 4)), "^012");
  EXPECT_EQ(spelled(build_prompt(sample, codec, 11)), "^0123456789");
  codec.chat = [](std::string_view text) { return "<" + std::string(text) + ">"; };
  EXPECT_EQ(spelled(build_prompt(sample, codec, 5)), "<012>") << "a template brings its own BOS";
}

TEST(BuildPrompt, ReplyPrefixWithoutATemplateIsNotGluedToTheText) {
  Sample sample = task("a", "b?");
  sample.answer_prefix = "It is";
  EXPECT_EQ(spelled(build_prompt(sample, byte_codec(), 50)), "ab?\nIt is");
  sample.prompt += " ";
  EXPECT_EQ(spelled(build_prompt(sample, byte_codec(), 50)), "ab? It is");
}

TEST(BuildPrompt, EmptyPromptIsRefused) {
  EXPECT_NE(error_of(ErrorKind::kInput, [] { build_prompt(task("", ""), byte_codec(), 9); }), "");
}

// Expected values from Python: bytes.decode("utf-8", "replace").
TEST(Utf8, InvalidPartsAsPythonReplacesThem) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(to_valid_utf8("a\xC3\xA9z"), "a\xC3\xA9z");
  EXPECT_EQ(to_valid_utf8("\xE4\xBD"), r);
  EXPECT_EQ(to_valid_utf8("\xE4\xBDz"), r + "z");
  EXPECT_EQ(to_valid_utf8("\xA0\xE4"), r + r);
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x98"), r);
  EXPECT_EQ(to_valid_utf8("\xF0\x80\x80\x80"), r + r + r + r);
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(to_valid_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(find_invalid_utf8("ok \xC3\xA9"), std::nullopt);
  EXPECT_EQ(find_invalid_utf8("ok \xC3"), 3u);
}

}  // namespace
}  // namespace sw
