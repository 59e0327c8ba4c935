// Figures: which cells become which points, and that what is drawn holds them, whatever the texts.
#include "report/figure.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.hpp"
#include "report/gnuplot.hpp"
#include "report_samples.hpp"
#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using testing::Json;

class FigureTest : public ::testing::Test {
 protected:
  ReportFile read(const Json& json) const {
    std::ofstream(folder_.file("r.json")) << json;
    return ReportFile::read(folder_.file("r.json"));
  }
  static Json two_inputs() {
    Json json = testing::trace_report({{"a.h5", "11"}, {"b.h5", "22"}});
    for (int input : {0, 1}) {
      json["cells"].push_back(testing::trace_cell("dense", std::nullopt, 1.0, "", 0.0, input));
      for (double density : {0.2, 0.1}) {
        Json cell = testing::trace_cell("sink_window", density, density + input, "", 0.0, input);
        cell["metrics"]["mass_recall"]["per_layer"] = {0.5, 0.25};
        json["cells"].push_back(cell);
      }
    }
    return json;
  }

  testing::TemporaryFolder folder_;
};

TEST_F(FigureTest, DensityFigureHasOnePanelAnInputAndPointsInOrder) {
  const Figure figure = make_figure(read(two_inputs()), {});
  ASSERT_EQ(figure.panels.size(), 2u);
  EXPECT_EQ(figure.panels[1].title, "b.h5, prefill");
  ASSERT_EQ(figure.panels[1].series.size(), 2u);
  EXPECT_TRUE(figure.panels[1].series[0].level);
  const FigureSeries& series = figure.panels[1].series[1];
  EXPECT_EQ(series.label, "sink_window");
  ASSERT_EQ(series.points.size(), 2u);
  EXPECT_EQ(series.points[0].x, 0.1);
  EXPECT_EQ(series.points[1].x, 0.2);
  EXPECT_EQ(series.points[1].y, 1.2);
  EXPECT_EQ(series.points[1].low, 1.2 - 0.01);
  EXPECT_EQ(series.points[1].high, 1.2 + 0.01);
}

TEST_F(FigureTest, LayersOfOneDensity) {
  FigureRequest request;
  request.kind = FigureKind::kLayers;
  request.density = 0.1;
  request.input = "a.h5";
  const Figure figure = make_figure(read(two_inputs()), request);
  ASSERT_EQ(figure.panels.size(), 1u);
  ASSERT_EQ(figure.panels[0].series.size(), 1u);
  const auto& points = figure.panels[0].series[0].points;
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[1].x, 1.0);
  EXPECT_EQ(points[1].y, 0.25);
}

TEST_F(FigureTest, FailedCellsAreLeftOut) {
  Json json = two_inputs();
  for (Json& cell : json["cells"]) {
    if (cell["density"] == 0.1) cell["status"] = "failed";
  }
  const Figure figure = make_figure(read(json), {});
  EXPECT_EQ(figure.panels[0].series[1].points.size(), 1u);
}

TEST_F(FigureTest, WhatIsNotThereIsNamedWithWhatIs) {
  const ReportFile report = read(two_inputs());
  const auto hint = [&](const FigureRequest& request) -> std::string {
    try {
      make_figure(report, request);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.hint();
    }
    return "no error";
  };
  EXPECT_EQ(hint({.value = "speeed"}), "it has: kept, recall");
  EXPECT_EQ(hint({.input = "c.h5"}), "it has: a.h5, b.h5");
  EXPECT_EQ(hint({.methods = {"quest"}}), "it has: dense, sink_window");
  EXPECT_NE(hint({.kind = FigureKind::kLength}).find("timings"), std::string::npos);
}

TEST_F(FigureTest, TextsOfReportsAreNeverCommands) {
  const std::string evil = folder_.file("evil");
  const std::string label = "x'\n!touch " + evil + "\n`touch " + evil + "` system('touch " + evil +
                            "') EOD\nEOD\n!touch " + evil + "\n";
  Figure figure;
  figure.x_label = label;
  figure.y_label = label;
  figure.panels = {{label, {{label, {{0.1, 1, 1, 1}, {0.2, 2, 1, 3}}}}}};
  const std::string script = gnuplot_script(figure, FigureFormat::kSvg);
  EXPECT_EQ(script.find("\n!"), std::string::npos) << script;
  if (testing::run_command("command -v gnuplot").code != 0) GTEST_SKIP() << "no gnuplot here";
  EXPECT_NE(run_gnuplot(script).find("<svg"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(evil));
}

TEST_F(FigureTest, EveryFormatIsDrawn) {
  if (testing::run_command("command -v gnuplot").code != 0) GTEST_SKIP() << "no gnuplot here";
  const Figure figure = make_figure(read(two_inputs()), {});
  const std::string svg = run_gnuplot(gnuplot_script(figure, FigureFormat::kSvg));
  for (const char* text : {"a.h5, prefill", "b.h5, prefill", "sink_window", "Realised density"}) {
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(run_gnuplot(gnuplot_script(figure, FigureFormat::kPng)).substr(1, 3), "PNG");
  EXPECT_EQ(run_gnuplot(gnuplot_script(figure, FigureFormat::kPdf)).substr(0, 5), "%PDF-");
}

TEST_F(FigureTest, TheProgramDrawsAndKeepsWhatIsThere) {
  read(two_inputs());
  const auto run = [&](const std::string& arguments, const std::string& before = "") {
    return testing::run_command("cd '" + folder_.path() + "' && " + before +
                                " '" SW_BIN_DIR "/sw-report' plot r.json " + arguments);
  };
  EXPECT_EQ(run("--script -o f.gnuplot").code, 0);
  EXPECT_EQ(run("--script -o f.gnuplot").code, 1);
  EXPECT_EQ(run("-o f.jpg").code, 2);
  const auto missing = run("-o f.svg", "PATH=/nowhere");
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.output.find("gnuplot-nox"), std::string::npos) << missing.output;
  EXPECT_FALSE(std::filesystem::exists(folder_.file("f.svg")));
}

}  // namespace
}  // namespace sw
