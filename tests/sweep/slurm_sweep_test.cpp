// sw-sweep submit for real: Slurm's daemons on this machine, started by slurm_cluster.sh.
#include <algorithm>

#include "sweep_folder.hpp"

namespace {

using sw::testing::CommandResult;
using sw::testing::SweepFolder;

/// Runs a shell script inside a cluster; exit code 77 when there can be none.
CommandResult in_cluster(const SweepFolder& folder, const std::string& script) {
  std::ofstream(folder.file("script.sh")) << script;
  return folder.run("timeout 200 '" SW_TEST_DIR "/sweep/slurm_cluster.sh' sh script.sh");
}

#define SW_REQUIRE_SLURM(result) \
  if ((result).code == 77) GTEST_SKIP() << (result).output

std::string submit(const std::string& options) {
  return "sw-sweep submit --slurm " + options + " -- " + SweepFolder::kSweep + " --quiet";
}

/// Waits until no job is left, then names the states of all that there were. Slurm lets two minutes
/// pass before it starts a requeued job again; this does not.
constexpr const char* kWait = R"({
  while squeue --noheader | grep -q .; do
    for job in $(squeue --noheader --states=PENDING --format=%A); do
      scontrol update JobId=$job StartTime=now 2>/dev/null
    done
    sleep 0.2
  done
  scontrol --oneliner show job | sed 's/.*JobName=\([^ ]*\).*JobState=\([^ ]*\).*/\1 \2/'
})";

/// The lines that begin so.
int count(const std::string& text, const std::string& begin) {
  std::istringstream lines(text);
  int found = 0;
  for (std::string next; std::getline(lines, next);) found += next.starts_with(begin) ? 1 : 0;
  return found;
}

TEST(SlurmSweep, AnArrayAndItsMergeEqualOneProcess) {
  const SweepFolder folder;
  const CommandResult result = in_cluster(
      folder, submit("--shards 3 --partition test --time 10 -o out --submit") + " && " + kWait);
  SW_REQUIRE_SLURM(result);
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(count(result.output, "sw-sweep COMPLETED"), 3) << result.output;
  EXPECT_EQ(count(result.output, "sw-merge COMPLETED"), 1) << result.output;
  const auto counts = folder.count_units("out.shard");
  EXPECT_EQ(counts.size(), SweepFolder::kUnits) << folder.run("cat out.slurm/*.log").output;
  folder.run_alone("alone");
  folder.expect_same("alone", "out");
}

// In so little time a task does one unit, for which there is no precedent, and goes back into the
// queue; then none, and fails. What is left is done by jobs with more time.
TEST(SlurmSweep, ShardsThatRunOutOfTimeGoBackIntoTheQueue) {
  const SweepFolder folder;
  const CommandResult result =
      in_cluster(folder, submit("--shards 2 -o out --submit") + " --max-time 0.001s && " + kWait +
                             "\ncat out.slurm/*.log\n" +
                             submit("--shards 2 -o out --submit --force") + " && " + kWait);
  SW_REQUIRE_SLURM(result);
  EXPECT_EQ(result.code, 0) << result.output;
  // How often each is tried depends on when Slurm takes it back; both run out of time.
  for (const char* shard : {"1", "2"}) {
    EXPECT_GE(count(result.output, std::string("out of time: 1 of 6 units are finished and safe in "
                                               "'out.shard-") +
                                       shard + "-of-2"),
              1)
        << result.output;
  }
  EXPECT_EQ(count(result.output, "sw-merge COMPLETED"), 1) << result.output;
  folder.run_alone("alone");
  folder.expect_same("alone", "out");
}

TEST(SlurmSweep, AFailedShardKeepsTheMergeAwayAndSubmittingAgainGoesOn) {
  const SweepFolder folder;
  // A folder where the second shard wants its journal.
  const CommandResult result = in_cluster(
      folder, "mkdir out.shard-2-of-3.journal && " + submit("--shards 3 -o out --submit") + " && " +
                  kWait + "; ls; echo; rmdir out.shard-2-of-3.journal; sh out.slurm/submit.sh && " +
                  kWait);
  SW_REQUIRE_SLURM(result);
  EXPECT_EQ(result.code, 0) << result.output;
  const std::size_t again = result.output.find("\n\n");
  ASSERT_NE(again, std::string::npos) << result.output;
  const std::string first = result.output.substr(0, again);
  EXPECT_EQ(count(first, "sw-sweep COMPLETED"), 2) << first;
  EXPECT_EQ(count(first, "sw-sweep FAILED"), 1) << first;
  EXPECT_EQ(count(first, "sw-merge COMPLETED"), 0) << first;
  EXPECT_EQ(count(first, "out.json"), 0) << first;
  for (const auto& [unit, times] : folder.count_units("out.shard")) EXPECT_EQ(times, 1);
  folder.run_alone("alone");
  folder.expect_same("alone", "out");
}

TEST(SlurmSweep, NamesOfAnyKindAreSafe) {
  const SweepFolder folder;
  const CommandResult result = in_cluster(folder, R"(name="it's \$(x) %a%j"
mkdir "$name" && cp a.h5 b.h5 "$name" && cd "$name" || exit
)" + submit("--shards 2 -o \"o $name\" --submit") + " && " +
                                                      kWait + R"(
cat *.slurm/*.log
cp "o $name.json" ../odd.json && cp "o $name.h5" ../odd.h5)");
  SW_REQUIRE_SLURM(result);
  EXPECT_EQ(result.code, 0) << result.output;
  folder.run_alone("alone");
  folder.expect_same("alone", "odd");
}

TEST(SlurmSweep, WritesAndShowsWithoutSlurm) {
  const SweepFolder folder;
  const CommandResult shown = folder.run(submit("--shards 3 -o out --dry-run"));
  EXPECT_EQ(shown.code, 0) << shown.output;
  EXPECT_NE(shown.output.find("Units of work: 12"), std::string::npos) << shown.output;
  EXPECT_NE(shown.output.find("--array=1-3"), std::string::npos) << shown.output;
  EXPECT_FALSE(std::filesystem::exists(folder.file("out.slurm")));

  const CommandResult written = folder.run(submit("--shards 3 -o out"));
  EXPECT_EQ(written.code, 0) << written.output;
  EXPECT_NE(written.output.find("sh " + folder.path() + "/out.slurm/submit.sh"), std::string::npos)
      << written.output;
  EXPECT_EQ(folder.run(submit("--shards 2 -o out")).code, 1);
  EXPECT_EQ(folder.run(submit("--shards 2 -o out --force")).code, 0);
  const CommandResult absent =
      folder.run("PATH=/bin " SW_BIN_DIR "/" + submit("--shards 2 -o o --no-check --submit"));
  if (sw::testing::run_command("test -e /bin/sbatch").code != 0) {
    EXPECT_EQ(absent.code, 1) << absent.output;
    EXPECT_NE(absent.output.find("sbatch is not on PATH"), std::string::npos) << absent.output;
  }
}

TEST(SlurmSweep, RefusesSweepsThatItCannotCutUp) {
  const SweepFolder folder;
  const std::string begin = "sw-sweep submit --slurm -o out -- ";
  for (const std::string& line :
       {begin + "trace a.h5 -o other", begin + "trace a.h5 --output=other",
        begin + "trace a.h5 --shard 1/2", begin + "trace a.h5 --mpi", begin + "--method dense",
        begin + "trace absent.h5", begin + "trace a.h5 --method nothing", begin,
        std::string("sw-sweep submit -o out -- trace a.h5"),
        std::string("sw-sweep submit --slurm --time soon -o out -- trace a.h5"),
        std::string("sw-sweep submit --slurm --dry-run --submit -o out -- trace a.h5")}) {
    const CommandResult result = folder.run(line);
    EXPECT_EQ(result.code, 2) << line << "\n" << result.output;
    EXPECT_FALSE(std::filesystem::exists(folder.file("out.slurm")));
  }
}

}  // namespace
