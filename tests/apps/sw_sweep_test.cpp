// sw-sweep and sw-report merge from outside: what survives kills, signals, limits and shards.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "eval/journal.hpp"
#include "eval/layer_entry.hpp"
#include "report/sweep_head.hpp"
#include "support/command.hpp"
#include "support/report_files.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;
using Clock = std::chrono::steady_clock;

/// The value of an environment variable, for long runs by hand.
int parameter(const char* name, int usual) {
  const char* text = std::getenv(name);
  return text == nullptr ? usual : std::atoi(text);
}

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

/// How often each unit stands in a journal.
std::map<std::pair<std::size_t, std::int64_t>, int> units_of(const std::string& journal) {
  std::map<std::pair<std::size_t, std::int64_t>, int> units;
  if (!std::filesystem::exists(journal) || std::filesystem::file_size(journal) == 0) return units;
  try {
    JournalReader(journal).read([&](json&& entry) {
      if (is_layer_entry(entry)) ++units[layer_entry_unit(entry)];
    });
  } catch (const Error&) {
    // Killed before the first line was whole.
  }
  return units;
}

/// A program that runs beside the test.
class Child {
 public:
  Child(const std::string& folder, const std::vector<std::string>& arguments) {
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.data()));
    argv.push_back(nullptr);
    process_ = fork();
    if (process_ != 0) return;
    if (chdir(folder.c_str()) != 0) _exit(126);
    const int log = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  pid_t process() const { return process_; }
  void send(int signal) const { kill(process_, signal); }
  /// The status of waitpid.
  int wait() const {
    int status = 0;
    waitpid(process_, &status, 0);
    return status;
  }

 private:
  pid_t process_ = -1;
};

class SwSweep : public ::testing::Test {
 protected:
  /// 2 inputs x 5 methods x 4 densities x 2 phases = 80 cells, 12 units.
  static constexpr std::size_t kCells = 80;
  static constexpr std::size_t kUnits = 12;

  SwSweep() {
    testing::TinyTrace trace;
    trace.layers = 6;
    trace.first_layer = 0;
    trace.prefill = 260;
    trace.write(folder_.file("a.h5"));
    trace.seed = 8;
    trace.write(folder_.file("b.h5"));
  }

  std::string grid() const {
    return "'" + folder_.file("a.h5") + "' '" + folder_.file("b.h5") +
           "' --quiet --block 16 --threads 2 "
           "--method 'sketchwalk:damping=0|0.25' sketchwalk:preset=preprint sink_window oracle "
           "--density 0.1:0.4:0.1 ";
  }
  /// The same for exec.
  std::vector<std::string> grid_arguments() const {
    return {SW_BIN_DIR "/sw-sweep",
            "trace",
            folder_.file("a.h5"),
            folder_.file("b.h5"),
            "--quiet",
            "--block",
            "16",
            "--threads",
            "2",
            "--method",
            "sketchwalk:damping=0|0.25",
            "sketchwalk:preset=preprint",
            "sink_window",
            "oracle",
            "--density",
            "0.1:0.4:0.1",
            "-o",
            "out"};
  }
  std::string subfolder(const std::string& name) const {
    std::filesystem::create_directory(folder_.file(name));
    return folder_.file(name);
  }
  static CommandResult in(const std::string& folder, const std::string& line) {
    return testing::run_command("cd '" + folder + "' && '" SW_BIN_DIR "/'" + line);
  }
  CommandResult sweep(const std::string& folder, const std::string& arguments) const {
    return in(folder, "sw-sweep " + arguments);
  }
  /// An undisturbed run in its own folder.
  std::string reference() const {
    const std::string folder = subfolder("reference");
    const CommandResult result = sweep(folder, "trace " + grid() + "-o out");
    EXPECT_EQ(result.code, 0) << result.output;
    return folder;
  }
  static void expect_same_report(const std::string& a, const std::string& b) {
    EXPECT_EQ(testing::without_times(a + ".json"), testing::without_times(b + ".json"));
    EXPECT_EQ(testing::hdf5_contents(a + ".h5"), testing::hdf5_contents(b + ".h5"));
  }
  static json report(const std::string& path) { return json::parse(read_file(path)); }

  testing::TemporaryFolder folder_;
};

TEST_F(SwSweep, TheReportIsThatOfTheEvaluatorAndFitsTheSchema) {
  const std::string folder = reference();
  const json out = report(folder + "/out.json");
  EXPECT_EQ(out.at("cells").size(), kCells);
  EXPECT_EQ(units_of(folder + "/out.journal").size(), kUnits);
  EXPECT_GT(out.at("work").at("distinct"), 0.0);
  EXPECT_GE(out.at("work").at("total"), out.at("work").at("distinct"));
  EXPECT_GT(out.at("work").at("separate_cells"), out.at("work").at("distinct"));
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder + "/out.json").output, "");
  }
  const CommandResult eval = in(folder, "sw-eval trace " + grid() + "-o eval");
  ASSERT_EQ(eval.code, 0) << eval.output;
  const json evaluated = report(folder + "/eval.json");
  ASSERT_EQ(evaluated.at("cells").size(), kCells);
  for (std::size_t c = 0; c < kCells; ++c) {
    json own = out.at("cells")[c];
    json other = evaluated.at("cells")[c];
    own.erase("latency");
    other.erase("latency");
    EXPECT_EQ(own, other);
  }
  EXPECT_EQ(testing::hdf5_contents(folder + "/out.h5"),
            testing::hdf5_contents(folder + "/eval.h5"));
}

TEST_F(SwSweep, TheSameJournalGivesTheSameBytes) {
  const std::string folder = reference();
  const CommandResult merged = in(folder, "sw-report merge again.json out.journal");
  ASSERT_EQ(merged.code, 0) << merged.output;
  EXPECT_EQ(read_file(folder + "/out.json"), read_file(folder + "/again.json"));
  EXPECT_EQ(read_file(folder + "/out.h5"), read_file(folder + "/again.h5"));
}

TEST_F(SwSweep, KilledAtRandomMomentsNothingIsLostOrRunTwice) {
  const int kills = parameter("SW_KILLS", 10);
  const auto start = Clock::now();
  const std::string undisturbed = reference();
  const double whole = std::chrono::duration<double>(Clock::now() - start).count();
  std::mt19937 random(static_cast<unsigned>(parameter("SW_SEED", 1)));
  int killed = 0;
  int sweeps = 0;
  for (; killed < kills; ++sweeps) {
    const std::string folder = subfolder("killed" + std::to_string(sweeps));
    std::size_t finished = 0;
    for (bool done = false; !done;) {
      const Child child(folder, grid_arguments());
      const bool last = killed >= kills;
      if (!last) {
        std::this_thread::sleep_for(std::chrono::duration<double>(
            std::uniform_real_distribution<double>(0.0, 0.6 * whole)(random)));
        child.send(SIGKILL);
      }
      const int status = child.wait();
      if (WIFSIGNALED(status)) {
        ++killed;
        // The report comes last: where it is, only the exit was left to do.
        done = std::filesystem::exists(folder + "/out.json");
      } else {
        ASSERT_EQ(WEXITSTATUS(status), 0) << read_file(folder + "/log");
        done = true;
      }
      const auto units = units_of(folder + "/out.journal");
      ASSERT_GE(units.size(), finished) << "a finished unit was lost";
      for (const auto& [unit, times] : units) ASSERT_EQ(times, 1);
      finished = units.size();
    }
    EXPECT_EQ(finished, kUnits);
    expect_same_report(folder + "/out", undisturbed + "/out");
    std::filesystem::remove_all(folder);
  }
  std::cout << killed << " kills in " << sweeps << " sweeps of " << kCells << " cells\n";
}

TEST_F(SwSweep, FourShardsAreOneProcess) {
  const std::string undisturbed = reference();
  const std::string folder = subfolder("shards");
  std::size_t units = 0;
  for (int i = 4; i >= 1; --i) {
    const std::string shard = std::to_string(i);
    const CommandResult result =
        sweep(folder, "trace " + grid() + "-o out --shard " + shard + "/4");
    ASSERT_EQ(result.code, 0) << result.output;
    expect_contains(result, "sw-report merge out.json");
    const auto own = units_of(folder + "/out.shard-" + shard + "-of-4.journal");
    EXPECT_EQ(own.size(), kUnits / 4);  // all units cost the same here
    units += own.size();
  }
  EXPECT_EQ(units, kUnits);
  EXPECT_FALSE(std::filesystem::exists(folder + "/out.json"));
  const CommandResult merged = in(folder, "sw-report merge out.json out.shard-*-of-4.journal");
  ASSERT_EQ(merged.code, 0) << merged.output;
  expect_same_report(folder + "/out", undisturbed + "/out");
  EXPECT_EQ(in(folder, "sw-report merge out.json out.shard-*-of-4.journal").code, 1);
}

TEST_F(SwSweep, MergeNamesWhatIsMissingDoubledOrForeign) {
  const std::string folder = subfolder("shards");
  for (const char* shard : {"1/3", "2/3", "3/3"}) {
    ASSERT_EQ(sweep(folder, "trace " + grid() + "-o out --shard " + shard).code, 0);
  }
  const std::string one = "out.shard-1-of-3.journal ";
  const std::string two = "out.shard-2-of-3.journal ";
  const CommandResult missing = in(folder, "sw-report merge m.json " + one + two);
  EXPECT_EQ(missing.code, 1);
  expect_contains(missing, "layer 2 of b.h5, layer 3 of b.h5, layer 4 of b.h5, layer 5 of b.h5");
  expect_contains(missing, "shards given: 1/3, 2/3");
  const CommandResult doubled = in(folder, "sw-report merge m.json " + one + two + one);
  EXPECT_EQ(doubled.code, 1);
  expect_contains(doubled, "layer 0 of a.h5 is there twice, in 'out.shard-1-of-3.journal'");
  ASSERT_EQ(sweep(folder, "trace " + grid() + "--seed 4 -o other --shard 3/3").code, 0);
  const CommandResult foreign =
      in(folder, "sw-report merge m.json " + one + two + "other.shard-3-of-3.journal");
  EXPECT_EQ(foreign.code, 1);
  expect_contains(foreign, "protocol/seed: 0 there, 4 now");
  EXPECT_EQ(in(folder, "sw-report merge m.json none.journal").code, 1);
  std::ofstream(folder + "/text") << "no journal, but long enough to be one";
  EXPECT_EQ(in(folder, "sw-report merge m.json text").code, 1);
  EXPECT_FALSE(std::filesystem::exists(folder + "/m.json"));
  EXPECT_FALSE(std::filesystem::exists(folder + "/m.h5"));
}

TEST_F(SwSweep, ATornJournalIsMended) {
  const std::string undisturbed = reference();
  const std::string folder = subfolder("torn");
  const std::string whole = read_file(undisturbed + "/out.journal");
  // In the identity, the beginning, a unit, and just before the end of the last unit.
  const std::size_t mark = whole.rfind('\n', whole.size() - 2);
  for (const std::size_t size : {std::size_t{40}, whole.find('\n') + 90, whole.size() / 2, mark}) {
    std::ofstream(folder + "/out.journal", std::ios::binary | std::ios::trunc)
        << whole.substr(0, size);
    const CommandResult result = sweep(folder, "trace " + grid() + "--force -o out");
    ASSERT_EQ(result.code, 0) << size << "\n" << result.output;
    expect_same_report(folder + "/out", undisturbed + "/out");
    for (const auto& [unit, times] : units_of(folder + "/out.journal")) EXPECT_EQ(times, 1);
  }
  // Damage that no kill leaves behind is refused.
  std::string damaged = whole;
  damaged[damaged.size() / 2] ^= 1;
  std::ofstream(folder + "/out.journal", std::ios::binary | std::ios::trunc) << damaged;
  const CommandResult result = sweep(folder, "trace " + grid() + "--force -o out");
  EXPECT_EQ(result.code, 1);
  expect_contains(result, "is damaged: line");
}

TEST_F(SwSweep, ASecondWriterIsRefused) {
  const std::string folder = subfolder("locked");
  const int file = open((folder + "/out.journal").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(flock(file, LOCK_EX | LOCK_NB), 0);
  const CommandResult result = sweep(folder, "trace " + grid() + "-o out");
  EXPECT_EQ(result.code, 2);
  expect_contains(result, "in use by another process");
  close(file);
  EXPECT_EQ(sweep(folder, "trace " + grid() + "-o out").code, 0);
}

TEST_F(SwSweep, MaxTimeStopsAndTheSameCommandGoesOn) {
  const std::string undisturbed = reference();
  const std::string folder = subfolder("limited");
  const CommandResult first = sweep(folder, "trace " + grid() + "--max-time 0.001s -o out");
  EXPECT_EQ(first.code, 124) << first.output;
  expect_contains(first, "out of time: 1 of 12 units are finished");
  expect_contains(first, "go on with: ");
  EXPECT_EQ(units_of(folder + "/out.journal").size(), 1u);
  EXPECT_FALSE(std::filesystem::exists(folder + "/out.json"));
  // A second of time is known not to be enough now, so nothing is begun.
  EXPECT_EQ(sweep(folder, "trace " + grid() + "--max-time 0.000001s -o out").code, 124);
  EXPECT_EQ(units_of(folder + "/out.journal").size(), 1u);
  const CommandResult rest = sweep(folder, "trace " + grid() + "--max-time 10m -o out");
  EXPECT_EQ(rest.code, 0) << rest.output;
  expect_same_report(folder + "/out", undisturbed + "/out");
  for (const char* bad : {"x", "0s", "-3m", "5d", "m"}) {
    const CommandResult result =
        sweep(folder, "trace " + grid() + "-o bad --max-time=" + std::string(bad));
    EXPECT_EQ(result.code, 2) << bad << result.output;
  }
}

TEST_F(SwSweep, ChangedOptionsInputsAndProgramsAreRefusedByName) {
  const std::string folder = subfolder("changed");
  const std::string begin = "trace " + grid() + "--max-time 0.001s -o out ";
  ASSERT_EQ(sweep(folder, begin).code, 124);
  const auto refused = [&](const std::string& arguments, const std::string& name) {
    const CommandResult result = sweep(folder, arguments);
    EXPECT_EQ(result.code, 2) << result.output;
    expect_contains(result, "is of another run: " + name);
  };
  refused(begin + "--seed 3", "protocol/seed");
  refused(begin + "--no-attribution", "protocol/attribution");
  refused(begin + "--backend reference", "backend");
  testing::TinyTrace other;
  other.layers = 6;
  other.first_layer = 0;
  other.prefill = 260;
  other.seed = 9;
  std::filesystem::remove(folder_.file("b.h5"));
  other.write(folder_.file("b.h5"));
  refused(begin, "inputs");
}

TEST_F(SwSweep, SignalsStopItAndTheSameCommandGoesOn) {
  testing::TinyTrace slow;
  slow.layers = 6;
  slow.first_layer = 0;
  slow.prefill = 700;
  slow.write(folder_.file("slow.h5"));
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string folder = subfolder("signal" + std::to_string(signal));
    const std::vector<std::string> command = {SW_BIN_DIR "/sw-sweep",
                                              "trace",
                                              folder_.file("slow.h5"),
                                              "--quiet",
                                              "--block",
                                              "16",
                                              "--backend",
                                              "reference",
                                              "--density",
                                              "0.1:0.5:0.1",
                                              "-o",
                                              "out"};
    const Child child(folder, command);
    // The first unit is done, and the others are not.
    while (units_of(folder + "/out.journal").empty()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    const auto sent = Clock::now();
    child.send(signal);
    const int status = child.wait();
    const double took = std::chrono::duration<double>(Clock::now() - sent).count();
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 128 + signal) << read_file(folder + "/log");
    const std::string log = read_file(folder + "/log");
    EXPECT_NE(log.find("stopped by a signal"), std::string::npos) << log;
    EXPECT_NE(log.find("go on with: "), std::string::npos) << log;
    const std::size_t finished = units_of(folder + "/out.journal").size();
    EXPECT_LT(finished, 6u) << took;
    EXPECT_FALSE(std::filesystem::exists(folder + "/out.json"));
    if (signal == SIGINT) continue;
    const int again = Child(folder, command).wait();
    EXPECT_EQ(WEXITSTATUS(again), 0) << read_file(folder + "/log");
    for (const auto& [unit, times] : units_of(folder + "/out.journal")) EXPECT_EQ(times, 1);
  }
}

TEST_F(SwSweep, CellsThatFailAreRecordedAndTheRestGoesOn) {
  testing::TinyTrace nan;
  nan.layers = 6;
  nan.first_layer = 0;
  nan.prefill = 260;
  nan.nan_layer = 3;
  nan.write(folder_.file("nan.h5"));
  const std::string arguments = "trace '" + folder_.file("a.h5") + "' '" + folder_.file("nan.h5") +
                                "' --quiet --block 16 --density 0.2 --method sketchwalk "
                                "sketchwalk:query_pool=7 sink_window ";
  const std::string one = subfolder("one");
  const CommandResult result = sweep(one, arguments + "-o out");
  EXPECT_EQ(result.code, 3) << result.output;
  std::map<std::string, int> reasons;
  const json out = report(one + "/out.json");
  ASSERT_EQ(out.at("cells").size(), 12u);
  for (const json& cell : out.at("cells")) {
    const bool bad = cell.at("input") == 1 ||
                     cell.at("method").get<std::string>().find("query_pool") != std::string::npos;
    EXPECT_EQ(cell.at("status"), bad ? "failed" : "ok") << cell;
    if (bad) ++reasons[cell.at("reason").get<std::string>().substr(0, 8)];
  }
  EXPECT_EQ(reasons["layer 2:"], 4);  // query_pool, at the first sparse layer of both inputs
  EXPECT_EQ(reasons["layer 3:"], 4);  // the others, at the layer with a NaN
  // In shards the failures of a layer are seen by some processes only.
  const std::string shards = subfolder("shards");
  for (const char* shard : {"1/5", "2/5", "3/5", "4/5", "5/5"}) {
    EXPECT_EQ(sweep(shards, arguments + "-o out --shard " + shard).code, 0);
  }
  EXPECT_EQ(in(shards, "sw-report merge out.json out.shard-*").code, 3);
  expect_same_report(one + "/out", shards + "/out");
}

TEST_F(SwSweep, SelectionsSurviveTheJournal) {
  const std::string folder = subfolder("saved");
  const std::string arguments =
      "trace '" + folder_.file("a.h5") +
      "' --quiet --block 16 --save-selection --density 0.1 0.3 --method sketchwalk "
      "sketchwalk:budget=release oracle:granularity=head ";
  ASSERT_EQ(sweep(folder, arguments + "-o out").code, 0);
  ASSERT_EQ(in(folder, "sw-eval " + arguments + "-o eval").code, 0);
  EXPECT_EQ(testing::hdf5_contents(folder + "/out.h5"),
            testing::hdf5_contents(folder + "/eval.h5"));
}

TEST_F(SwSweep, APlanWritesNothing) {
  const std::string folder = subfolder("plan");
  const CommandResult plan = sweep(folder, "trace " + grid() + "--dry-run --shard 2/4");
  EXPECT_EQ(plan.code, 0) << plan.output;
  expect_contains(plan, "Cells: 80\n");
  expect_contains(plan, "Units of work: 12, 3 of them in shard 2/4 (layer 3 of a.h5 to layer 5");
  expect_contains(plan, "sketchwalk:preset=release,damping=0\n");
  expect_contains(plan, "Densities: 4 (0.1 0.2 0.3 0.4)");
  expect_contains(plan, "Time: about ");
  expect_contains(plan, "Memory: about ");
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST_F(SwSweep, UsageErrors) {
  const std::string folder = subfolder("usage");
  for (const char* arguments :
       {"", "-o out --shard 0/4", "-o out --shard 5/4", "-o out --shard x",
        "-o out --density 0.5:0.1:0.1", "-o out --density 0.1:0.5:0",
        "-o out --method 'sketchwalk:damping=0|'", "-o out --method 'sketchwalk:dampin=0|1'"}) {
    const CommandResult result = sweep(folder, "trace " + grid() + arguments);
    EXPECT_EQ(result.code, 2) << arguments << "\n" << result.output;
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
}

TEST_F(SwSweep, AnExperimentFileIsTheSameSweep) {
  const std::string undisturbed = reference();
  const std::string folder = subfolder("file");
  std::ofstream(folder + "/grid.json")
      << R"({"command": "trace", "description": "as above", "block": 16,
             "method": ["sketchwalk:damping=0|0.25", "sketchwalk:preset=preprint", "sink_window",
                        "oracle"],
             "density": ["0.1:0.4:0.1"]})";
  const std::string inputs = " '" + folder_.file("a.h5") + "' '" + folder_.file("b.h5") + "' ";
  const CommandResult result =
      sweep(folder, "run grid.json" + inputs + "--quiet --threads 2 -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  expect_same_report(folder + "/out", undisturbed + "/out");
  std::ofstream(folder + "/bad.json") << R"({"command": "trace", "densities": [0.1]})";
  const CommandResult bad = sweep(folder, "run bad.json" + inputs + "-o bad");
  EXPECT_EQ(bad.code, 2);
  expect_contains(bad, "did you mean 'density'?");
  EXPECT_EQ(sweep(folder, "run grid.json -o nothing").code, 2);
}

/// A sweep of a tiny model with random weights over windows of a text and needles.
class SwSweepModel : public SwSweep {
 protected:
  SwSweepModel() {
    std::ofstream text(folder_.file("text.txt"));
    for (int i = 0; i < 120; ++i) {
      text << "In the city of " << i * 37 % 101 << " songs she was the first writer. ";
    }
  }
  std::string arguments(const std::string& reply_tokens = "4") const {
    return "model '" SW_TEST_DIR
           "/model/golden/tiny_llama.gguf' --quiet --block 8 --compute f32 "
           "--context 240 --task perplexity=" +
           folder_.file("text.txt") +
           " niah:lengths=230,depths=0+1 --limit 3 --kl --decode-tokens 8 --max-new-tokens " +
           reply_tokens +
           " --method 'sketchwalk:dense_layers=0,damping=0|0.25' sink_window:dense_layers=0 "
           "--density 0.3:0.5:0.2 ";
  }
};

TEST_F(SwSweepModel, ShardsAreOneProcessAndTheEvaluator) {
  const std::string one = subfolder("one");
  const CommandResult result = sweep(one, arguments() + "-o out");
  ASSERT_EQ(result.code, 0) << result.output;
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, one + "/out.json").output, "");
  }
  ASSERT_EQ(in(one, "sw-eval " + arguments() + "-o eval").code, 0);
  EXPECT_EQ(testing::hdf5_contents(one + "/out.h5"), testing::hdf5_contents(one + "/eval.h5"));
  const std::string shards = subfolder("shards");
  for (const char* shard : {"1/3", "2/3", "3/3"}) {
    ASSERT_EQ(sweep(shards, arguments() + "-o out --shard " + shard).code, 0);
  }
  ASSERT_EQ(in(shards, "sw-report merge out.json out.shard-*").code, 0);
  expect_same_report(one + "/out", shards + "/out");
  const CommandResult missing =
      in(shards, "sw-report merge m.json out.shard-1-of-3.journal out.shard-2-of-3.journal");
  EXPECT_EQ(missing.code, 1);
  expect_contains(missing, "sample 1 of niah");
}

TEST_F(SwSweepModel, MaxTimeThenOn) {
  const std::string folder = subfolder("limited");
  EXPECT_EQ(sweep(folder, arguments() + "--max-time 0.001s -o out").code, 124);
  EXPECT_FALSE(std::filesystem::exists(folder + "/out.json"));
  EXPECT_EQ(sweep(folder, arguments() + "-o out").code, 0);
  std::map<std::string, int> entries;
  JournalReader(folder + "/out.journal").read([&](json&& entry) {
    if (entry.contains("task")) {
      ++entries[entry.at("task").dump() + entry.at("sample").dump() + entry.at("arm").dump()];
    }
  });
  EXPECT_EQ(entries.size(), (3u + 2u) * 7u);
  for (const auto& [entry, times] : entries) EXPECT_EQ(times, 1) << entry;
}

TEST_F(SwSweepModel, SamplesThatCannotBeRunFailTheirCells) {
  const std::string folder = subfolder("failing");
  // Replies as long as the context leave no room for a prompt; the windows of the text go on.
  const CommandResult result = sweep(folder, arguments("239") + "-o out");
  EXPECT_EQ(result.code, 3) << result.output;
  const json out = report(folder + "/out.json");
  ASSERT_EQ(out.at("cells").size(), 14u);
  for (const json& cell : out.at("cells")) {
    const bool bad = cell.at("input") == "niah";
    EXPECT_EQ(cell.at("status"), bad ? "failed" : "ok");
    if (bad) {
      EXPECT_NE(cell.at("reason").get<std::string>().find("no room"), std::string::npos);
    }
  }
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder + "/out.json").output, "");
  }
}

/// Journals of the shards of a sweep that was never run: `inputs` x 20 methods x 20 densities, four
/// layers of four heads and 32 query blocks.
void write_synthetic_shards(const std::string& folder, std::size_t inputs, std::int64_t shards) {
  constexpr int kMethods = 20;
  constexpr int kDensities = 20;
  constexpr std::int64_t kLayers = 4;
  constexpr std::int64_t kHeads = 4;
  constexpr std::int64_t kBlocks = 32;
  Report head;
  head.created = "2026-02-07T12:00:00Z";
  head.command = {"sw-sweep"};
  for (std::size_t i = 0; i < inputs; ++i) {
    InputRecord input;
    input.path = "trace" + std::to_string(i) + ".h5";
    input.info.num_layers = kLayers;
    input.info.num_heads = kHeads;
    input.info.num_kv_heads = kHeads;
    input.info.prefill_tokens = input.info.total_tokens = kBlocks * 64;
    head.inputs.push_back(input);
  }
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  const auto array = [&](std::int64_t units) {
    MetricArray values(1, units, kBlocks, 0.0f);
    for (float& x : values.values) x = uniform(random);
    return values;
  };
  for (std::int64_t s = 0; s < shards; ++s) {
    const Shard shard{s + 1, shards};
    Journal journal(folder + "/out.shard-" + std::to_string(s + 1) + ".journal",
                    sweep_identity(head, "none", shard), [](json&&) {});
    journal.append(begin_entry(head));
    for (std::size_t i = 0; i < inputs; ++i) {
      for (std::int64_t layer = 0; layer < kLayers; ++layer) {
        if ((static_cast<std::int64_t>(i) * kLayers + layer) % shards != s) continue;
        LayerEntry entry{i, {layer, {}, {}}};
        for (int cell = 0; cell < kMethods * kDensities; ++cell) {
          CellRecord record;
          record.method = "method" + std::to_string(cell / kDensities);
          if (cell / kDensities == 0) record.method = "sink_window";
          record.name = record.method;
          record.density = (cell % kDensities + 1) / 40.0;
          LayerRecord counts;
          counts.layer = layer;
          counts.sparse = layer > 0;
          counts.pairs.causal = 1000;
          counts.pairs.kept[0] = 100;
          record.layers.push_back(counts);
          for (const MetricInfo& metric : list_metrics()) {
            if (!metric.per_set) {
              record.metric(metric.metric) = array(kHeads);
            } else if (layer > 0) {
              record.metric(metric.metric) = array(1);
            }
          }
          record.density_rows = array(kHeads);
          TimeSample times;
          times.layer = layer;
          times.attended = true;
          if (layer > 0) record.times.push_back(times);
          entry.part.cells.push_back(std::move(record));
        }
        journal.append(to_json(entry));
      }
    }
  }
}

// What a journal declares becomes loops and arrays only when it is plausible.
TEST_F(SwSweep, JournalsThatDeclareTooMuchAreRefused) {
  const std::string folder = subfolder("hostile");
  Report head;
  InputRecord input;
  input.path = "t.h5";
  input.info.num_layers = 1;
  input.info.num_heads = input.info.num_kv_heads = 4;
  input.info.prefill_tokens = input.info.total_tokens = 256;
  head.inputs = {input};
  const auto merge = [&](const Report& declared, const std::vector<json>& entries) {
    const std::string journal = folder + "/hostile.journal";
    std::filesystem::remove(journal);
    {
      Journal writer(journal, sweep_identity(declared, "none", Shard()));
      writer.append(begin_entry(declared));
      for (const json& entry : entries) writer.append(entry);
    }
    return testing::run_command(
        "cd '" + folder + "' && '" SW_BIN_DIR "/sw-report' merge --force out hostile.journal");
  };
  const auto expect_refused = [&](const CommandResult& result, const std::string& why) {
    EXPECT_EQ(result.code, 1);
    expect_contains(result, why);
  };
  for (std::int64_t TraceInfo::*field :
       {&TraceInfo::first_layer, &TraceInfo::num_layers, &TraceInfo::num_heads,
        &TraceInfo::total_tokens, &TraceInfo::prefill_tokens}) {
    for (const std::int64_t value : {std::int64_t{-1}, std::int64_t{1} << 60}) {
      Report declared = head;
      declared.inputs[0].info.*field = value;
      expect_refused(merge(declared, {}), "the head of the journal has ");
    }
  }
  CellRecord cell;
  cell.method = cell.name = "dense";
  cell.layers.emplace_back();
  for (const MetricInfo& metric : list_metrics()) cell.metric(metric.metric) = {};
  cell.density_rows = MetricArray(1, 4, 4, 1.0f);
  LayerEntry entry{0, {0, {cell}, {}}};
  EXPECT_EQ(merge(head, {to_json(entry)}).code, 0);
  json hostile = to_json(entry);
  hostile["cells"][0]["density_rows"] = {1 << 16, 1 << 12, 1.0};
  expect_refused(merge(head, {hostile}), "is larger than the 4 heads x 4 blocks or steps");
  entry.part.layer = 1;
  expect_refused(merge(head, {to_json(entry)}), "holds layer 1 of t.h5, which the sweep has not");
  entry.part.layer = 0;
  entry.input = 7;
  expect_refused(merge(head, {to_json(entry)}),
                 "holds layer 0 of input 7, which the sweep has not");
}

TEST_F(SwSweep, ManyCellsMergeInLittleTimeAndMemory) {
  const auto inputs = static_cast<std::size_t>(parameter("SW_MERGE_INPUTS", 2));  // 400 cells each
  const std::string folder = subfolder("many");
  write_synthetic_shards(folder, inputs, 4);
  const auto start = Clock::now();
  const Child child(folder, {SW_BIN_DIR "/sw-report", "merge", "out.json", "out.shard-1.journal",
                             "out.shard-2.journal", "out.shard-3.journal", "out.shard-4.journal"});
  int status = 0;
  rusage usage{};
  wait4(child.process(), &status, 0, &usage);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  ASSERT_EQ(WEXITSTATUS(status), 0) << read_file(folder + "/log").substr(0, 2000);
  EXPECT_EQ(report(folder + "/out.json").at("cells").size(), 400 * inputs);
  const auto cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
  std::cout << 400 * inputs << " cells: " << seconds << " s, " << cpu << " s of CPU, "
            << static_cast<double>(usage.ru_maxrss) / 1024.0 << " MiB\n";
  EXPECT_LT(usage.ru_maxrss, 1024 * 1024);
  // What a cell may take of the 30 s of 10,000, with tenfold room for a busy machine.
  EXPECT_LT(seconds, 10.0 * (1.0 + 30.0 * static_cast<double>(400 * inputs) / 10000.0));
}

}  // namespace
}  // namespace sw
