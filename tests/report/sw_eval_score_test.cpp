// The command `sw-eval score` from outside: exit codes, messages, files.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;

constexpr const char* kGood =
    R"({"pred": "The cat.", "answers": ["dog", "a cat"], "all_classes": null, "length": 3999}
{"pred": "x", "answers": ["x y"], "all_classes": null, "length": 9000}
)";

class SwEvalScore : public ::testing::Test {
 protected:
  SwEvalScore() { std::filesystem::create_directory(folder_.file("pred")); }

  void put(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.file("pred/" + name), std::ios::binary) << text;
  }
  CommandResult score(const std::string& arguments) const {
    return testing::run_command("cd '" + folder_.path() + "' && '" SW_BIN_DIR "/sw-eval' score " +
                                arguments);
  }
  json report(const std::string& name = "out.json") const {
    std::ifstream file(folder_.file(name));
    return json::parse(file);
  }
  void expect_valid() const {
    if (!testing::python_has("jsonschema")) return;
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder_.file("out.json")).output, "");
  }
  /// Exit code and words of the message for `text` as the only file of predictions.
  void expect_error(const std::string& name, const std::string& text, int code,
                    const std::vector<std::string>& words,
                    const std::string& benchmark = "--longbench") const {
    put(name, text);
    const CommandResult result = score("--predictions pred " + benchmark + " -o out");
    EXPECT_EQ(result.code, code) << text << "\n" << result.output;
    for (const std::string& word : words) {
      EXPECT_NE(result.output.find(word), std::string::npos) << word << " in\n" << result.output;
    }
    EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
    std::filesystem::remove(folder_.file("pred/" + name));
  }

  testing::TemporaryFolder folder_;
};

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

TEST_F(SwEvalScore, ReportAndTable) {
  put("hotpotqa.jsonl", kGood);
  put("triviaqa.jsonl",
      R"({"pred": "\nyes\nno", "answers": ["Yes!"], "all_classes": null, "length": 1})");
  put("notes.txt", "not predictions");
  const CommandResult result = score("--predictions pred --longbench -o out");
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "hotpotqa  qa_f1         2   83.33  [66.67, 100.00]");
  expect_contains(result, "average                     91.67");
  const json out = report();
  ASSERT_EQ(out.at("tasks").size(), 2u);
  const json& task = out.at("tasks")[0];
  EXPECT_EQ(task.at("task"), "hotpotqa");
  EXPECT_EQ(task.at("score"), 83.33);
  EXPECT_EQ(task.at("samples"), 2);
  EXPECT_EQ(task.at("scores"), json({1.0, 2.0 / 3.0}));
  EXPECT_TRUE(task.at("buckets").empty());
  EXPECT_EQ(out.at("tasks")[1].at("score"), 100.0);
  EXPECT_TRUE(out.at("tasks")[1].at("interval").at("low").is_null());
  EXPECT_NEAR(out.at("average").at("mean").get<double>(), (250.0 / 3.0 + 100.0) / 2.0, 1e-9);
  EXPECT_EQ(out.at("command")[1], "score");
  expect_valid();
}

TEST_F(SwEvalScore, BucketsOfLongBenchE) {
  put("hotpotqa.jsonl", kGood);
  const CommandResult result = score("--predictions pred --longbench-e -o out");
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "  0-4k");
  const json buckets = report().at("tasks")[0].at("buckets");
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].at("score"), 100.0);
  EXPECT_TRUE(buckets[1].at("score").is_null());
  EXPECT_EQ(buckets[2].at("score"), 66.67);
  EXPECT_EQ(report().at("benchmark"), "longbench-e");
  expect_valid();
}

TEST_F(SwEvalScore, ChineseTasksAreSkippedWithTheReason) {
  put("hotpotqa.jsonl", kGood);
  put("dureader.jsonl", "not even read");
  const CommandResult result = score("--predictions pred --longbench -o out");
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "skipped: dureader");
  expect_contains(result, "jieba");
  EXPECT_EQ(report().at("tasks")[0].at("status"), "skipped");
  expect_valid();
  std::filesystem::remove(folder_.file("pred/hotpotqa.jsonl"));
  const CommandResult nothing = score("--predictions pred --longbench --force -o out");
  EXPECT_EQ(nothing.code, 1);
  expect_contains(nothing, "nothing to report");
}

TEST_F(SwEvalScore, CodeRatios) {
  put("lcc.jsonl", R"({"pred": "abxcd(y", "answers": ["(yabcd"], "length": 1})");
  EXPECT_EQ(score("--predictions pred --longbench -o out").code, 0);
  EXPECT_EQ(report().at("tasks")[0].at("metric"), "code_similarity");
  EXPECT_EQ(score("--predictions pred --longbench --code-ratio difflib --force -o out").code, 0);
  EXPECT_EQ(report().at("tasks")[0].at("metric"), "code_similarity_difflib");
  EXPECT_EQ(score("--predictions pred --longbench --code-ratio x --force -o out").code, 2);
  expect_valid();
}

TEST_F(SwEvalScore, ClassesAreThoseOfTheLastRecord) {
  put("trec.jsonl", R"({"pred": "Date or Food", "answers": ["Food"], "all_classes": ["Food"]}
{"pred": "x", "answers": ["Food"], "all_classes": ["Food", "Date"]})");
  EXPECT_EQ(score("--predictions pred --longbench -o out").code, 0);
  EXPECT_EQ(report().at("tasks")[0].at("scores"), json({0.5, 0.0}));
}

TEST_F(SwEvalScore, JsonOnStandardOutput) {
  put("hotpotqa.jsonl", kGood);
  const CommandResult result = score("--predictions pred --longbench --json");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(json::parse(result.output).at("tasks").size(), 1u);
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
}

TEST_F(SwEvalScore, BrokenFilesAreNamedWithTheirLine) {
  const std::string good = kGood;
  const std::string file = "hotpotqa.jsonl";
  expect_error(file, good + "\n{\"pred\": ", 1, {"pred/hotpotqa.jsonl:4: not valid JSON"});
  expect_error(file, good + "[]\n", 1, {"hotpotqa.jsonl:3: a record must be a JSON object"});
  expect_error(file, R"({"pred": "x"})", 1, {"hotpotqa.jsonl:1: the field 'answers' is missing"});
  expect_error(file, R"({"answers": ["x"]})", 1, {":1: the field 'pred' is missing"});
  expect_error(file, R"({"pred": "x", "answers": []})", 1, {":1: the field 'answers' is empty"});
  expect_error(file, R"({"pred": "x", "answers": "x"})", 1, {":1: the field 'answers' must be"});
  expect_error(file, R"({"pred": 7, "answers": ["x"]})", 1, {":1: the field 'pred' must be"});
  expect_error(file, "{\"pred\": \"\xff\", \"answers\": [\"x\"]}", 1, {":1: not valid JSON"});
  expect_error(file, "\n \n", 1, {"holds no records"});
  expect_error(file, R"({"pred": "x", "answers": ["x"]})", 1, {":1: no length", "--longbench-e"},
               "--longbench-e");
  expect_error("passage_retrieval_en.jsonl", R"({"pred": "1", "answers": ["first"]})", 1,
               {"passage_retrieval_en.jsonl:1: the reference 'first' names no paragraph"});
  expect_error("trec.jsonl", R"({"pred": "1", "answers": ["x"], "all_classes": null})", 1,
               {"trec.jsonl:1: the field 'all_classes' names no class"});
  expect_error("hotpot_qa.jsonl", good, 2, {"hotpot_qa.jsonl", "did you mean 'hotpotqa'?"});
}

TEST_F(SwEvalScore, UsageAndFolders) {
  put("hotpotqa.jsonl", kGood);
  EXPECT_EQ(score("--predictions pred -o out").code, 2);
  EXPECT_EQ(score("--predictions pred --longbench").code, 2);
  EXPECT_EQ(score("--longbench -o out").code, 2);
  const CommandResult missing = score("--predictions none --longbench -o out");
  EXPECT_EQ(missing.code, 1);
  expect_contains(missing, "'none'");
  std::filesystem::create_directory(folder_.file("empty"));
  const CommandResult empty = score("--predictions empty --longbench -o out");
  EXPECT_EQ(empty.code, 1);
  expect_contains(empty, "holds no .jsonl file");
  EXPECT_EQ(score("--predictions pred --longbench -o no/such/out").code, 1);
  EXPECT_EQ(score("--predictions pred --longbench --json > /dev/full").code, 1);
}

TEST_F(SwEvalScore, NothingIsOverwrittenWithoutForce) {
  put("hotpotqa.jsonl", kGood);
  std::ofstream(folder_.file("out.json")) << "mine";
  const CommandResult result = score("--predictions pred --longbench -o out");
  EXPECT_EQ(result.code, 1);
  expect_contains(result, "--force");
  std::ifstream file(folder_.file("out.json"));
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "mine");
  EXPECT_EQ(score("--predictions pred --longbench --force -o out.json").code, 0);
  EXPECT_EQ(report().at("tasks").size(), 1u);
}

TEST_F(SwEvalScore, PublishedScores) {
  const char* variable = std::getenv("SW_DATA_DIR");
  const std::string data = variable ? variable : SW_TEST_DIR "/../../shared/data";
  const std::string folder = data + "/longbench_scores";
  if (!std::filesystem::is_directory(folder)) GTEST_SKIP() << "no benchmark data";
  std::ifstream file(folder + "/result.json");
  const json expected = json::parse(file);
  const CommandResult result = score("--predictions '" + folder + "' --longbench -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  const json out = report();
  EXPECT_EQ(out.at("tasks").size(), expected.size());
  for (const json& task : out.at("tasks")) {
    EXPECT_EQ(task.at("score"), expected.at(task.at("task").get<std::string>())) << task.at("task");
  }
  expect_valid();
}

}  // namespace
}  // namespace sw
