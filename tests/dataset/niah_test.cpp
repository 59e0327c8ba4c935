#include "dataset/niah.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using testing::HasSubstr;

std::int64_t words_of(const std::string& text) {
  std::istringstream stream(text);
  std::int64_t words = 0;
  for (std::string word; stream >> word;) ++words;
  return words;
}

TEST(Niah, SameOptionsSameSampleOtherSeedOtherSample) {
  NiahOptions options;
  options.seed = 7;
  const NiahSample a = make_niah(options);
  const NiahSample b = make_niah(options);
  EXPECT_EQ(a.sample.prompt, b.sample.prompt);
  EXPECT_EQ(a.sample.answers, b.sample.answers);
  options.seed = 8;
  const NiahSample c = make_niah(options);
  EXPECT_NE(a.sample.prompt, c.sample.prompt);
  EXPECT_NE(a.sample.answers, c.sample.answers);
}

TEST(Niah, SpansAreExactAndTheOnlyPlaces) {
  for (const std::int64_t needles : {1, 2, 5, 20}) {
    for (const double depth : {0.0, 0.1, 0.5, 0.99, 1.0}) {
      NiahOptions options;
      options.length = 1500;
      options.needles = needles;
      options.depth = depth;
      options.seed = static_cast<std::uint64_t>(needles);
      const NiahSample niah = make_niah(options);
      const std::string& text = niah.sample.prompt;
      ASSERT_EQ(niah.sample.answers.size(), 1u);
      const std::string& answer = niah.sample.answers[0];
      ASSERT_EQ(niah.answer_spans.size(), 1u);
      const ByteSpan span = niah.answer_spans[0];
      EXPECT_EQ(text.substr(span.begin, span.end - span.begin), answer);
      EXPECT_EQ(text.find(answer), span.begin);
      EXPECT_EQ(text.rfind(answer), span.begin);
      EXPECT_NE(text.find(niah.needle), std::string::npos);
      EXPECT_EQ(words_of(answer), 1);
      // The digits of the text are those of the needles.
      EXPECT_EQ(
          std::count_if(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }),
          7 * needles);
      EXPECT_LE(words_of(text), options.length);
      EXPECT_GT(words_of(text), options.length - 40) << "shorter than by one sentence";
      EXPECT_TRUE(text.ends_with(niah.sample.question));
      EXPECT_NE(niah.sample.question.find("archive in "), std::string::npos);
    }
  }
}

TEST(Niah, DepthPlacesTheNeedle) {
  for (const double depth : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    NiahOptions options;
    options.length = 5000;
    options.depth = depth;
    const NiahSample niah = make_niah(options);
    const std::size_t size = niah.sample.prompt.size() - niah.sample.question.size();
    const double at = static_cast<double>(niah.answer_spans[0].begin) / static_cast<double>(size);
    EXPECT_NEAR(at, depth, 0.02);
  }
}

TEST(Niah, MeasureIsRespected) {
  NiahOptions options;
  options.length = 3000;
  const auto bytes = [](const Sample& sample) {
    return static_cast<std::int64_t>(sample.prompt.size() + sample.answer_prefix.size());
  };
  const Sample sample = make_niah(options, bytes).sample;
  EXPECT_LE(bytes(sample), 3000);
  EXPECT_GT(bytes(sample), 2700);
}

TEST(Niah, HaystackIsVariedAndWellFormed) {
  NiahOptions options;
  options.length = 20000;
  const std::string text = make_niah(options).sample.prompt;
  EXPECT_EQ(text.find('{'), std::string::npos);
  EXPECT_EQ(text.find('}'), std::string::npos);
  EXPECT_EQ(text.find("  "), std::string::npos);
  EXPECT_EQ(text.find("\n\n\n"), std::string::npos);
  std::multiset<std::string> sentences;
  std::string sentence;
  for (const char c : text) {
    sentence += c == '\n' ? ' ' : c;
    if (c == '.') {
      sentences.insert(sentence);
      sentence.clear();
    }
  }
  std::size_t repeated = 0;
  for (const std::string& s : sentences) repeated += sentences.count(s) > 1;
  EXPECT_GT(sentences.size(), 1000u);
  EXPECT_LT(static_cast<double>(repeated), 0.1 * static_cast<double>(sentences.size()));
}

TEST(Niah, QuestionCanBeReplaced) {
  NiahOptions options;
  options.question = "Which number belongs to {key}?";
  const Sample sample = make_niah(options).sample;
  EXPECT_THAT(sample.prompt, HasSubstr("\n\nWhich number belongs to "));
  EXPECT_EQ(sample.prompt.back(), '?');
  EXPECT_EQ(sample.answer_prefix, "");
}

TEST(Niah, RefusesOptionsOutOfRange) {
  const auto error = [](auto change) {
    NiahOptions options;
    change(options);
    return error_of(ErrorKind::kUsage, [&] { make_niah(options); });
  };
  EXPECT_THAT(error([](auto& o) { o.depth = 1.5; }), HasSubstr("the depth 1.5 is not in 0..1"));
  EXPECT_NE(error([](auto& o) { o.depth = std::nan(""); }), "");
  EXPECT_NE(error([](auto& o) { o.needles = 0; }), "");
  EXPECT_NE(error([](auto& o) { o.needles = 1 + max_niah_needles(); }), "");
  EXPECT_NE(error([](auto& o) { o.length = -1; }), "");
  EXPECT_THAT(error([](auto& o) { o.length = 20; }), HasSubstr("choose at least "));
  EXPECT_NE(error([](auto& o) { o.length = std::int64_t{1} << 62; }), "");
}

}  // namespace
}  // namespace sw
