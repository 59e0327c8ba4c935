// sw-sweep --mpi from outside: jobs of several ranks, undisturbed and killed.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <sstream>
#include <thread>

#include "mpirun.hpp"
#include "sweep_folder.hpp"

namespace {

using sw::testing::CommandResult;
using sw::testing::SweepFolder;

#ifndef SW_WITH_MPI
TEST(MpiSweep, ABuildWithoutMpiSaysSo) {
  const SweepFolder folder;
  const CommandResult result =
      folder.run(std::string("sw-sweep ") + SweepFolder::kSweep + " --mpi -o out");
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.output.find("was built without MPI"), std::string::npos) << result.output;
}
#else

/// A command that runs in the background, with all processes that it starts.
class Background {
 public:
  explicit Background(const std::string& line) : pid_(fork()) {
    if (pid_ == 0) {
      setsid();
      execl("/bin/sh", "sh", "-c", line.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
  }
  ~Background() {
    if (pid_ > 0) kill_all();
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  /// Waits until `reached()`; false when the command has ended before, or after a minute.
  bool wait_until(const std::function<bool()>& reached) {
    for (int tries = 0; tries < 6000; ++tries) {
      if (reached()) return true;
      if (has_ended()) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  /// All processes below the command whose command line begins with `program`.
  std::vector<pid_t> find(const std::string& program) const {
    std::vector<pid_t> found;
    visit(pid_, [&](pid_t pid) {
      std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline");
      std::string name;
      std::getline(file, name, '\0');
      if (name == program || name.ends_with("/" + program)) found.push_back(pid);
    });
    return found;
  }

  void kill_all() {
    std::vector<pid_t> all;
    visit(pid_, [&](pid_t pid) { all.push_back(pid); });
    for (const pid_t pid : all) ::kill(pid, SIGKILL);
    wait();
  }

  /// The exit code, or -1 after a signal.
  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  bool has_ended() const {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
           info.si_pid == pid_;
  }

  static void visit(pid_t pid, const std::function<void(pid_t)>& visitor) {
    visitor(pid);
    const std::string name = std::to_string(pid);
    std::ifstream file("/proc/" + name + "/task/" + name + "/children");
    for (pid_t child = 0; file >> child;) visit(child, visitor);
  }

  pid_t pid_;
};

class MpiSweep : public ::testing::Test {
 protected:
  void SetUp() override { SW_REQUIRE_MPIRUN(); }

  static std::string sweep(const std::string& options) {
    return std::string("sw-sweep ") + SweepFolder::kSweep + " --quiet " + options;
  }
  CommandResult run(int ranks, const std::string& options = "--mpi -o out") const {
    return folder_.run("timeout 120 " + sw::testing::mpirun(ranks) + sweep(options));
  }
  std::string background(int ranks) const {
    return "cd '" + folder_.path() + "' && PATH='" SW_BIN_DIR "':\"$PATH\" exec " +
           sw::testing::mpirun(ranks) + sweep("--mpi -o out") + " >>log 2>&1";
  }

  std::size_t finished() const { return folder_.count_units("out").size(); }

  /// Runs a job until at least `units` are finished, and ends it by `how`.
  void disturb(int ranks, std::size_t units, const std::function<void(Background&)>& how) const {
    Background job(background(ranks));
    ASSERT_TRUE(job.wait_until([&] { return finished() >= units; }))
        << folder_.run("cat log").output;
    how(job);
    ASSERT_FALSE(std::filesystem::exists(folder_.file("out.json"))) << "it was not disturbed";
  }

  /// All units stand in the journals once, and the report is that of one process.
  void expect_complete() const {
    const auto counts = folder_.count_units("out");
    EXPECT_EQ(counts.size(), SweepFolder::kUnits);
    for (const auto& [unit, count] : counts) {
      EXPECT_EQ(count, 1) << "input " << unit.first << ", layer " << unit.second;
    }
    folder_.run_alone("alone");
    folder_.expect_same("alone", "out");
  }

  SweepFolder folder_;
};

void expect_contains(const CommandResult& result, const std::string& text) {
  EXPECT_NE(result.output.find(text), std::string::npos) << result.output;
}

TEST_F(MpiSweep, ThreeRanksEqualOneProcess) {
  const CommandResult result = run(3);
  EXPECT_EQ(result.code, 0) << result.output;
  expect_contains(result, "out.json");
  for (const std::string journal : {"out.journal", "out.rank-1.journal", "out.rank-2.journal"}) {
    EXPECT_FALSE(folder_.units(journal).empty()) << journal;
  }
  expect_complete();
}

TEST_F(MpiSweep, AKilledJobGoesOn) {
  disturb(3, 4, [](Background& job) { job.kill_all(); });
  const std::size_t before = finished();
  const CommandResult result = run(3);
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_GE(before, 4u);
  expect_complete();
}

TEST_F(MpiSweep, AKilledRankEndsTheJobAndLosesNoFinishedUnit) {
  disturb(3, 4, [](Background& job) {
    const std::vector<pid_t> ranks = job.find("sw-sweep");
    ASSERT_EQ(ranks.size(), 3u);
    kill(ranks.back(), SIGKILL);
    EXPECT_NE(job.wait(), 0);
  });
  const CommandResult result = run(3);
  EXPECT_EQ(result.code, 0) << result.output;
  expect_complete();
}

TEST_F(MpiSweep, ATerminatedJobGoesOn) {
  disturb(3, 4, [](Background& job) {
    kill(job.find("mpirun").front(), SIGTERM);
    EXPECT_NE(job.wait(), 0);
  });
  const CommandResult result = run(3);
  EXPECT_EQ(result.code, 0) << result.output;
  expect_complete();
}

TEST_F(MpiSweep, FewerRanksOrOneProcessGoOnWithAJob) {
  disturb(3, 3, [](Background& job) { job.kill_all(); });
  disturb(2, 7, [](Background& job) { job.kill_all(); });
  const CommandResult result = folder_.run(sweep("-o out"));
  EXPECT_EQ(result.code, 0) << result.output;
  expect_complete();
}

TEST_F(MpiSweep, AJobGoesOnWithWhatOneProcessBegan) {
  EXPECT_EQ(folder_.run(sweep("--max-time 0.001s -o out")).code, 124);
  EXPECT_EQ(finished(), 1u);
  EXPECT_EQ(run(3).code, 0);
  expect_complete();
}

TEST_F(MpiSweep, OutOfTimeIsSaidOnceAndGoneOnWith) {
  const CommandResult stopped = run(3, "--mpi --max-time 0.001s -o out");
  EXPECT_EQ(stopped.code, 124) << stopped.output;
  expect_contains(stopped, "go on with: ");
  EXPECT_EQ(stopped.output.find("go on with"), stopped.output.rfind("go on with"));
  EXPECT_LE(finished(), 3u);
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
  EXPECT_EQ(run(3).code, 0);
  expect_complete();
}

TEST_F(MpiSweep, ARankWithoutJournalStopsTheJobBeforeItBegins) {
  std::filesystem::create_directory(folder_.file("out.rank-1.journal"));
  const CommandResult result = run(3);
  EXPECT_NE(result.code, 0);
  expect_contains(result, "error: ");
  expect_contains(result, "out.rank-1.journal");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
  std::filesystem::remove(folder_.file("out.rank-1.journal"));
  EXPECT_EQ(finished(), 0u);
  EXPECT_EQ(run(3).code, 0);
  expect_complete();
}

TEST_F(MpiSweep, RefusesWhatIsOfAnotherSweep) {
  ASSERT_EQ(run(3).code, 0);
  const CommandResult other = run(3, "--mpi --seed 1 --force -o out");
  EXPECT_EQ(other.code, 2) << other.output;
  expect_contains(other, "seed");
  // Ranks that are not there this time are part of the sweep too.
  std::filesystem::remove(folder_.file("out.journal"));
  const CommandResult alone = folder_.run(sweep("--seed 1 --force -o out"));
  EXPECT_EQ(alone.code, 2) << alone.output;
  expect_contains(alone, "out.rank-1.journal");
}

TEST_F(MpiSweep, FailedCellsAreTheExitCodeOfTheJob) {
  sw::testing::TinyTrace broken;
  broken.nan_layer = 2;
  std::filesystem::remove(folder_.file("b.h5"));
  broken.write(folder_.file("b.h5"));
  const CommandResult result = run(3);
  EXPECT_EQ(result.code, 3) << result.output;
  EXPECT_TRUE(std::filesystem::exists(folder_.file("out.json")));
}

TEST_F(MpiSweep, TakesNoShard) {
  const CommandResult result = run(1, "--mpi --shard 1/2 -o out");
  EXPECT_EQ(result.code, 2) << result.output;
}

TEST_F(MpiSweep, ThePlanIsShownOnce) {
  const CommandResult result = run(3, "--mpi --dry-run");
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_NE(result.output.find("Units of work: 12"), std::string::npos) << result.output;
  EXPECT_EQ(result.output.find("Units of work"), result.output.rfind("Units of work"));
}

#endif

}  // namespace
