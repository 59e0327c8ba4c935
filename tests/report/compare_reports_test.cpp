#include "report/compare_reports.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/file.hpp"
#include "report_samples.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using testing::Json;
using testing::model_report;
using testing::trace_cell;
using testing::trace_report;

class CompareReports : public ::testing::Test {
 protected:
  ReportFile read(const std::string& name, const Json& json) {
    write_file(folder_.file(name), json.dump(), true);
    return ReportFile::read(folder_.file(name));
  }
  static const MetricChange& metric(const CellChange& cell, const std::string& name) {
    return *std::ranges::find(cell.metrics, name, &MetricChange::metric);
  }

  testing::TemporaryFolder folder_;
};

TEST_F(CompareReports, MatchesInputsByContentBeforeTheirNames) {
  // The two traces have swapped their names.
  Json a = trace_report({{"x.h5", "11"}, {"y.h5", "22"}});
  Json b = trace_report({{"x.h5", "22"}, {"y.h5", "11"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.1, "", 0, 0), trace_cell("oracle", 0.1, 0.2, "", 0, 1)};
  b["cells"] = {trace_cell("oracle", 0.1, 0.2, "", 0, 0), trace_cell("oracle", 0.1, 0.1, "", 0, 1)};
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const CellMatch match = match_cells(left, right);
  ASSERT_EQ(match.pairs.size(), 2u);
  for (const auto& [x, y] : match.pairs) {
    EXPECT_EQ(left.number(*x->json, "metrics.mass_recall.mean"),
              right.number(*y->json, "metrics.mass_recall.mean"));
    EXPECT_NE(x->input, y->input);
  }
}

TEST_F(CompareReports, MatchesByPromptHashAndAtLastByName) {
  Json a = trace_report({{"x.h5", "11"}});
  Json b = trace_report({{"other.h5", "22"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.1)};
  b["cells"] = {trace_cell("oracle", 0.1, 0.1)};
  EXPECT_TRUE(match_cells(read("a.json", a), read("b.json", b)).pairs.empty());
  a["inputs"][0]["prompt_ids_sha256"] = "ee";
  b["inputs"][0]["prompt_ids_sha256"] = "ee";
  EXPECT_EQ(match_cells(read("a.json", a), read("b.json", b)).pairs.size(), 1u);
  b["inputs"][0]["prompt_ids_sha256"] = "ff";
  b["inputs"][0]["path"] = "/elsewhere/x.h5";
  EXPECT_EQ(match_cells(read("a.json", a), read("b.json", b)).pairs.size(), 1u);
}

TEST_F(CompareReports, MethodDensityAndPhaseTellCellsApart) {
  Json a = trace_report({{"x.h5", "11"}});
  Json b = a;
  a["cells"] = {trace_cell("dense", std::nullopt, 1), trace_cell("oracle", 0.1, 0.1),
                trace_cell("oracle", 0.2, 0.2), trace_cell("oracle", 0.1, 0.3, "", 0, 0, "decode")};
  b["cells"] = {trace_cell("oracle", 0.1, 0.3, "", 0, 0, "decode"), trace_cell("oracle", 0.3, 0.4),
                trace_cell("random", 0.2, 0.2), trace_cell("dense", std::nullopt, 1)};
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const CellMatch match = match_cells(left, right);
  EXPECT_EQ(match.pairs.size(), 2u);
  EXPECT_EQ(match.only_a.size(), 2u);
  EXPECT_EQ(match.only_b.size(), 2u);
}

TEST_F(CompareReports, EachCellIsMatchedOnce) {
  Json a = trace_report({{"x.h5", "11"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.1), trace_cell("oracle", 0.1, 0.2)};
  Json b = trace_report({{"x.h5", "11"}});
  b["cells"] = {trace_cell("oracle", 0.1, 0.1)};
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const CellMatch match = match_cells(left, right);
  EXPECT_EQ(match.pairs.size(), 1u);
  EXPECT_EQ(match.only_a.size(), 1u);
}

TEST_F(CompareReports, RepliesArePairedByPrompt) {
  std::vector<double> before(40, 1.0);
  std::vector<double> after(40, 1.0);
  std::fill(after.begin(), after.begin() + 20, 0.0);
  const ReportFile left = read("a.json", model_report(before));
  const ReportFile right = read("b.json", model_report(after));
  const ReportComparison worse = compare_reports(left, right);
  const MetricChange& score = metric(worse.cells.at(0), "score");
  EXPECT_DOUBLE_EQ(score.b - score.a, -50.0);
  EXPECT_EQ(score.verdict, "worse");
  EXPECT_LT(*score.high, -20.0);
  // McNemar's exact test of 20 pairs that all fell to one side: 2 * 2^-20.
  EXPECT_NEAR(*score.p_value, 2.0 / 1048576.0, 1e-12);
  EXPECT_EQ(metric(compare_reports(right, left).cells.at(0), "score").verdict, "better");
  const ReportFile same = read("c.json", model_report(before));
  EXPECT_EQ(metric(compare_reports(left, same).cells.at(0), "score").verdict, "underpowered");

  const ReportFile others = read("d.json", model_report(after, "other"));
  const ReportComparison unpaired = compare_reports(left, others);
  EXPECT_EQ(metric(unpaired.cells.at(0), "score").verdict, "");
  EXPECT_EQ(unpaired.cells.at(0).unpaired, "the prompts differ");
}

TEST_F(CompareReports, GatesSpeakOfTheChange) {
  Json a = trace_report({{"x.h5", "11"}});
  Json b = a;
  a["cells"] = {trace_cell("oracle", 0.1, 0.8), trace_cell("sketchwalk:preset=release", 0.1, 0.5)};
  b["cells"] = {trace_cell("oracle", 0.1, 0.8), trace_cell("sketchwalk:preset=release", 0.1, 0.4)};
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const ReportComparison comparison = compare_reports(left, right);
  const auto lines = [&](const std::string& gate) {
    return unmet(Gate::parse(gate, comparison_gate_metrics(ReportKind::kTrace)), comparison).size();
  };
  EXPECT_EQ(lines("mass_recall<-0.05"), 1u);
  EXPECT_EQ(lines("mass_recall<-0.2"), 0u);
  EXPECT_EQ(lines("mass_recall<-0.05@oracle"), 0u);
  EXPECT_EQ(lines("mass_recall<-0.05@sketchwalk@0.1"), 1u);
  EXPECT_EQ(lines("ratio:mass_recall<0.9"), 1u);
  EXPECT_EQ(lines("ratio:mass_recall<0.7"), 0u);
  EXPECT_EQ(lines("worse>0"), 0u);   // nothing is paired
  EXPECT_EQ(lines("cosine<0"), 1u);  // no such value anywhere
  EXPECT_EQ(lines("mass_recall<0@none"), 1u);
  EXPECT_THROW(lines("score<0"), Error);
}

TEST_F(CompareReports, ACellThatFailsNowDoesNotPassAGate) {
  Json a = trace_report({{"x.h5", "11"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.8), trace_cell("random", 0.1, 0.8)};
  Json b = a;
  b["cells"][0]["status"] = "failed";
  b["cells"][0]["reason"] = "no memory";
  b["cells"][0].erase("metrics");
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const ReportComparison comparison = compare_reports(left, right);
  const auto known = comparison_gate_metrics(ReportKind::kTrace);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<-0.5", known), comparison).size(), 1u);
  EXPECT_EQ(unmet(Gate::parse("mass_recall<-0.5@random", known), comparison).size(), 0u);
}

TEST_F(CompareReports, DifferencesOfTheEnvironmentAndTheInputsAreListed) {
  Json a = trace_report({{"x.h5", "11"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.8)};
  Json b = a;
  b["environment"]["cpu"] = "two";
  b["environment"]["threads"] = 3;
  b["inputs"][0]["sha256"] = "22";
  const ReportFile left = read("a.json", a);
  const ReportFile right = read("b.json", b);
  const ReportComparison comparison = compare_reports(left, right);
  std::vector<std::string> names;
  for (const Difference& d : comparison.differences) names.push_back(d.what);
  EXPECT_EQ(names,
            (std::vector<std::string>{"environment.cpu", "environment.threads", "input x.h5"}));
  EXPECT_EQ(comparison.cells.at(0).unpaired, "the traces differ");
}

TEST_F(CompareReports, RefusesWhatCannotBeCompared) {
  Json a = trace_report({{"x.h5", "11"}});
  a["cells"] = {trace_cell("oracle", 0.1, 0.8)};
  Json b = a;
  b["cells"][0]["density"] = 0.2;
  EXPECT_THROW(compare_reports(read("a.json", a), read("b.json", b)), Error);
  EXPECT_THROW(compare_reports(read("a.json", a), read("c.json", model_report({1.0}))), Error);
}

}  // namespace
}  // namespace sw
