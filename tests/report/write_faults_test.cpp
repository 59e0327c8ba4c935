// Every call that writes a file fails once, in every place where files are written: the outcome is
// one clear error or the whole file, and never a lost or a half-written one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "eval/journal.hpp"
#include "report/files.hpp"
#include "report/hdf5_report.hpp"
#include "report/profile_report.hpp"
#include "report_samples.hpp"
#include "support/command.hpp"
#include "support/faults.hpp"
#include "support/report_files.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Files = std::map<std::string, std::string>;

constexpr int kShort = 0;
constexpr int kErrors[] = {ENOSPC, EIO, EINTR, kShort};

std::string name_of(int error) { return error == kShort ? "short writes" : std::strerror(error); }

/// Name and content of all files below a folder.
Files files_in(const std::string& folder) {
  Files files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    files[fs::relative(entry.path(), folder).string()] = read_file(entry.path().string());
  }
  return files;
}

/// The same with what HDF5 files hold in place of their bytes, among which are times.
Files contents_in(const std::string& folder) {
  Files files = files_in(folder);
  for (auto& [name, content] : files) {
    if (!name.ends_with(".h5")) continue;
    content.clear();
    for (const auto& [object, value] : testing::hdf5_contents(folder + "/" + name)) {
      content += object + " = " + value + "\n";
    }
  }
  return files;
}

struct Faults {
  /// Fills a new folder with what is there before.
  std::function<void(const std::string& folder)> before = [](const std::string&) {};
  /// Writes into it; throws Error(kOutput) when that fails.
  std::function<void(const std::string& folder)> write;
  /// Whether what is there after an error is right; by default what was there before.
  std::function<bool(const Files& before, const Files& after)> intact =
      [](const Files& old, const Files& now) { return old == now; };
  /// Whether the writes are those of the HDF5 library: it takes an interrupted open, close or
  /// ftruncate for an error, where our own go on.
  bool hdf5 = false;
};

void run(const Faults& faults) {
  Files whole;
  {
    const testing::TemporaryFolder folder;
    faults.before(folder.path());
    faults.write(folder.path());
    whole = contents_in(folder.path());
  }
  for (const int error : kErrors) {
    long calls = 0;
    for (long at = 1; at == 1 || calls >= at - 1; ++at) {
      SCOPED_TRACE(name_of(error) + " in call " + std::to_string(at));
      const testing::TemporaryFolder folder;
      faults.before(folder.path());
      const Files old = files_in(folder.path());
      bool failed = false;
      sw_faults_arm(folder.path().c_str(), at, error);
      try {
        faults.write(folder.path());
        calls = sw_faults_disarm();
      } catch (const Error& e) {
        calls = sw_faults_disarm();
        failed = true;
        EXPECT_EQ(e.kind(), ErrorKind::kOutput) << e.what();
        EXPECT_NE(std::string(e.what()).find(folder.path()), std::string::npos) << e.what();
        EXPECT_FALSE(e.hint().empty());
      }
      if (failed) {
        EXPECT_TRUE(faults.intact(old, files_in(folder.path())));
        EXPECT_NE(error, kShort);
        EXPECT_TRUE(faults.hdf5 || error != EINTR);
      } else {
        EXPECT_TRUE(contents_in(folder.path()) == whole);
      }
      EXPECT_TRUE(calls >= at || !failed);
      if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GE(calls, 6);
  }
}

TEST(WriteFaults, AFile) {
  const std::string text(1000, 'x');
  run({.write = [&](const std::string& folder) { write_file(folder + "/a", text, false); }});
  run({.before = [](const std::string& folder) { write_file(folder + "/a", "old", false); },
       .write = [&](const std::string& folder) { write_file(folder + "/a", text, true); }});
}

void write_trace(const std::string& path) {
  testing::TinyTrace{.prefill = 20, .layers = 1, .answers = false}.write(path);
}

TEST(WriteFaults, ASafetensorsTrace) {
  run({.write = [](const std::string& folder) { write_trace(folder + "/t.safetensors"); }});
}

TEST(WriteFaults, AnHdf5Trace) {
  run({.write = [](const std::string& folder) { write_trace(folder + "/t.h5"); }, .hdf5 = true});
}

ProfileReport small_report() {
  ProfileReport report;
  report.created = "2026-01-01T00:00:00Z";
  Measurement measurement;
  measurement.method = "dense";
  measurement.phase = "prefill";
  measurement.seconds = {0.5, 0.25};
  report.measurements.push_back(measurement);
  return report;
}

void write_pair(const std::string& folder, const std::string& text, bool force) {
  const ReportPaths paths = report_paths(folder + "/out");
  const ProfileReport report = small_report();
  write_report_files(
      paths, force, [&](const std::string& place) { write_hdf5(report, place, paths.hdf5); }, text);
}

TEST(WriteFaults, AReport) {
  run({.write = [](const std::string& folder) { write_pair(folder, "new", false); }, .hdf5 = true});
}

// Neither of the two files may be of one run and the other of another.
TEST(WriteFaults, AReportOverAnOlderOne) {
  const auto before = [](const std::string& folder) {
    write_file(folder + "/out.json", "old", false);
    write_file(folder + "/out.h5", "old arrays", false);
  };
  run({.before = before,
       .write = [](const std::string& folder) { write_pair(folder, "new", true); },
       .hdf5 = true});
}

// What append has returned from is there; what it has thrown for is not.
TEST(WriteFaults, AJournal) {
  const json identity = {{"kind", "test"}};
  for (const int error : kErrors) {
    long calls = 0;
    for (long at = 1; at == 1 || calls >= at - 1; ++at) {
      SCOPED_TRACE(name_of(error) + " in call " + std::to_string(at));
      const testing::TemporaryFolder folder;
      const std::string path = folder.file("run.journal");
      int done = 0;
      sw_faults_arm(folder.path().c_str(), at, error);
      try {
        Journal journal(path, identity);
        for (; done < 3; ++done) journal.append({{"i", done}});
        calls = sw_faults_disarm();
      } catch (const Error& e) {
        calls = sw_faults_disarm();
        EXPECT_EQ(e.kind(), ErrorKind::kOutput) << e.what();
        EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
        EXPECT_NE(error, kShort);
        EXPECT_NE(error, EINTR);
      }
      // The next run goes on.
      Journal journal(path, identity);
      ASSERT_EQ(std::ssize(journal.entries()), done);
      for (; done < 3; ++done) journal.append({{"i", done}});
      for (int i = 0; i < 3; ++i) EXPECT_EQ(journal.entries()[static_cast<std::size_t>(i)]["i"], i);
    }
    EXPECT_GE(calls, 10);
  }
}

/// A command of a program, in a folder that is watched; what it reads does not stand there.
struct ProgramRun {
  /// Program and arguments, which write into the folder.
  std::function<std::string(const std::string& folder)> command;
  /// As of Faults: of the HDF5 library an interrupted call may fail.
  bool hdf5 = false;
  long least_calls = 6;
};

class ProgramFaults : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef __SANITIZE_ADDRESS__
    GTEST_SKIP() << "a library cannot be loaded in front of the address sanitizer";
#endif
  }

  testing::CommandResult run(const std::string& command, const std::string& folder, long at,
                             int error) const {
    return testing::run_command("LD_PRELOAD='" SW_FAULTS_LIBRARY "' SW_FAULTS_COUNT='" +
                                inputs_.file("calls") + "' SW_FAULTS_FOLDER='" + folder +
                                "' SW_FAULTS_AT=" + std::to_string(at) +
                                " SW_FAULTS_ERROR=" + std::to_string(error) + " TMPDIR='" + folder +
                                "' '" SW_BIN_DIR "'/" + command);
  }

  /// The error and its hint, and nothing else.
  static void expect_one_error(const testing::CommandResult& result) {
    EXPECT_EQ(result.code, 1) << result.output;
    EXPECT_TRUE(result.output.starts_with("error: cannot write ") ||
                result.output.starts_with("error: cannot read "))  // a journal, for the report
        << result.output;
    EXPECT_EQ(std::ranges::count(result.output, '\n'), 2) << result.output;
  }

  /// Reports but for their times, and other texts as they are; a journal holds times anywhere, and
  /// scripts the name of their folder.
  static Files comparable(const std::string& folder) {
    Files files = contents_in(folder);
    for (auto& [name, content] : files) {
      if (name.ends_with(".journal")) content = "";
      if (name.ends_with(".json")) content = testing::without_times(json::parse(content)).dump();
      for (std::size_t at; (at = content.find(folder)) != std::string::npos;) {
        content.replace(at, folder.size(), "FOLDER");
      }
    }
    return files;
  }

  /// With one fault in each call in turn: either the run ends well with all files, or with one
  /// error, no report and no temporary file, and the same command goes on once the fault is gone.
  void expect_to_go_on(const ProgramRun& program) {
    const testing::TemporaryFolder undisturbed;
    const auto first = run(program.command(undisturbed.path()), undisturbed.path(), 0, EIO);
    ASSERT_EQ(first.code, 0) << first.output;
    const long calls = std::stol(read_file(inputs_.file("calls")));
    ASSERT_GE(calls, program.least_calls);
    const Files whole = comparable(undisturbed.path());
    ASSERT_FALSE(whole.empty());
    for (const int error : kErrors) {
      const long last = error == kShort ? 1 : calls;  // from the first one on all writes are short
      for (long at = 1; at <= last; ++at) {
        SCOPED_TRACE(name_of(error) + " in call " + std::to_string(at) + " of " +
                     std::to_string(calls));
        const testing::TemporaryFolder folder;
        const std::string command = program.command(folder.path());
        auto result = run(command, folder.path(), at, error);
        if (result.code != 0) {  // what only closes what is flushed may fail and not matter
          expect_one_error(result);
          EXPECT_TRUE(error == ENOSPC || error == EIO || (error == EINTR && program.hdf5));
          for (const auto& [name, content] : comparable(folder.path())) {
            EXPECT_TRUE(whole.contains(name)) << name;  // no temporary file
            EXPECT_TRUE(name.ends_with(".journal") || name.starts_with("preds/")) << name;
          }
          result = run(command, folder.path(), 0, error);
        }
        EXPECT_EQ(result.code, 0) << result.output;
        EXPECT_TRUE(comparable(folder.path()) == whole);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }

  std::string trace(std::int64_t layers) const {
    testing::TinyTrace tiny;
    tiny.prefill = 64;
    tiny.layers = layers;
    tiny.first_layer = 2;
    return tiny.write(inputs_.file("t.h5"));
  }
  /// The options of a small sweep of traces.
  static std::string sweep(const std::string& trace, const std::string& densities = "0.3") {
    return "trace '" + trace +
           "' --quiet --block 16 --backend reference --no-attribution --method sink_window "
           "--density " +
           densities + " ";
  }
  /// The report of a small evaluation, made without faults.
  std::string report() const {
    const std::string out = inputs_.file("in.json");
    const auto result = testing::run_command("'" SW_BIN_DIR "'/sw-eval " +
                                             sweep(trace(1), "0.2 0.3 0.6") + "-o '" + out + "'");
    EXPECT_EQ(result.code, 0) << result.output;
    return out;
  }

  testing::TemporaryFolder inputs_;
};

// The journal, the HDF5 file, the JSON file and the predictions: a failed run goes on with the same
// command, once the fault is gone, and ends in the same report.
TEST_F(ProgramFaults, AModelRunGoesOn) {
  expect_to_go_on(
      {.command =
           [](const std::string& folder) {
             return "sw-eval model '" SW_TEST_DIR
                    "/model/golden/tiny_llama.gguf' --quiet --block 8 --compute f32 --context 240 "
                    "--task niah:lengths=230,depths=0.5,samples=1 --max-new-tokens 2 --method "
                    "sink_window --density 0.3 --predictions '" +
                    folder + "/preds' -o '" + folder + "/out'";
           },
       .hdf5 = true,
       .least_calls = 30});
}

TEST_F(ProgramFaults, ASweepGoesOn) {
  const std::string input = trace(2);
  expect_to_go_on({.command =
                       [&](const std::string& folder) {
                         return "sw-sweep " + sweep(input) + "-o '" + folder + "/out'";
                       },
                   .hdf5 = true,
                   .least_calls = 40});
}

TEST_F(ProgramFaults, AShardGoesOn) {
  const std::string input = trace(2);
  expect_to_go_on({.command =
                       [&](const std::string& folder) {
                         return "sw-sweep " + sweep(input) + "--shard 1/2 -o '" + folder + "/out'";
                       },
                   .least_calls = 10});
}

TEST_F(ProgramFaults, AMerge) {
  const std::string input = trace(2);
  const std::string out = inputs_.file("out");
  for (const char* shard : {"1/2", "2/2"}) {
    const auto result = testing::run_command("'" SW_BIN_DIR "'/sw-sweep " + sweep(input) +
                                             "--shard " + shard + " -o '" + out + "'");
    ASSERT_EQ(result.code, 0) << result.output;
  }
  expect_to_go_on({.command =
                       [&](const std::string& folder) {
                         return "sw-report merge '" + folder + "/out.json' '" + out +
                                ".shard-1-of-2.journal' '" + out + ".shard-2-of-2.journal'";
                       },
                   .hdf5 = true,
                   .least_calls = 20});
}

TEST_F(ProgramFaults, ScriptsOfSlurm) {
  const std::string input = trace(2);
  expect_to_go_on({.command =
                       [&](const std::string& folder) {
                         return "sw-sweep submit --slurm --shards 2 --no-check -o '" + folder +
                                "/out' -- " + sweep(input);
                       },
                   .least_calls = 12});
}

TEST_F(ProgramFaults, ATable) {
  const std::string input = report();
  expect_to_go_on({.command = [&](const std::string& folder) {
    return "sw-report csv '" + input + "' -o '" + folder + "/out.csv'";
  }});
}

TEST_F(ProgramFaults, APage) {
  const auto tried = testing::run_command("'" SW_BIN_DIR "'/sw-report html '" + report() +
                                          "' -o '" + inputs_.file("try.html") + "'");
  if (tried.output.find("SW_D3_DIR") != std::string::npos) {
    GTEST_SKIP() << "this build has no pages, for want of D3";
  }
  ASSERT_EQ(tried.code, 0) << tried.output;
  const std::string input = inputs_.file("in.json");
  expect_to_go_on({.command = [&](const std::string& folder) {
    return "sw-report html '" + input + "' -o '" + folder + "/out.html'";
  }});
}

TEST_F(ProgramFaults, AFigure) {
  const std::string input = report();
  const auto figure = [&](const std::string& options) {
    return [&, options](const std::string& folder) {
      return "sw-report plot '" + input + "' -o '" + folder + "/out.svg'" + options;
    };
  };
  expect_to_go_on({.command = figure(" --script")});
  if (testing::run_command("gnuplot --version").code == 0) {
    // gnuplot reads its script from a file, which is in the folder too.
    expect_to_go_on({.command = figure(""), .least_calls = 10});
  }
}

}  // namespace
}  // namespace sw
