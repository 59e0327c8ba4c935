#include "report/report_file.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/file.hpp"
#include "report/findings.hpp"
#include "report_samples.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using testing::Json;
using testing::trace_cell;
using testing::trace_report;

class ReportFileTest : public ::testing::Test {
 protected:
  ReportFile read(const Json& json) { return read_text(json.dump()); }
  ReportFile read_text(const std::string& text) {
    write_file(folder_.file("r.json"), text, true);
    return ReportFile::read(folder_.file("r.json"));
  }
  /// The message of the error that reading gives.
  std::string refusal(const std::string& text) {
    try {
      read_text(text);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInput);
      EXPECT_FALSE(error.hint().empty());
      return error.what();
    }
    return "";
  }

  testing::TemporaryFolder folder_;
};

TEST_F(ReportFileTest, CellsOfATrace) {
  Json json = trace_report({{"a.h5", "aa"}, {"b.h5", "bb"}});
  json["cells"] = {trace_cell("dense", std::nullopt, 1.0),
                   trace_cell("sketchwalk:preset=release", 0.2, 0.8, "tied", 0.0, 1)};
  const ReportFile report = read(json);
  EXPECT_EQ(report.kind(), ReportKind::kTrace);
  ASSERT_EQ(report.cells().size(), 2u);
  const ReportCell& cell = report.cells()[1];
  EXPECT_EQ(cell.name, "sketchwalk");
  EXPECT_DOUBLE_EQ(*cell.density, 0.2);
  EXPECT_EQ(cell.input, "b.h5");
  EXPECT_DOUBLE_EQ(*report.number(*cell.json, "metrics.mass_recall.mean"), 0.8);
  EXPECT_EQ(report.number(*cell.json, "metrics.cosine.mean"), std::nullopt);
  EXPECT_EQ(report.number(*cell.json, "latency.total.median"), std::nullopt);
  EXPECT_FALSE(report.arrays_path());
}

TEST_F(ReportFileTest, RefusesWhatIsNoReport) {
  for (const char* text : {"", "{", "[]", "3", "null", "{}", R"({"protocol": 3})",
                           R"({"protocol": {"kind": "trace"}})", R"({"protocol": {"kind": 1}})",
                           R"({"protocol": {"kind": "other"}, "schema_version": 1})"}) {
    EXPECT_NE(refusal(text), "") << text;
  }
  EXPECT_THROW(ReportFile::read(folder_.file("none.json")), Error);
  const std::string deep(100000, '[');
  EXPECT_NE(refusal(R"({"cells": )" + deep), "");
  EXPECT_NE(refusal(R"({"schema_version": 1e999})"), "");
}

TEST_F(ReportFileTest, RefusesTruncatedFiles) {
  Json json = trace_report({{"a.h5", "aa"}});
  json["cells"] = {trace_cell("sink_window", 0.1, 0.5)};
  const std::string text = json.dump();
  for (std::size_t size = 0; size < text.size(); size += 11) {
    EXPECT_NE(refusal(text.substr(0, size)), "") << size;
  }
}

TEST_F(ReportFileTest, RefusesNewerVersionsWithAReason) {
  Json json = trace_report({{"a.h5", "aa"}});
  json["schema_version"] = 2;
  const std::string message = refusal(json.dump());
  EXPECT_NE(message.find("schema_version 2"), std::string::npos) << message;
  EXPECT_NE(message.find("up to 1"), std::string::npos) << message;
}

TEST_F(ReportFileTest, FieldsOfAnotherTypeAreErrorsThatNameThem) {
  const auto with = [](auto change) {
    Json json = trace_report({{"a.h5", "aa"}});
    json["cells"] = {trace_cell("sink_window", 0.1, 0.5)};
    change(json);
    return json.dump();
  };
  EXPECT_NE(refusal(with([](Json& j) { j["cells"][0]["input"] = 1; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["cells"][0]["input"] = -1; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["cells"][0]["density"] = "x"; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["cells"][0].erase("status"); })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["cells"][0] = 4; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["cells"] = 4; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["inputs"] = 4; })), "");
  EXPECT_NE(refusal(with([](Json& j) { j["command"] = Json::array({1}); })), "");
  EXPECT_NE(refusal(with([](Json& j) { j.erase("environment"); })), "");
  const ReportFile report =
      read_text(with([](Json& j) { j["cells"][0]["metrics"]["mass_recall"] = 4; }));
  try {
    report.number(*report.cells()[0].json, "metrics.mass_recall.mean");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.mass_recall.mean"), std::string::npos);
  }
}

TEST_F(ReportFileTest, CsvHasEveryScalarAndQuotes) {
  Json json = trace_report({{"a,\"b\".h5", "aa"}});
  json["cells"] = {trace_cell("sink_window", 0.1, 0.5), trace_cell("oracle", 0.1, 0.625, "better")};
  const std::string csv = csv_text(read(json));
  const std::string head = csv.substr(0, csv.find('\n'));
  EXPECT_TRUE(head.starts_with("id,method,density,input,phase,variant,status,reason,")) << head;
  for (const char* column : {"metrics.mass_recall.mean", "realised_density.sparse", "units",
                             "versus_sink_window.verdict"}) {
    EXPECT_NE(head.find(column), std::string::npos) << column;
  }
  EXPECT_NE(csv.find("\"a,\"\"b\"\".h5\""), std::string::npos) << csv;
  EXPECT_NE(csv.find("0.625"), std::string::npos);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 3);
}

TEST_F(ReportFileTest, ShellLinesCanBePasted) {
  EXPECT_EQ(shell_line({"sw-eval", "trace", "a b.h5", "it's", "x=1,y", ""}),
            "sw-eval trace 'a b.h5' 'it'\\''s' x=1,y ''");
}

/// Tone and text of the first finding of a method with these verdicts at 10 and 20%.
Finding first_finding(const ReportFile& report) { return findings(report).at(0); }

TEST_F(ReportFileTest, AMethodThatIsNoBetterIsSaidToBeNoBetter) {
  Json json = trace_report({{"a.h5", "aa"}});
  json["cells"] = {trace_cell("sink_window", 0.1, 0.5),
                   trace_cell("sketchwalk", 0.1, 0.49, "worse", -0.01),
                   trace_cell("sketchwalk", 0.2, 0.6, "tied", 0.0)};
  const Finding none = first_finding(read(json));
  EXPECT_EQ(none.tone, Tone::kBad);
  EXPECT_NE(none.text.find("no better"), std::string::npos) << none.text;
  EXPECT_NE(none.text.find("tied at 20% and worse at 10%"), std::string::npos) << none.text;

  json["cells"][2] = trace_cell("sketchwalk", 0.2, 0.6, "better", 0.02);
  const Finding some = first_finding(read(json));
  EXPECT_EQ(some.tone, Tone::kMixed);
  EXPECT_NE(some.text.find("only at 20%"), std::string::npos) << some.text;
  EXPECT_NE(some.text.find("worse at 10%"), std::string::npos) << some.text;

  json["cells"][1] = trace_cell("sketchwalk", 0.1, 0.52, "better", 0.02);
  EXPECT_EQ(first_finding(read(json)).tone, Tone::kGood);

  json["cells"] = {trace_cell("sketchwalk", 0.1, 0.49)};
  EXPECT_EQ(first_finding(read(json)).tone, Tone::kNeutral);
}

// Many densities are named by the ends of their runs.
TEST_F(ReportFileTest, ManyDensitiesAreShort) {
  Json json = trace_report({{"a.h5", "aa"}});
  json["cells"] = Json::array();
  for (int i = 1; i <= 10; ++i) {
    json["cells"].push_back(trace_cell("sink_window", i / 20.0, 0.5));
    json["cells"].push_back(trace_cell("sketchwalk", i / 20.0, 0.6, "better", i / 100.0));
  }
  const Finding all = first_finding(read(json));
  EXPECT_NE(all.text.find(" at 5% to 50% density (+1.0 to +10.0 points)."), std::string::npos)
      << all.text;
  for (const int i : {2, 3, 9}) {  // 10%, 15% and 45%
    json["cells"][2 * i - 1] = trace_cell("sketchwalk", i / 20.0, 0.5, "tied", 0.0);
  }
  json["cells"][19] = trace_cell("sketchwalk", 0.5, 0.5, "worse", -0.1);
  const Finding some = first_finding(read(json));
  EXPECT_NE(some.text.find(" only at 5% and 20% to 40% density (+1.0 to +8.0 points); it is tied "
                           "at 10%, 15% and 45% and worse at 50%."),
            std::string::npos)
      << some.text;
}

TEST_F(ReportFileTest, BaselinesAreNotPraised) {
  Json json = trace_report({{"a.h5", "aa"}});
  json["cells"] = {trace_cell("sink_window", 0.1, 0.5),
                   trace_cell("oracle", 0.1, 0.7, "better", 0.2)};
  EXPECT_TRUE(findings(read(json)).empty());
}

TEST_F(ReportFileTest, FailedCellsAndFarDensitiesAreWarnedOf) {
  Json json = trace_report({{"a.h5", "aa"}});
  Json failed = trace_cell("sketchwalk", 0.1, 0.5);
  failed["status"] = "failed";
  failed["reason"] = "no memory";
  Json far = trace_cell("sketchwalk", 0.2, 0.5, "tied");
  far["realised_density"]["sparse"] = 0.4;
  json["cells"] = {failed, far};
  std::string text;
  for (const Finding& finding : findings(read(json))) {
    if (finding.tone == Tone::kWarning) text += finding.text + "\n";
  }
  EXPECT_NE(text.find("1 failed"), std::string::npos) << text;
  EXPECT_NE(text.find("40% instead of 20%"), std::string::npos) << text;
}

}  // namespace
}  // namespace sw
