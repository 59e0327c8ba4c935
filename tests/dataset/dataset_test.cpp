#include "dataset/dataset.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using test::TemporaryFile;
using testing::HasSubstr;

TEST(Datasets, KindsByName) {
  for (const char* name : {"text", "longbench", "ruler", "niah"}) {
    EXPECT_EQ(dataset_kind(name).name, name);
  }
  EXPECT_EQ(dataset_kinds().size(), 4u);
  EXPECT_THAT(error_of(ErrorKind::kUsage, [] { dataset_kind("longbemch"); }),
              HasSubstr("did you mean 'longbench'?"));
}

TEST(Datasets, TextFile) {
  const TemporaryFile file("a.txt", "one\r\ntwo \xC3\xA9\n");
  SampleRequest request;
  request.path = file.path();
  const Sample sample = dataset_kind("text").load(request);
  EXPECT_EQ(sample.prompt, "one\r\ntwo \xC3\xA9\n") << "line ends are kept";
  EXPECT_EQ(sample.id, "a.txt");
  EXPECT_FALSE(sample.chat);
  EXPECT_EQ(sample.truncation, Truncation::kTail);
  const TemporaryFile binary("b.txt", "ok\xff");
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_text(binary.path()); }),
              HasSubstr("is not UTF-8: invalid byte at offset 2"));
  const TemporaryFile empty("c.txt", "");
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { read_text(empty.path()); }), HasSubstr("is empty"));
}

TEST(Datasets, LongBenchAndRulerByRequest) {
  const TemporaryFile prompts("dataset2prompt.json", R"({"qasper": "{context} {input}"})");
  const TemporaryFile records(
      "q.jsonl", R"({"input": "q", "context": "c", "answers": ["a"], "dataset": "qasper"})");
  SampleRequest request;
  request.path = records.path();
  request.prompts = prompts.path();
  EXPECT_EQ(dataset_kind("longbench").load(request).prompt, "c q");
  request.record = 1;
  EXPECT_NE(error_of(ErrorKind::kUsage, [&] { dataset_kind("longbench").load(request); }), "");
  const TemporaryFile ruler("cwe.jsonl", R"({"input": "i", "outputs": ["o"]})");
  request = {};
  request.path = ruler.path();
  EXPECT_EQ(dataset_kind("ruler").load(request).prompt, "i");
}

}  // namespace
}  // namespace sw
