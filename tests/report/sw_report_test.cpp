// The program sw-report from outside: exit codes, messages, files, and its pages in a browser.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "report/html_report.hpp"
#include "report/report_arrays.hpp"
#include "report_samples.hpp"
#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

class SwReport : public ::testing::Test {
 protected:
  CommandResult run(const std::string& arguments) const {
    return testing::run_command("cd '" + folder_.path() + "' && '" SW_BIN_DIR "/sw-report' " +
                                arguments);
  }
  /// A report of a tiny trace with prefill and decode and saved selections, NAME.json and NAME.h5.
  void evaluate(const std::string& name, const std::string& arguments = "") {
    if (!std::filesystem::exists(folder_.file("tiny.h5"))) {
      testing::TinyTrace().write(folder_.file("tiny.h5"));
    }
    const CommandResult result = testing::run_command(
        "cd '" + folder_.path() +
        "' && '" SW_BIN_DIR
        "/sw-eval' trace tiny.h5 --quiet --block 16 --save-selection --threads 1 -o " +
        name + " " + arguments);
    ASSERT_EQ(result.code, 0) << result.output;
  }
  json read(const std::string& name) const {
    std::ifstream file(folder_.file(name));
    return json::parse(file);
  }
  std::string text(const std::string& name) const {
    std::ifstream file(folder_.file(name));
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& name, const json& value) const {
    std::ofstream(folder_.file(name)) << value;
  }

  testing::TemporaryFolder folder_;
};

TEST_F(SwReport, CompareOfARunWithItselfFindsNothing) {
  evaluate("a");
  evaluate("b");
  const CommandResult result = run("compare a.json b.json --all --fail-if 'worse>0'");
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "42 cells match");
  expect_contains(result, "better in 0 and worse in 0");
  expect_contains(result, "Environment, protocol and inputs are the same");
  const CommandResult values = run("compare a.json b.json --json");
  for (const json& cell : json::parse(values.output).at("cells")) {
    const json& recall = cell.at("metrics").at("mass_recall");
    EXPECT_EQ(recall.at("difference"), 0.0);
    EXPECT_EQ(recall.at("verdict"), "tied");
  }
}

/// The only cell of a report for which `wanted` holds, under the name of a method without density.
template <class F>
json single_cell(json report, F&& wanted) {
  json cells = json::array();
  for (json& cell : report["cells"]) {
    if (wanted(cell)) cells.push_back(cell);
  }
  EXPECT_EQ(cells.size(), 1u);
  cells[0]["method"] = "changed";
  cells[0]["density"] = nullptr;
  report["cells"] = cells;
  return report;
}

void expect_interval(const json& change, const json& interval) {
  EXPECT_DOUBLE_EQ(change.at("low").get<double>(), interval.at("low").get<double>());
  EXPECT_DOUBLE_EQ(change.at("high").get<double>(), interval.at("high").get<double>());
}

TEST_F(SwReport, PairsOfTracesAreThoseOfTheEvaluation) {
  evaluate("all", "--density 0.2 --phase prefill");
  // sink_window against oracle, whose paired difference the report itself holds.
  const json report = read("all.json");
  const auto cell_of = [&](const std::string& name) {
    return single_cell(report, [&](const json& cell) { return cell["name"] == name; });
  };
  write("a.json", cell_of("sink_window"));
  write("b.json", cell_of("oracle"));
  for (const char* name : {"a.h5", "b.h5"}) {
    std::filesystem::copy(folder_.file("all.h5"), folder_.file(name));
  }
  const json change = json::parse(run("compare a.json b.json --json").output)["cells"][0];
  expect_interval(change.at("metrics").at("mass_recall"),
                  read("b.json")["cells"][0]["versus_sink_window"]["mass_recall_difference"]);
  EXPECT_EQ(change.at("metrics").at("mass_recall").at("verdict"), "better");
  EXPECT_EQ(change.at("metrics").at("output_error").at("verdict"), "better");

  const CommandResult gates =
      run("compare b.json a.json --fail-if 'worse>0@changed' 'mass_recall<-0.9'");
  EXPECT_EQ(gates.code, 4) << gates.output;
  expect_contains(gates, "gate not met: --fail-if 'worse>0@changed'");
  EXPECT_EQ(gates.output.find("gate not met: --fail-if 'mass_recall<-0.9'"), std::string::npos);

  std::filesystem::remove(folder_.file("b.h5"));
  expect_contains(run("compare a.json b.json"), "the HDF5 file of one report is missing");
}

TEST_F(SwReport, PairsOfTextsAreThoseOfTheEvaluation) {
  std::string text;
  for (int i = 0; i < 60; ++i) text += "In city " + std::to_string(i * 37 % 101) + " she sang. ";
  std::ofstream(folder_.file("text.txt")) << text;
  const CommandResult model = testing::run_command(
      "cd '" + folder_.path() +
      "' && '" SW_BIN_DIR "/sw-eval' model '" SW_TEST_DIR
      "/model/golden/tiny_llama.gguf' --quiet --block 8 --compute f32 --context 240 --threads 1 "
      "--task perplexity=text.txt --method sink_window --density 0.3 --limit 2 -o all");
  ASSERT_EQ(model.code, 0) << model.output;
  const auto cell_of = [&](const std::string& method) {
    return single_cell(read("all.json"),
                       [&](const json& cell) { return cell["method"] == method; });
  };
  write("a.json", cell_of("dense"));
  write("b.json", cell_of("sink_window"));
  for (const char* name : {"a.h5", "b.h5"}) {
    std::filesystem::copy(folder_.file("all.h5"), folder_.file(name));
  }
  const json change =
      json::parse(run("compare a.json b.json --json").output)["cells"][0]["metrics"];
  const json expected = read("b.json")["cells"][0]["versus_dense"];
  EXPECT_NEAR(change.at("ln_perplexity").at("difference").get<double>(),
              expected.at("ln_ratio").get<double>(), 1e-6);
  expect_interval(change.at("ln_perplexity"), expected.at("ln_ratio_interval"));
}

TEST_F(SwReport, SelectionMapsCountTheBlocks) {
  evaluate("a", "--method random --density 0.3 --phase prefill");
  const ReportFile report = ReportFile::read(folder_.file("a.json"));
  const ReportArrays arrays(report);
  const ReportCell& cell = report.cells().back();
  ASSERT_EQ(cell.name, "random");
  const auto blocks = static_cast<std::int64_t>(*report.number(*cell.json, "units"));
  const std::vector<std::int64_t> layers = arrays.selection_layers(cell);
  ASSERT_EQ(layers, (std::vector<std::int64_t>{2, 3}));
  for (std::int64_t layer : layers) {
    const std::string place = "selection/0" + std::to_string(layer);
    const auto kept = static_cast<double>(arrays.read(cell, place + "/block")->values.size());
    const auto rows = static_cast<double>(arrays.read(cell, place + "/row_ptr")->values.size() - 1);
    const double row_sets = rows / static_cast<double>(blocks);
    const auto b = static_cast<double>(blocks);
    const SelectionMap fine = arrays.selection(cell, layer, blocks, 1000);
    ASSERT_EQ(fine.bins, blocks);
    double sum = 0;
    for (double share : fine.kept) sum += share;
    EXPECT_NEAR(sum * row_sets, kept, 1e-9);
    for (std::int64_t q = 0; q < blocks; ++q) {  // the own block is always kept, later ones never
      EXPECT_EQ(fine.kept[static_cast<std::size_t>(q * blocks + q)], 1.0);
      for (std::int64_t k = q + 1; k < blocks; ++k) {
        EXPECT_EQ(fine.kept[static_cast<std::size_t>(q * blocks + k)], 0.0);
      }
    }
    const SelectionMap coarse = arrays.selection(cell, layer, blocks, 1);
    EXPECT_NEAR(coarse.kept.at(0), kept / (row_sets * b * (b + 1) / 2), 1e-12);
    EXPECT_THROW(arrays.selection(cell, layer, blocks + 1, 8), Error);
  }
}

// A single key counts as its share of a block.
TEST_F(SwReport, SelectionMapsCountSingleKeys) {
  evaluate("a", "--method vertical_slash:forced=diagonal --density 0.3 --phase prefill");
  const ReportFile report = ReportFile::read(folder_.file("a.json"));
  const ReportArrays arrays(report);
  const ReportCell& cell = report.cells().back();
  const auto blocks = static_cast<std::int64_t>(*report.number(*cell.json, "units"));
  const auto size = [&](const std::string& name) {
    return static_cast<double>(arrays.read(cell, "selection/02/" + name)->values.size());
  };
  ASSERT_GT(size("token"), 0.0);
  EXPECT_EQ(size("token_ptr"), size("row_ptr"));
  const double row_sets = (size("row_ptr") - 1.0) / static_cast<double>(blocks);
  const SelectionMap map = arrays.selection(cell, 2, blocks, 1000);
  double sum = 0;
  for (double share : map.kept) sum += share;
  EXPECT_NEAR(sum * row_sets, size("block") + size("token") / 16.0, 1e-9);
  for (double share : map.kept) EXPECT_LE(share, 1.0 + 1e-12);
}

TEST_F(SwReport, DamagedArraysGiveAClearError) {
  if (!testing::python_has("h5py")) GTEST_SKIP() << "no h5py on this machine";
  if (!html_unavailable().empty()) GTEST_SKIP() << "no D3 in this build";
  evaluate("a", "--method random --density 0.3 --phase prefill");
  const auto change = [&](const std::string& statement) {
    const CommandResult result = testing::run_command(
        "cd '" + folder_.path() + "' && cp a.json bad.json && cp a.h5 bad.h5 && " +
        testing::python() +
        " -c 'import h5py; f = h5py.File(\"bad.h5\", \"r+\"); c = f[\"cells/0000\"]; " + statement +
        "'");
    ASSERT_EQ(result.code, 0) << result.output;
    const CommandResult page = run("html bad.json -o page.html");
    EXPECT_EQ(page.code, 1) << statement << page.output;
    expect_contains(page, "error: 'bad.h5': /cells/0000/selection/02");
  };
  change("c[\"selection/02/row_ptr\"][1] = 1 << 40");
  change("c[\"selection/02/row_ptr\"][3] = -1");
  change("c[\"selection/02/block\"][5] = 12");
  change("del c[\"selection/02/block\"]");
}

TEST_F(SwReport, UsageErrors) {
  write("r.json", testing::trace_report({{"a.h5", "aa"}}));
  for (const char* arguments :
       {"", "compare r.json", "html r.json", "csv r.json", "nonsense",
        "compare r.json r.json --fail-if nonsense", "compare r.json r.json --fail-if 'score<1'"}) {
    const CommandResult result = run(arguments);
    EXPECT_EQ(result.code, 2) << arguments << "\n" << result.output;
  }
}

TEST_F(SwReport, DamagedReportsGiveOneClearError) {
  std::ofstream(folder_.file("text.json")) << "not a report";
  json newer = testing::trace_report({{"a.h5", "aa"}});
  newer["schema_version"] = 7;
  write("newer.json", newer);
  json good = testing::trace_report({{"a.h5", "aa"}});
  good["cells"] = {testing::trace_cell("oracle", 0.1, 0.5)};
  good["cells"][0]["latency"] = 4;
  write("wrong.json", good);
  for (const char* name : {"none.json", "text.json", "newer.json", "wrong.json"}) {
    for (const std::string& arguments :
         {std::string("html ") + name + " -o out", std::string("compare ") + name + " " + name}) {
      const CommandResult result = run(arguments);
      EXPECT_EQ(result.code, 1) << arguments << "\n" << result.output;
      EXPECT_TRUE(result.output.starts_with("error: ")) << result.output;
      expect_contains(result, name);
    }
    EXPECT_FALSE(std::filesystem::exists(folder_.file("out")));
  }
  expect_contains(run("csv newer.json -o out"), "schema_version 7");
}

TEST_F(SwReport, ArraysOfAnotherRunAreLeftOut) {
  evaluate("a", "--method oracle --density 0.2");
  json changed = read("a.json");
  changed["created"] = "2001-01-01T00:00:00Z";
  write("a.json", changed);
  const CommandResult compared = run("compare a.json a.json");
  EXPECT_EQ(compared.code, 1);
  expect_contains(compared, "is of another run");
  if (!html_unavailable().empty()) GTEST_SKIP() << "no D3 in this build";
  EXPECT_EQ(run("html a.json -o page.html").code, 0);
  EXPECT_NE(text("page.html").find("is of another run"), std::string::npos);
  std::ofstream(folder_.file("a.h5")) << "no HDF5 file";
  EXPECT_EQ(run("html a.json -o page.html --force").code, 0);
}

TEST_F(SwReport, CsvAndFilesThatExist) {
  evaluate("a");
  EXPECT_EQ(run("csv a.json -o a.csv").code, 0);
  const std::string csv = text("a.csv");
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 43);
  EXPECT_NE(csv.find("latency.stages.attention.median"), std::string::npos);
  EXPECT_EQ(run("csv a.json -o a.csv").code, 1);
  EXPECT_EQ(run("csv a.json -o a.csv --force").code, 0);
}

class SwReportPage : public SwReport {
 protected:
  void SetUp() override {
    if (!html_unavailable().empty()) GTEST_SKIP() << "no D3 in this build";
  }
  /// Runs checks of page_check.py; skips without Chromium.
  void check(const std::string& page, const std::string& checks) {
    const CommandResult result =
        testing::run_command(testing::python() + " '" SW_TEST_DIR "/report/page_check.py' '" +
                             folder_.file(page) + "' " + checks);
    if (result.code == 2) GTEST_SKIP() << "no Chromium on this machine";
    EXPECT_EQ(result.code, 0) << result.output;
    std::cout << result.output;
  }
};

TEST_F(SwReportPage, WorksInABrowser) {
  evaluate("a");
  EXPECT_EQ(run("html a.json -o page.html").code, 0);
  check("page.html", "structure sort filter hover maps theme narrow print quick");
}

/// Reports from before the attribution knew more than three parts are shown with those.
TEST_F(SwReportPage, ShowsThePartsOfTheLossThatAReportHas) {
  evaluate("a", "--method sketchwalk");
  const auto parts_on = [&](const std::string& page) {
    const std::string all = text(page);
    const std::string key = "\"loss\":{\"parts\":[";
    const std::size_t at = all.find(key);
    if (at == std::string::npos) return std::size_t{0};
    const std::string list = all.substr(at + key.size(), all.find(']', at) - at - key.size());
    return static_cast<std::size_t>(std::count(list.begin(), list.end(), ',')) + 1;
  };
  EXPECT_EQ(run("html a.json -o new.html").code, 0);
  EXPECT_EQ(parts_on("new.html"), 9u);
  check("new.html", "structure");
  json report = read("a.json");
  const auto strip = [](json& parts) {
    parts = {{"total", parts.at("total")},
             {"block_mean", parts.at("block_mean")},
             {"sketch", parts.at("sketch")},
             {"walk", parts.at("walk")}};
  };
  for (json& cell : report["cells"]) {
    json& attribution = cell["attribution"];
    attribution.erase("specs");
    strip(attribution["mean"]);
    for (json& layer : attribution["per_layer"]) strip(layer);
  }
  write("old.json", report);
  EXPECT_EQ(run("html old.json -o old.html").code, 0);
  EXPECT_EQ(parts_on("old.html"), 3u);
  check("old.html", "structure");
}

TEST_F(SwReportPage, AllKindsOfReportsOnOnePage) {
  evaluate("a");
  json profile = testing::report_head({{"kind", "profile"}});
  const json shape = {{"tokens", 4096}, {"num_heads", 8}, {"num_kv_heads", 2}, {"head_dim", 64},
                      {"block", 64},    {"batch", 1},     {"dtype", "bf16"}};
  profile["measurements"] = {{{"phase", "prefill"},
                              {"part", "total"},
                              {"implementation", "cpu"},
                              {"shape", shape},
                              {"method", "dense"},
                              {"density", nullptr},
                              {"status", "ok"},
                              {"time", {{"median", 0.5}, {"mad", 0.01}}},
                              {"of_product", 0.5},
                              {"of_copy", 0.01},
                              {"seconds", {0.5}}}};
  profile["crossovers"] = json::array();
  write("profile.json", profile);
  json score = testing::report_head(json::object());
  score["benchmark"] = "longbench";
  score["tasks"] = {{{"task", "trec"},
                     {"status", "ok"},
                     {"samples", 2},
                     {"score", 50.0},
                     {"metric", "classification"},
                     {"scores", {0.0, 1.0}}}};
  score["average"] = testing::interval(50, 0, 100);
  write("score.json", score);
  write("model.json", testing::model_report({1, 0, 1}));
  EXPECT_EQ(run("html a.json model.json profile.json score.json '" SW_RESULTS
                "/smollm2-text-8k.json' -o page.html")
                .code,
            0);
  check("page.html", "structure theme narrow print");
}

TEST_F(SwReportPage, TextsOfReportsNeverRun) {
  const std::string hostile =
      "<img src=x onerror=window.broken=1></script><script>window.broken=1;"
      "</script><!--<script>'\"`&${window.broken=1}\u2028";
  json report = testing::trace_report({{hostile, hostile}});
  report["inputs"][0]["model"] = hostile;
  report["command"] = {"sw-eval", hostile};
  report["environment"][hostile] = hostile;
  report["created"] = hostile;
  json cell = testing::trace_cell(hostile, 0.2, 0.5, hostile, 0.1);
  json failed = testing::trace_cell(hostile, 0.3, 0.5);
  failed["status"] = "failed";
  failed["reason"] = hostile;
  failed["phase"] = hostile;
  report["cells"] = {testing::trace_cell("sink_window", 0.2, 0.5), cell, failed};
  write("r.json", report);
  json model = testing::model_report({1, 0});
  model["cells"][0]["input"] = hostile;
  model["cells"][0]["groups"] = {{{"group", hostile}, {"samples", 1}, {"score", 1}}};
  write("m.json", model);
  EXPECT_EQ(run("html r.json m.json -o page.html").code, 0);
  const std::string page = text("page.html");
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("<!--"), std::string::npos);
  const auto count = [&](const std::string& part) {
    std::size_t number = 0;
    for (std::size_t at = page.find(part); at != std::string::npos; at = page.find(part, at + 1)) {
      ++number;
    }
    return number;
  };
  EXPECT_EQ(count("<script"), 3u);
  EXPECT_EQ(count("</script"), 3u);
  check("page.html", "structure safe");
}

TEST_F(SwReportPage, AThousandCellsStaySmallAndQuick) {
  evaluate("a");
  json report = read("a.json");
  const json cells = report["cells"];
  report["cells"] = json::array();
  for (int i = 0; report["cells"].size() < 1000; ++i) {
    for (const json& cell : cells) {
      if (cell["density"].is_null() || report["cells"].size() == 1000) continue;
      report["cells"].push_back(cell);
      report["cells"].back()["density"] = cell["density"].get<double>() + 0.01 * i;
    }
  }
  write("big.json", report);
  std::filesystem::copy(folder_.file("a.h5"), folder_.file("big.h5"));
  EXPECT_EQ(run("html big.json -o page.html").code, 0);
  EXPECT_LT(std::filesystem::file_size(folder_.file("page.html")), 5'000'000u);
  check("page.html", "structure sort quick");
}

TEST_F(SwReportPage, NeedsNoNetwork) {
  evaluate("a", "--method oracle --density 0.2");
  EXPECT_EQ(run("html a.json -o page.html").code, 0);
  const std::string page = text("page.html");
  for (const char* part : {"src=\"", "@import", "<link rel=\"stylesheet"}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
  EXPECT_NE(page.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(run("html a.json -o page.html").code, 1);  // exists
}

}  // namespace
}  // namespace sw
