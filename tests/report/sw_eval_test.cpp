// The program sw-eval from outside: exit codes, messages, files.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;

class SwEval : public ::testing::Test {
 protected:
  SwEval() : trace_(testing::TinyTrace().write(folder_.file("tiny.h5"))) {}

  CommandResult run(const std::string& arguments, const std::string& before = "") const {
    return testing::run_command("cd '" + folder_.path() + "' && " + before +
                                " '" SW_BIN_DIR "/sw-eval' " + arguments);
  }
  CommandResult trace(const std::string& arguments, const std::string& before = "") const {
    return run("trace tiny.h5 --quiet --block 16 " + arguments, before);
  }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(folder_.path()), {}));
  }
  json report(const std::string& name = "out.json") const {
    std::ifstream file(folder_.file(name));
    return json::parse(file);
  }

  testing::TemporaryFolder folder_;
  std::string trace_;
};

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

TEST_F(SwEval, DefaultsGiveAWholeReport) {
  const CommandResult result = trace("-o out");
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "sketchwalk:preset=preprint");
  expect_contains(result, "out.json");
  expect_contains(result, "What to try next");
  EXPECT_EQ(files(), 3u);
  const json out = report();
  EXPECT_EQ(out.at("cells").size(), 2 * (1 + 5 * 4));
  EXPECT_EQ(out.at("protocol").at("densities"), json::parse("[0.05, 0.1, 0.2, 0.3]"));
  for (const json& cell : out.at("cells")) EXPECT_EQ(cell.at("status"), "ok");
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder_.file("out.json")).output, "");
  }
}

TEST_F(SwEval, BackendsAndContainers) {
  testing::TinyTrace().write(folder_.file("tiny.safetensors"));
  const CommandResult result =
      run("trace tiny.h5 tiny.safetensors --quiet --block 16 --backend reference --method oracle "
          "--density 0.2 --phase prefill -o out");
  EXPECT_EQ(result.code, 0) << result.output;
  const json out = report();
  EXPECT_EQ(out.at("environment").at("backend"), "reference");
  ASSERT_EQ(out.at("cells").size(), 2u);
  EXPECT_EQ(out.at("cells")[0].at("metrics"), out.at("cells")[1].at("metrics"));
  EXPECT_EQ(out.at("summary").size(), 1u);
  const CommandResult cuda = trace("--backend cuda -o cuda");
  if (cuda.code == 0) return;  // there is a GPU
  EXPECT_EQ(cuda.code, 1);
  expect_contains(cuda, "use --backend cpu");
}

TEST_F(SwEval, JsonOnStandardOutput) {
  const CommandResult result = trace("--method sink_window --density 0.2 --json");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(json::parse(result.output).at("cells").size(), 2u);
  EXPECT_EQ(files(), 1u);
}

TEST_F(SwEval, UsageErrors) {
  for (const char* arguments :
       {"--density 0 -o out", "--density=-1 -o out", "--density 1.5 -o out", "--density x -o out",
        "--method nonsense -o out", "--phase sideways -o out", "--layers 2:1 -o out",
        "--layers 7:9 -o out", "--block 0 -o out", "--fail-if nonsense -o out", ""}) {
    const CommandResult result = trace(arguments);
    EXPECT_EQ(result.code, 2) << arguments << "\n" << result.output;
    expect_contains(result, "error: ");
  }
  EXPECT_EQ(files(), 1u);
}

TEST_F(SwEval, UnknownNamesAreSuggested) {
  const CommandResult method = trace("--method sketchwlak -o out");
  EXPECT_EQ(method.code, 2);
  expect_contains(method, "sketchwalk");
  const CommandResult option = trace("--method sketchwalk:dampin=0.5 -o out");
  EXPECT_EQ(option.code, 2);
  expect_contains(option, "damping");
  const CommandResult flag = trace("--metod oracle -o out");
  EXPECT_EQ(flag.code, 2);
  expect_contains(flag, "--method");
  const CommandResult order = run("trace --method oracle tiny.h5 -o out");
  EXPECT_EQ(order.code, 2);
}

TEST_F(SwEval, MissingAndDamagedInput) {
  const CommandResult missing = run("trace none.h5 -o out");
  EXPECT_EQ(missing.code, 1);
  expect_contains(missing, "none.h5");
  std::ofstream(folder_.file("text.h5")) << "not a trace at all, but long enough to be read";
  EXPECT_EQ(run("trace text.h5 -o out").code, 1);
  testing::TinyTrace nan;
  nan.nan_layer = 3;
  nan.write(folder_.file("nan.h5"));
  const CommandResult damaged = run("trace nan.h5 --quiet --block 16 -o out");
  EXPECT_EQ(damaged.code, 1);
  expect_contains(damaged, "layer 3");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out.h5")));
  // Beside a good input it is a matter of some cells.
  const CommandResult some = run("trace tiny.h5 nan.h5 --quiet --block 16 -o out");
  EXPECT_EQ(some.code, 3);
  EXPECT_EQ(report().at("cells").back().at("status"), "failed");
}

TEST_F(SwEval, AFailingCellGivesThree) {
  const CommandResult result =
      trace("--method sink_window sketchwalk:query_pool=7 --density 0.2 -o out");
  EXPECT_EQ(result.code, 3) << result.output;
  expect_contains(result, "query_pool");
  EXPECT_EQ(report().at("cells")[0].at("status"), "ok");
  EXPECT_EQ(report().at("cells")[2].at("status"), "failed");
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder_.file("out.json")).output, "");
  }
}

TEST_F(SwEval, AGateThatIsNotMetGivesFour) {
  const std::string base = "--method oracle random --density 0.2 --force -o out ";
  EXPECT_EQ(trace(base + "--fail-if 'mass_recall<0'").code, 0);
  EXPECT_EQ(trace(base + "--fail-if 'mass_recall<1'").code, 4);
  const CommandResult scoped = trace(base + "--fail-if 'mass_recall<2@random@0.2'");
  EXPECT_EQ(scoped.code, 4);
  expect_contains(scoped, "random at density 0.2");
  EXPECT_EQ(scoped.output.find("oracle at density"), std::string::npos);
  EXPECT_EQ(report().at("cells").size(), 4u);  // the report is written all the same
}

TEST_F(SwEval, OutputThatExistsIsRefusedBeforeTheWork) {
  EXPECT_EQ(trace("--method oracle --density 0.2 -o out").code, 0);
  const auto time = std::filesystem::last_write_time(folder_.file("out.json"));
  const CommandResult again = trace("--method oracle --density 0.2 -o out");
  EXPECT_EQ(again.code, 1);
  expect_contains(again, "--force");
  EXPECT_EQ(std::filesystem::last_write_time(folder_.file("out.json")), time);
  EXPECT_EQ(trace("--method oracle --density 0.2 --force -o out").code, 0);
}

TEST_F(SwEval, FoldersThatCannotBeWritten) {
  const CommandResult missing = trace("-o no/such/folder/out");
  EXPECT_EQ(missing.code, 1);
  expect_contains(missing, "no/such/folder/out");
  EXPECT_EQ(trace("-o /proc/out").code, 1);
}

TEST_F(SwEval, AFullDiskLeavesNothingBehind) {
  const std::string arguments = "--method oracle sketchwalk --density 0.1 0.2 0.3 -o out";
  for (const char* limit : {"1", "8", "40"}) {
    const CommandResult result = trace(arguments, std::string("ulimit -f ") + limit + " && ");
    EXPECT_EQ(result.code, 1) << limit << "\n" << result.output;
    expect_contains(result, "cannot write");
    EXPECT_EQ(files(), 1u) << limit;
  }
  EXPECT_EQ(trace("--method oracle --density 0.2 --json > /dev/full").code, 1);
}

TEST_F(SwEval, ConfigFile) {
  std::ofstream(folder_.file("config.json"))
      << R"({"method": ["oracle", "sketchwalk:sketch_dim=8,walk=none"], "density": [0.3],
             "phase": "decode", "block": 16, "output": "out"})";
  const CommandResult result = run("trace tiny.h5 --quiet --config config.json");
  EXPECT_EQ(result.code, 0) << result.output;
  ASSERT_EQ(report().at("cells").size(), 2u);
  EXPECT_EQ(report().at("cells")[1].at("phase"), "decode");
}

TEST_F(SwEval, DecodeWithoutSteps) {
  testing::TinyTrace prefill;
  prefill.decode = 0;
  prefill.write(folder_.file("prefill.h5"));
  EXPECT_EQ(run("trace prefill.h5 --phase decode -o out").code, 2);
  const CommandResult both =
      run("trace prefill.h5 --block 16 --method oracle --density 0.2 --phase both -o out");
  EXPECT_EQ(both.code, 0);
  expect_contains(both, "no decode steps");
}

TEST_F(SwEval, ListsMethods) {
  const CommandResult text = run("methods");
  EXPECT_EQ(text.code, 0);
  expect_contains(text, "damping");
  const CommandResult result = run("methods --json");
  const json methods = json::parse(result.output);
  EXPECT_GE(methods.size(), 5u);
  for (const json& method : methods) {
    EXPECT_FALSE(method.at("source").get<std::string>().empty());
    for (const json& option : method.at("options")) {
      for (const char* key : {"name", "type", "default", "range", "help"}) {
        EXPECT_FALSE(option.at(key).get<std::string>().empty()) << option;
      }
    }
  }
}

TEST_F(SwEval, HelpShowsExamples) {
  const CommandResult help = run("trace --help");
  EXPECT_EQ(help.code, 0);
  expect_contains(help, "Examples:");
  expect_contains(help, "--fail-if");
}

}  // namespace
}  // namespace sw
