#include "dataset/ruler.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using test::TemporaryFile;
using testing::HasSubstr;

TEST(Ruler, BothLayouts) {
  const TemporaryFile file(
      "niah_single_1.jsonl",
      R"({"index": 4, "input": "text? The number is", "outputs": ["12", "13"], "length": 9})"
      "\n"
      R"({"task": "vt", "context": "A = 1. ", "question": "Which? ", "answer_prefix": "It is", )"
      R"("outputs": ["A"]})"
      "\n"
      R"({"context": "A", "outputs": ["A"]})"
      "\n"
      R"({"index": "x", "input": "A", "outputs": ["A"]})"
      "\n"
      R"({"input": "A"})");
  const JsonlFile records(file.path());
  const Sample whole = read_ruler(records, 0);
  EXPECT_EQ(whole.dataset, "niah_single_1");
  EXPECT_EQ(whole.id, "4");
  EXPECT_EQ(whole.prompt, "text? The number is");
  EXPECT_EQ(whole.question, "");
  EXPECT_EQ(whole.answers, (std::vector<std::string>{"12", "13"}));
  const Sample parts = read_ruler(records, 1);
  EXPECT_EQ(parts.dataset, "vt");
  EXPECT_EQ(parts.id, "1");
  EXPECT_EQ(parts.prompt, "A = 1. Which? ");
  EXPECT_EQ(parts.question, "Which? ");
  EXPECT_EQ(parts.answer_prefix, "It is");
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_ruler(records, 2); }),
              HasSubstr("niah_single_1.jsonl:3: the field 'question' is missing"));
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_ruler(records, 3); }),
              HasSubstr(":4: the field 'index' must be a whole number"));
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_ruler(records, 4); }),
              HasSubstr(":5: the field 'outputs' is missing"));
}

TEST(Ruler, EverySampleOfTheBenchmarkReads) {
  const std::string data = test::data_folder();
  if (data.empty()) GTEST_SKIP() << "no benchmark data; set SW_DATA_DIR";
  for (const char* name :
       {"niah_multikey_3_4096", "niah_multikey_3_32768", "vt_16384", "vt_32768", "cwe_16384"}) {
    const JsonlFile records(data + "/ruler/" + name + ".jsonl");
    for (std::int64_t i = 0; i < records.size(); ++i) {
      const Sample sample = read_ruler(records, i);
      for (const std::string& answer : sample.answers) {
        ASSERT_NE(sample.prompt.find(answer), std::string::npos) << records.where(i);
      }
    }
  }
}

}  // namespace
}  // namespace sw
