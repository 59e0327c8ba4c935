// sw-eval model from outside: reports, resuming, messages and exit codes.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/file.hpp"
#include "report_samples.hpp"
#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;

const std::string kModel = std::string(SW_TEST_DIR) + "/model/golden/tiny_llama.gguf";

class SwEvalModel : public ::testing::Test {
 protected:
  SwEvalModel() {
    std::string text;
    for (int i = 0; i < 60; ++i) {
      text +=
          "In the city of " + std::to_string(i * 37 % 101) + " songs she was the first writer. ";
    }
    write("text.txt", text);
    write("dataset2prompt.json", json{{"trec", "Sort it.\n{context}\n{input}"}}.dump());
    write("dataset2maxlen.json", json{{"trec", 4}}.dump());
    write("trec.jsonl", record("a", {"x"}) + record("b", {"y"}));
  }

  static std::string record(const std::string& id, const std::vector<std::string>& answers) {
    return json{{"input", "Question: which song?"},
                {"context", "In the unknown city she was the first."},
                {"answers", answers},
                {"all_classes", {"x", "y", "z"}},
                {"dataset", "trec"},
                {"language", "en"},
                {"length", 12},
                {"_id", id}}
               .dump() +
           "\n";
  }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_.file(name), std::ios::binary) << content;
  }
  CommandResult model(const std::string& arguments) const {
    const bool own_context = arguments.find("--context") != std::string::npos;
    return testing::run_command("cd '" + folder_.path() + "' && '" SW_BIN_DIR "/sw-eval' model '" +
                                kModel + "' --quiet --block 8 --compute f32 " +
                                (own_context ? "" : "--context 240 ") + arguments);
  }
  json report(const std::string& name = "out.json") const {
    std::ifstream file(folder_.file(name));
    return json::parse(file);
  }
  bool exists(const std::string& name) const { return std::filesystem::exists(folder_.file(name)); }

  testing::TemporaryFolder folder_;
};

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

constexpr const char* kArms =
    "--method sketchwalk:dense_layers=0 sink_window:dense_layers=0 --density 0.3 ";

TEST_F(SwEvalModel, AllKindsOfTasksGiveAWholeReport) {
  const CommandResult result =
      model(std::string("--task perplexity=text.txt longbench:trec=trec.jsonl "
                        "niah:lengths=230,depths=0+1 --max-new-tokens 4 --limit 2 --kl ") +
            kArms + "--decode-tokens 8 --predictions preds -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  const json out = report();
  EXPECT_EQ(out.at("cells").size(), 3u * 3u);
  for (const json& cell : out.at("cells")) {
    EXPECT_EQ(cell.at("status"), "ok");
    EXPECT_EQ(cell.at("samples"), 2);
  }
  EXPECT_EQ(out.at("summary").size(), 2u);
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder_.file("out.json")).output, "");
  }
  if (testing::python_has("h5py")) {
    const CommandResult h5 = testing::run_command(
        "cd '" + folder_.path() + "' && " + testing::python() +
        " -c 'import h5py; f = h5py.File(\"out.h5\"); c = f[\"cells\"]; print(len(c)); "
        "print(c[\"0001\"].attrs[\"input\"], c[\"0001\"][\"kl\"].shape[0]); "
        "print(c[\"0004\"][\"score\"].shape[0], c[\"0004\"][\"density\"].shape)'");
    EXPECT_EQ(h5.output, "9\nperplexity:text.txt 478\n2 (2, 2)\n");
  }
  const std::string predictions = read_file(folder_.file("preds/dense/trec.jsonl"));
  const json first = json::parse(predictions.substr(0, predictions.find('\n')));
  EXPECT_EQ(first.at("answers"), json({"x"}));
  EXPECT_EQ(first.at("all_classes").size(), 3u);
  EXPECT_EQ(first.at("length"), 12);
  EXPECT_TRUE(first.at("pred").is_string());
}

TEST_F(SwEvalModel, KilledAtAnyMomentItGoesOnToTheSameReport) {
  const std::string arguments =
      std::string(
          "--task niah:lengths=230,depths=0.5,samples=4 perplexity=text.txt "
          "--max-new-tokens 4 --limit 4 --decode-tokens 8 ") +
      kArms;
  ASSERT_EQ(model(arguments + "-o whole").code, 0);
  const std::string command = "'" SW_BIN_DIR "/sw-eval' model '" + kModel +
                              "' --quiet --block 8 --compute f32 --context 240 " + arguments +
                              "-o out";
  // Killed again and again, a little later each time, until a run comes through.
  int kills = 0;
  for (int milliseconds = 10;; milliseconds += milliseconds < 900 ? 15 : 900) {
    const CommandResult result =
        testing::run_command("cd '" + folder_.path() + "' && timeout -s KILL " +
                             std::to_string(milliseconds / 1000.0) + " " + command);
    // Killed after the report was complete, it has nothing left to do.
    if (result.code == 0 || exists("out.json")) break;
    ++kills;
    ASSERT_LT(milliseconds, 30000) << result.output;
  }
  EXPECT_GT(kills, 0);
  EXPECT_EQ(testing::without_times(report("out.json")),
            testing::without_times(report("whole.json")));
}

TEST_F(SwEvalModel, NothingIsOverwrittenAndAChangedInputIsRefused) {
  const std::string task = "--task longbench:trec=trec.jsonl --method sink_window:dense_layers=0 ";
  ASSERT_EQ(model(task + "--density 0.3 -o out").code, 0);
  const CommandResult again = model(task + "--density 0.3 -o out");
  EXPECT_EQ(again.code, 1);
  expect_contains(again, "--force");
  // The journal holds everything: nothing runs again.
  EXPECT_EQ(model(task + "--density 0.3 -o out --force").code, 0);
  const CommandResult other = model(task + "--density 0.4 -o out --force");
  EXPECT_EQ(other.code, 2);
  expect_contains(other, "arms");
  write("trec.jsonl", record("a", {"z"}));
  const CommandResult changed = model(task + "--density 0.3 -o out --force");
  EXPECT_EQ(changed.code, 2);
  expect_contains(changed, "trec.jsonl");
}

TEST_F(SwEvalModel, BadInputGetsOneClearError) {
  struct Case {
    std::string arguments;
    int code;
    std::string message;
  };
  write("broken.jsonl", record("a", {"x"}) + "{\"input\": \n" + record("b", {"y"}));
  write("no_answer.jsonl", record("a", {"x"}) + record("b", {}));
  write("empty.txt", "");
  write("latin.txt", "caf\xe9");
  const std::vector<Case> cases = {
      {"--task longbench:trec=broken.jsonl -o o", 1, "broken.jsonl:2"},
      {"--task longbench:trec=no_answer.jsonl -o o", 1, "no_answer.jsonl:2"},
      {"--task longbench:trec=none.jsonl -o o", 1, "none.jsonl"},
      {"--task longbench:trek=trec.jsonl -o o", 2, "trec"},
      {"--task longbench:trec -o o", 2, "--longbench-dir"},
      {"--task ruler:vt -o o", 2, "file"},
      {"--task riddles -o o", 2, "longbench:NAME"},
      {"--task niah:depth=0.5 -o o", 2, "depths"},
      {"--task niah:depths=1.5 -o o", 2, "1.5"},
      {"--task perplexity=empty.txt -o o", 1, "empty"},
      {"--task perplexity=latin.txt -o o", 1, "UTF-8"},
      {"--task perplexity=text.txt --context 100000 -o o", 2, "longer than the model's 256"},
      {"--task perplexity=text.txt --stride 500 -o o", 2, "stride"},
      {"--task longbench:trec=trec.jsonl --max-new-tokens 240 -o o", 2, "leave no room"},
      {"--task longbench:trec=trec.jsonl --chat-template jinja -o o", 2, "chatml"},
      {"--task perplexity=text.txt --density 1.5 -o o", 2, "1.5"},
      {"--task perplexity=text.txt --method walk -o o", 2, "walk"},
      {"--task perplexity=text.txt", 2, "-o"},
      {"--task perplexity=text.txt -o no/such/folder/o", 1, "no/such/folder"},
      {"--task perplexity=text.txt perplexity=text.txt -o o", 2, "twice"},
  };
  for (const Case& c : cases) {
    const CommandResult result = model(c.arguments);
    EXPECT_EQ(result.code, c.code) << c.arguments << "\n" << result.output;
    EXPECT_NE(result.output.find(c.message), std::string::npos) << c.arguments << "\n"
                                                                << result.output;
    EXPECT_EQ(result.output.rfind("error: ", 0), 0u) << result.output;
    EXPECT_FALSE(exists("o.json")) << c.arguments;
    std::filesystem::remove(folder_.file("o.journal"));
  }
}

TEST_F(SwEvalModel, TheSecondOfTwoProcessesOnAJournalRefuses) {
  const std::string task = "--task perplexity=text.txt --method sink_window --density 0.3 -o out";
  const CommandResult result = testing::run_command(
      "cd '" + folder_.path() + "' && " + testing::python() +
      " -c 'import fcntl, subprocess, sys; f = open(\"out.journal\", \"a\"); "
      "fcntl.flock(f, fcntl.LOCK_EX); sys.exit(subprocess.call(sys.argv[1:]))' '" SW_BIN_DIR
      "/sw-eval' model '" +
      kModel + "' --quiet --context 240 " + task);
  EXPECT_NE(result.code, 0);
  expect_contains(result, "another process");
}

/// Every file below a folder.
std::set<std::string> files_below(const std::string& folder) {
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_directory()) files.insert(entry.path().string());
  }
  return files;
}

// Names in models, traces and records are names, whatever they look like.
TEST_F(SwEvalModel, NoInputLeadsOutsideTheOutput) {
  std::string gguf = read_file(kModel);
  const std::string name = "tiny llama";
  const std::string elsewhere = "../../../e";
  ASSERT_EQ(name.size(), elsewhere.size());
  const std::size_t at = gguf.find(name);
  ASSERT_NE(at, std::string::npos);
  write("model.gguf", gguf.replace(at, name.size(), elsewhere));
  testing::TinyTrace tiny;
  TraceInfo info = tiny.info();
  info.model = info.source = "../../../etc/trace";
  const std::string trace = folder_.file("trace.h5");
  {
    TraceWriter writer(trace, info);
    for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
      writer.append(layer, tiny.tensor(layer, 0).view(), tiny.tensor(layer, 1).view(),
                    tiny.tensor(layer, 2).view());
    }
    writer.commit();
  }
  const json ruler = {{"input", "text"}, {"outputs", {"1"}}, {"task", "../../../up"}};
  write("ruler.jsonl", ruler.dump());
  write("trec.jsonl", record("../../../../up", {"x"}));
  std::filesystem::create_directories(folder_.file("a/b"));
  const std::set<std::string> before = files_below(folder_.path());

  const std::string program = "cd '" + folder_.file("a/b") + "' && '" SW_BIN_DIR "/sw-eval' ";
  const std::string model_command =
      program + "model ../../model.gguf --quiet --block 8 --compute f32 --context 240 " +
      "--max-new-tokens 2 --method sink_window --density 0.3 ";
  CommandResult result =
      testing::run_command(model_command +
                           "--task longbench:trec=../../trec.jsonl ruler:niah_x=../../ruler.jsonl "
                           "--predictions preds -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  result = testing::run_command(program + "trace ../../trace.h5 --quiet --block 16 -o trace");
  ASSERT_EQ(result.code, 0) << result.output;
  // A name given on the command line is no path either.
  for (const char* task :
       {"ruler:niah_/../../../up=../../ruler.jsonl", "ruler:niah/=../../ruler.jsonl"}) {
    result = testing::run_command(model_command + "--task " + task + " --predictions preds -o o");
    EXPECT_EQ(result.code, 2) << result.output;
  }

  std::set<std::string> written;
  for (const std::string& file : files_below(folder_.path())) {
    if (!before.contains(file))
      written.insert(std::filesystem::relative(file, folder_.file("a/b")));
  }
  const std::set<std::string> expected = {"out.json",
                                          "out.h5",
                                          "out.journal",
                                          "trace.json",
                                          "trace.h5",
                                          "preds/dense/trec.jsonl",
                                          "preds/dense/niah_x.jsonl",
                                          "preds/sink_window_@0.3/trec.jsonl",
                                          "preds/sink_window_@0.3/niah_x.jsonl"};
  EXPECT_EQ(written, expected);
}

// They are found before hours of work, not after.
TEST_F(SwEvalModel, RepliesThatExistAreKept) {
  const std::string task =
      "--task longbench:trec=trec.jsonl --method sink_window --predictions preds -o out";
  std::filesystem::create_directories(folder_.file("preds/dense"));
  write("preds/dense/trec.jsonl", "mine");
  const CommandResult refused = model(task);
  EXPECT_EQ(refused.code, 1);
  expect_contains(refused, "preds/dense/trec.jsonl' exists already");
  EXPECT_EQ(read_file(folder_.file("preds/dense/trec.jsonl")), "mine");
  EXPECT_FALSE(exists("out.json"));
  EXPECT_EQ(model(task + " --force").code, 0);
  EXPECT_NE(read_file(folder_.file("preds/dense/trec.jsonl")), "mine");
}

}  // namespace
}  // namespace sw
