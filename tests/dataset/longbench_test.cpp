#include "dataset/longbench.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using test::TemporaryFile;
using testing::HasSubstr;

constexpr const char* kRecord =
    R"({"input": "Who {context}?", "context": "Ann {input} won.", "answers": ["Ann"], )"
    R"("length": 3, "dataset": "hotpotqa_e", "language": "en", "all_classes": null, "_id": "ab"})";

TEST(LongBench, ReadsARecord) {
  const TemporaryFile file("r.jsonl", kRecord);
  const LongBenchRecord record = read_longbench(JsonlFile(file.path()), 0);
  EXPECT_EQ(record.id, "ab");
  EXPECT_EQ(record.dataset, "hotpotqa_e");
  EXPECT_EQ(record.input, "Who {context}?");
  EXPECT_EQ(record.answers, std::vector<std::string>{"Ann"});
  EXPECT_TRUE(record.all_classes.empty());
  EXPECT_EQ(record.length, 3);
}

TEST(LongBench, MissingFieldNamesLineAndField) {
  const TemporaryFile file("r.jsonl",
                           "{\"input\": \"\", \"context\": \"c\", \"answers\": []}\n"
                           "{\"input\": \"\", \"context\": \"c\", \"dataset\": \"x\"}");
  const JsonlFile records(file.path());
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_longbench(records, 0); }),
              HasSubstr("r.jsonl:1: the field 'dataset' is missing"));
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_longbench(records, 1); }),
              HasSubstr("r.jsonl:2: the field 'answers' is missing"));
}

TEST(LongBench, FillsTemplatesAsPythonFormatDoes) {
  const TemporaryFile records("r.jsonl", kRecord);
  const TemporaryFile prompts("dataset2prompt.json",
                              R"({"hotpotqa": "Read {{this}}: {context}\nQ: {input}\nA:",
                                  "lcc": "{context}{other}", "trec": "{context"})");
  LongBenchRecord record = read_longbench(JsonlFile(records.path()), 0);
  const LongBenchPrompts templates(prompts.path());
  const Sample sample = templates.sample(record);
  // What is filled in is not filled in again.
  EXPECT_EQ(sample.prompt, "Read {this}: Ann {input} won.\nQ: Who {context}?\nA:");
  EXPECT_EQ(sample.question, "\nQ: Who {context}?\nA:");
  EXPECT_EQ(sample.dataset, "hotpotqa_e");
  EXPECT_EQ(sample.id, "ab");
  EXPECT_TRUE(sample.chat);
  EXPECT_EQ(sample.truncation, Truncation::kMiddle);

  record.dataset = "lcc";
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { templates.sample(record); }),
              HasSubstr("'{other}...' is neither {context} nor {input}"));
  record.dataset = "trec";
  EXPECT_NE(error_of(ErrorKind::kInput, [&] { templates.sample(record); }), "");
  record.dataset = "hotpot_qa";
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { templates.sample(record); }),
              HasSubstr("did you mean 'hotpotqa'?"));
}

TEST(LongBench, BrokenPromptFiles) {
  for (const char* text : {"{", "[]", "{\"a\": 1}", "\"x\""}) {
    const TemporaryFile file("dataset2prompt.json", text);
    EXPECT_THAT(error_of(ErrorKind::kInput, [&] { LongBenchPrompts{file.path()}; }),
                HasSubstr("dataset2prompt.json: not a JSON object of prompt strings"));
  }
}

TEST(LongBench, TablesAreNotNested) {
  constexpr std::size_t kDeep = 2'000'000;  // no stack is so large
  const std::string deep = "{\"trec\": " + std::string(kDeep, '[') + std::string(kDeep, ']') + "}";
  const test::TemporaryFile file("deep.json", deep);
  const auto lengths = [&] { LongBenchLengths{file.path()}; };
  const auto prompts = [&] { LongBenchPrompts{file.path()}; };
  EXPECT_NE(test::error_of(ErrorKind::kInput, lengths).find("nested too deeply"),
            std::string::npos);
  EXPECT_NE(test::error_of(ErrorKind::kInput, prompts).find("nested too deeply"),
            std::string::npos);
}

TEST(LongBench, TasksAndChat) {
  EXPECT_EQ(longbench_task("2wikimqa_e"), "2wikimqa");
  EXPECT_EQ(longbench_task("passage_retrieval_en"), "passage_retrieval_en");
  for (const char* task : {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}) {
    EXPECT_FALSE(longbench_uses_chat(task)) << task;
  }
  EXPECT_TRUE(longbench_uses_chat("qasper"));
}

TEST(LongBench, PromptFileIsFoundBesideTheRecords) {
  const TemporaryFile file("dataset2prompt.json", "{}");
  const auto folder = std::filesystem::path(file.path()).parent_path();
  EXPECT_EQ(find_longbench_prompts((folder / "qasper.jsonl").string()), file.path());
  EXPECT_EQ(error_of(ErrorKind::kUsage, [] { find_longbench_prompts("/nonexistent/a/b.jsonl"); })
                .substr(0, 24),
            "no dataset2prompt.json n");
}

TEST(LongBench, EveryRecordOfTheBenchmarkReadsAndPrompts) {
  const std::string data = test::data_folder();
  if (data.empty()) GTEST_SKIP() << "no benchmark data; set SW_DATA_DIR";
  const LongBenchPrompts prompts(data + "/longbench_config/dataset2prompt.json");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data + "/longbench")) {
    if (entry.path().extension() != ".jsonl") continue;
    ++files;
    const JsonlFile records(entry.path().string());
    for (std::int64_t i = 0; i < records.size(); ++i) {
      const LongBenchRecord record = read_longbench(records, i);
      const Sample sample = prompts.sample(record);
      ASSERT_FALSE(record.answers.empty()) << records.where(i);
      ASSERT_NE(sample.prompt.find(record.context), std::string::npos) << records.where(i);
      ASSERT_NE(sample.question.find(record.input), std::string::npos) << records.where(i);
      ASSERT_TRUE(sample.prompt.ends_with(sample.question)) << records.where(i);
    }
  }
  EXPECT_GT(files, 10);
}

}  // namespace
}  // namespace sw
