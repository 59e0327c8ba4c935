#include "dataset/scorers.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "dataset/jsonl.hpp"
#include "dataset/longbench.hpp"
#include "dataset/python_text.hpp"
#include "temporary_file.hpp"

namespace sw {
namespace {

using nlohmann::json;
using test::error_of;
using test::TemporaryFile;
using testing::HasSubstr;
using Texts = std::vector<std::string>;

json read_json(const std::string& path) {
  std::ifstream file(path);
  return json::parse(file);
}

const json& goldens() {
  static const json file = read_json(SW_TEST_DIR "/dataset/scorer_goldens.json");
  return file;
}

double longbench(std::string_view task, std::string_view prediction, const Texts& references,
                 const Texts& classes = {}) {
  return longbench_scorer(task).score(prediction, references, classes);
}

TEST(Scorers, EqualTheDefinitionsOnHostileTexts) {
  const std::map<std::string, const Scorer*> scorers = {
      {"qa_f1", &longbench_scorer("hotpotqa")},
      {"rouge_l", &longbench_scorer("gov_report")},
      {"count", &longbench_scorer("passage_count")},
      {"retrieval", &longbench_scorer("passage_retrieval_en")},
      {"classification", &longbench_scorer("trec")},
      {"code_similarity", &longbench_scorer("lcc")},
      {"code_similarity_difflib", &longbench_scorer("lcc", CodeRatio::kDifflib)}};
  std::set<std::string> seen;
  for (const json& golden : goldens().at("cases")) {
    const std::string metric = golden.at("metric");
    const Scorer& scorer = *scorers.at(metric);
    seen.insert(metric);
    EXPECT_EQ(scorer.name, metric);
    EXPECT_EQ(scorer.score(golden.at("pred").get<std::string>(), golden.at("refs").get<Texts>(),
                           golden.at("classes").get<Texts>()),
              golden.at("score").get<double>())
        << golden.dump().substr(0, 600);
  }
  EXPECT_EQ(seen.size(), scorers.size());
}

TEST(Scorers, CharactersAreThoseOfPython) {
  std::map<std::string, std::uint64_t> sums;
  const auto lower = [](const std::u32string& text) { return python_lower(text); };
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    if (is_python_word(c)) sums["word"] += c;
    if (is_python_digit(c)) sums["digit"] += c;
    if (is_python_space(c)) sums["space"] += c;
    for (const char32_t d : lower({c})) sums["lower"] += std::uint64_t{c} * d;
    if (lower({c, U'Σ'}).back() == U'ς') sums["before_sigma"] += c;
    if (lower({U'A', c, U'Σ'}).back() == U'ς') sums["between_sigma"] += c;
    if (lower({U'A', U'Σ', c})[1] == U'ς') sums["behind_sigma"] += c;
    if (lower({U'A', U'Σ', c, U'A'})[1] == U'ς') sums["behind_sigma_a"] += c;
  }
  EXPECT_EQ(sums, goldens().at("points").get<decltype(sums)>());
}

TEST(Scorers, Ruler) {
  for (const json& golden : goldens().at("ruler")) {
    const std::string prediction = golden.at("pred");
    const Texts references = golden.at("refs");
    EXPECT_EQ(ruler_scorer("vt").score(prediction, references, {}), golden.at("all")) << golden;
    EXPECT_EQ(ruler_scorer("qa_1").score(prediction, references, {}), golden.at("part")) << golden;
  }
  for (const char* task : {"niah", "niah_multikey_3_4096", "vt_16384", "cwe", "fwe_4096"}) {
    EXPECT_EQ(ruler_scorer(task).name, "string_match_all") << task;
  }
  EXPECT_EQ(ruler_scorer("qa_2_8192").name, "string_match_part");
  EXPECT_TRUE(ruler_scorer("niah").binary);
  EXPECT_FALSE(ruler_scorer("niah_multivalue").binary);
  EXPECT_TRUE(ruler_scorer("qa_1").binary);
  EXPECT_THAT(error_of(ErrorKind::kUsage, [] { ruler_scorer("niha_single_1"); }),
              HasSubstr("did you mean 'niah'?"));
  EXPECT_NE(error_of(ErrorKind::kUsage, [] { ruler_scorer("vtx"); }), "");
  EXPECT_NE(error_of(ErrorKind::kUsage, [] { ruler_scorer(""); }), "");
}

TEST(Scorers, RoundingIsThatOfPythonAndNumpy) {
  for (const json& golden : goldens().at("rounding")) {
    std::vector<double> scores;
    for (const int percent : golden.at("scores").get<std::vector<int>>()) {
      scores.push_back(percent / 100.0);
    }
    EXPECT_EQ(longbench_task_score(scores), golden.at("task")) << golden;
    EXPECT_EQ(longbench_bucket_score(scores), golden.at("bucket")) << golden;
  }
}

TEST(Scorers, TasksOfLongBench) {
  EXPECT_EQ(longbench_scorer("2wikimqa_e").name, "qa_f1");
  EXPECT_EQ(longbench_scorer("repobench-p").name, "code_similarity");
  EXPECT_EQ(longbench_scorer("qasper", CodeRatio::kDifflib).name, "qa_f1");
  EXPECT_EQ(longbench_scorer("samsum").name, "rouge_l");
  for (const char* task :
       {"multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"}) {
    EXPECT_THAT(error_of(ErrorKind::kUnsupported, [&] { longbench_scorer(task); }),
                HasSubstr("jieba"))
        << task;
  }
  EXPECT_THAT(error_of(ErrorKind::kUsage, [] { longbench_scorer("hotpot_qa_e"); }),
              HasSubstr("did you mean 'hotpotqa'?"));
}

TEST(Scorers, NoReferenceAndNoParagraph) {
  EXPECT_EQ(longbench("hotpotqa", "x", {}), 0.0);
  EXPECT_EQ(ruler_scorer("vt").score("x", {}, {}), 0.0);
  EXPECT_EQ(ruler_scorer("qa").score("x", {}, {}), 0.0);
  EXPECT_THAT(
      error_of(ErrorKind::kInput, [] { longbench("passage_retrieval_en", "7", {"Section 7"}); }),
      HasSubstr("'Section 7' names no paragraph"));
}

TEST(Scorers, BytesThatAreNotUtf8) {
  // Every broken part is one U+FFFD, in both texts.
  EXPECT_EQ(longbench("hotpotqa", "x\xff", {"x\xef\xbf\xbd"}), 1.0);
  EXPECT_EQ(longbench("lcc", "ab\xf0\x9f", {"ab\xc3"}), 1.0);
  EXPECT_NEAR(longbench("gov_report", "\x80 b", {"\x80 b"}), 1.0, 1e-6);
}

TEST(Scorers, FirstLine) {
  for (const char* task : {"trec", "triviaqa_e", "samsum", "lsht"}) {
    EXPECT_EQ(longbench_prediction(task, "\n\n a \nb"), " a ") << task;
    EXPECT_EQ(longbench_prediction(task, "\r\na\n"), "\r") << task;
    EXPECT_EQ(longbench_prediction(task, "\n\n"), "") << task;
    EXPECT_EQ(longbench_prediction(task, ""), "") << task;
  }
  EXPECT_EQ(longbench_prediction("hotpotqa", "\n a \nb"), "\n a \nb");
}

TEST(Scorers, LengthBuckets) {
  EXPECT_EQ(length_bucket(0), "0-4k");
  EXPECT_EQ(length_bucket(3999), "0-4k");
  EXPECT_EQ(length_bucket(4000), "4-8k");
  EXPECT_EQ(length_bucket(7999), "4-8k");
  EXPECT_EQ(length_bucket(8000), "8k+");
}

TEST(Scorers, LongSentencesCostNoMemory) {
  std::string words;
  for (int i = 0; i < 200000; ++i) words += "w ";
  EXPECT_EQ(longbench("gov_report", words, {words}), 0.0);
  EXPECT_EQ(longbench("gov_report", words, {"a b c"}), 0.0);
}

TEST(LongBenchLengths, OneNumberATask) {
  const TemporaryFile file("dataset2maxlen.json", R"({"hotpotqa": 32, "gov_report": 512})");
  const LongBenchLengths lengths(file.path());
  EXPECT_EQ(lengths.max_new_tokens("hotpotqa"), 32);
  EXPECT_EQ(lengths.max_new_tokens("gov_report_e"), 512);
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { lengths.max_new_tokens("hotpot_qa"); }),
              HasSubstr("did you mean 'hotpotqa'?"));
  for (const char* text : {"{", "[]", "3", "{\"a\": \"x\"}", "{\"a\": 0}", "{\"a\": 1.5}",
                           "{\"a\": 18446744073709551615}", "{\"a\": null}"}) {
    const TemporaryFile broken("dataset2maxlen.json", text);
    EXPECT_THAT(error_of(ErrorKind::kInput, [&] { LongBenchLengths{broken.path()}; }),
                HasSubstr("dataset2maxlen.json: not a JSON object of lengths"))
        << text;
  }
}

// Predictions of a model with the scores that the benchmark's own programs gave them.
TEST(PublishedScores, EverySampleAndEveryTask) {
  const std::string folder = test::data_folder() + "/longbench_scores";
  if (!std::filesystem::is_directory(folder)) GTEST_SKIP() << "no benchmark data";
  const json tasks = read_json(folder + "/result.json");
  const json samples = read_json(folder + "/list_result.json");
  std::int64_t compared = 0;
  std::int64_t different = 0;
  for (const auto& [task, expected] : samples.items()) {
    const JsonlFile file(folder + "/" + task + ".jsonl");
    ASSERT_EQ(file.size(), static_cast<std::int64_t>(expected.size())) << task;
    std::vector<double> scores;
    for (std::int64_t i = 0; i < file.size(); ++i) {
      const json record = file.record(i);
      const std::string where = file.where(i);
      const std::string prediction = longbench_prediction(task, text_field(record, "pred", where));
      scores.push_back(longbench(task, prediction, texts_field(record, "answers", where),
                                 texts_field(record, "all_classes", where, {})));
      const double wanted = expected.at(static_cast<std::size_t>(i));
      ++compared;
      if (scores.back() != wanted) ++different;
      EXPECT_EQ(scores.back(), wanted) << where;
    }
    EXPECT_EQ(longbench_task_score(scores), tasks.at(task)) << task;
  }
  EXPECT_EQ(compared, 3750);
  EXPECT_EQ(different, 0);
  RecordProperty("compared", static_cast<int>(compared));
  RecordProperty("different", static_cast<int>(different));
}

}  // namespace
}  // namespace sw
