#include "dataset/jsonl.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "temporary_file.hpp"

namespace sw {
namespace {

using test::error_of;
using test::TemporaryFile;
using testing::HasSubstr;

TEST(Jsonl, IndexesRecordsAndSkipsBlankLines) {
  const TemporaryFile file("a.jsonl", "{\"n\": 1}\n\n  \r\n{\"n\": 2}\r\n{\"n\": 3}");
  const JsonlFile records(file.path());
  ASSERT_EQ(records.size(), 3);
  EXPECT_EQ(records.record(0).at("n"), 1);
  EXPECT_EQ(records.record(1).at("n"), 2);
  EXPECT_EQ(records.record(2).at("n"), 3);
  EXPECT_EQ(records.where(1), file.path() + ":4");
}

TEST(Jsonl, BrokenLineIsNamedAndHidesNoOther) {
  const TemporaryFile file("a.jsonl", "{\"n\": 1}\n{\"n\": \n[1]\n{\"n\": \"\xff\"}\n{\"n\": 5}\n");
  const JsonlFile records(file.path());
  ASSERT_EQ(records.size(), 5);
  EXPECT_EQ(records.record(0).at("n"), 1);
  EXPECT_EQ(records.record(4).at("n"), 5);
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { records.record(1); }), HasSubstr("a.jsonl:2: not"));
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { records.record(2); }),
              HasSubstr("a.jsonl:3: a record must be a JSON object, but it is array"));
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { records.record(3); }), HasSubstr("a.jsonl:4: not"));
}

TEST(Jsonl, DeepNestingIsAnErrorNotACrash) {
  const TemporaryFile file("a.jsonl", std::string(1'000'000, '['));
  const JsonlFile records(file.path());
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { records.record(0); }), HasSubstr(":1: not valid"));
}

TEST(Jsonl, RefusesMissingEmptyAndOutOfRange) {
  EXPECT_THAT(error_of(ErrorKind::kInput, [] { JsonlFile("/nonexistent/x.jsonl"); }),
              HasSubstr("/nonexistent/x.jsonl"));
  const TemporaryFile empty("empty.jsonl", "\n \n");
  EXPECT_THAT(error_of(ErrorKind::kInput, [&] { JsonlFile(empty.path()); }),
              HasSubstr("holds no records"));
  const TemporaryFile file("a.jsonl", "{}\n{}\n");
  const JsonlFile records(file.path());
  EXPECT_THAT(error_of(ErrorKind::kUsage, [&] { records.record(2); }),
              HasSubstr("has no record 2 | records are numbered from 0 to 1"));
  EXPECT_NE(error_of(ErrorKind::kUsage, [&] { records.record(-1); }), "");
}

TEST(Jsonl, FieldsAreChecked) {
  const nlohmann::json record = {
      {"text", "a"}, {"list", {"x", "y"}}, {"mixed", {"x", 1}}, {"none", nullptr},
      {"n", 7},      {"real", 1.5}};
  EXPECT_EQ(text_field(record, "text", "f:1"), "a");
  EXPECT_EQ(text_field(record, "none", "f:1", "z"), "z");
  EXPECT_EQ(int_field(record, "n", "f:1", 0), 7);
  EXPECT_EQ(int_field(record, "absent", "f:1", 3), 3);
  EXPECT_EQ(texts_field(record, "list", "f:1"), (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(texts_field(record, "none", "f:1", {}).empty());
  const auto input_error = [&](auto body) { return error_of(ErrorKind::kInput, body); };
  EXPECT_THAT(input_error([&] { text_field(record, "absent", "f:1"); }),
              HasSubstr("f:1: the field 'absent' is missing | the record has: list, mixed, n"));
  EXPECT_THAT(input_error([&] { text_field(record, "none", "f:1"); }), HasSubstr("is missing"));
  EXPECT_THAT(input_error([&] { text_field(record, "n", "f:1"); }),
              HasSubstr("f:1: the field 'n' must be a string, but it is number"));
  EXPECT_NE(input_error([&] { texts_field(record, "text", "f:1"); }), "");
  EXPECT_NE(input_error([&] { texts_field(record, "mixed", "f:1"); }), "");
  EXPECT_NE(input_error([&] { int_field(record, "real", "f:1", 0); }), "");
}

}  // namespace
}  // namespace sw
