// The scripts that sw-sweep submit writes, run by sh with stand-ins for Slurm and the programs.
#include "slurm_scripts.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "report/report_file.hpp"
#include "support/command.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

/// What shells, Slurm's file name patterns or careless scripts would trip over.
const Words kHostile = {"plain",
                        "two words",
                        "it's",
                        "'",
                        "\"",
                        "$HOME",
                        "$(id)",
                        "`id`",
                        "a\nb",
                        "back\\slash",
                        "*",
                        "~",
                        "#not",
                        "%a%j%%",
                        "a;b|c&d",
                        "-dash",
                        "(x)",
                        "{a,b}",
                        "\xff\xfe",
                        "!",
                        "tab\there",
                        "<in>out",
                        "sketchwalk:walk=none"};

class SlurmScriptsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "slurm scripts' $(test) %a " +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/bin");
    fs::create_directories(folder_ + "/start here");
    fs::create_directories(folder_ + "/out.slurm");
    jobs_.sweep_program = folder_ + "/bin/sw-sweep";
    jobs_.report_program = folder_ + "/bin/sw-report";
    jobs_.folder = folder_ + "/start here";
    jobs_.arguments = {"trace", "a b.h5"};
    jobs_.output = "it's out";
    jobs_.scripts = folder_ + "/out.slurm";
    jobs_.shards = 3;
    for (const std::string name : {"sw-sweep", "sw-report", "sbatch", "scontrol"}) {
      recorder(name);
    }
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// A program that adds its folder and arguments to bin/NAME.record, each ended by a NUL, prints
  /// "7;cluster" and exits with `code`.
  void recorder(const std::string& name, int code = 0) const {
    const std::string path = folder_ + "/bin/" + name;
    std::ofstream(path)
        << "#!/bin/sh\n"
        << "{ printf 'in %s\\0' \"$PWD\"; printf '%s\\0' \"$@\"; } >>\"$0.record\"\n"
        << "echo '7;cluster'\nexit " << code << "\n";
    chmod(path.c_str(), 0755);
  }

  Words record(const std::string& name) const {
    std::ifstream file(folder_ + "/bin/" + name + ".record", std::ios::binary);
    Words words;
    for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
    return words;
  }

  testing::CommandResult run(const std::string& script, const std::string& environment = "") const {
    const std::string path = jobs_.scripts + "/script.sh";
    std::ofstream(path, std::ios::binary) << script;
    return testing::run_command("cd / && env " + environment +
                                " PATH=" + shell_line({folder_ + "/bin"}) + ":\"$PATH\" sh " +
                                shell_line({path}));
  }

  std::string folder_;
  SlurmJobs jobs_;
};

TEST_F(SlurmScriptsTest, AShellReadsAWordAsTheTextThatItStandsFor) {
  Words words = kHostile;
  words.emplace_back("");
  for (const std::string& word : words) {
    EXPECT_EQ(testing::run_command("printf '%s.' " + shell_line({word})).output, word + ".");
  }
  EXPECT_EQ(shell_line({"sketchwalk:preset=preprint,damping=0.25"}),
            "sketchwalk:preset=preprint,damping=0.25");
}

TEST_F(SlurmScriptsTest, AShardRunsTheSweepWithItsShareFromTheFolderOfTheSweep) {
  jobs_.arguments.insert(jobs_.arguments.end(), kHostile.begin(), kHostile.end());
  jobs_.cpus = 5;
  jobs_.max_seconds = 600;
  const auto result = run(slurm_scripts(jobs_).shard, "SLURM_ARRAY_TASK_ID=2");
  EXPECT_EQ(result.code, 0) << result.output;
  Words expected = {
      "in " + jobs_.folder, "trace", "--output=it's out", "--shard=2/3", "--threads=5",
      "--max-time=540s",    "a b.h5"};
  expected.insert(expected.end(), kHostile.begin(), kHostile.end());
  EXPECT_EQ(record("sw-sweep"), expected);
}

TEST_F(SlurmScriptsTest, AShardEndsAsTheSweepDoes) {
  const std::string shard = slurm_scripts(jobs_).shard;
  for (const int code : {0, 1, 2, 143}) {
    recorder("sw-sweep", code);
    EXPECT_EQ(run(shard, "SLURM_ARRAY_TASK_ID=1").code, code);
  }
}

TEST_F(SlurmScriptsTest, AShardThatRanOutOfTimeGoesBackIntoTheQueueWhileItGetsAnywhere) {
  const std::string shard = slurm_scripts(jobs_).shard;
  const std::string environment = "SLURM_ARRAY_TASK_ID=2 SLURM_JOB_ID=17";
  recorder("sw-sweep", 124);
  EXPECT_EQ(run(shard, environment).code, 124);  // no journal, no progress
  EXPECT_EQ(record("scontrol"), Words{});

  const std::string journal = jobs_.folder + "/it's out.shard-2-of-3.journal";
  std::ofstream(folder_ + "/bin/sw-sweep")
      << "#!/bin/sh\necho unit >>" << shell_line({journal}) << "\nexit 124\n";
  EXPECT_EQ(run(shard, environment).code, 0);
  EXPECT_EQ(record("scontrol"), (Words{"in " + jobs_.folder, "requeue", "17"}));
  EXPECT_EQ(run(shard, environment).code, 0);
  EXPECT_EQ(record("scontrol").size(), 6u);

  recorder("sw-sweep", 124);  // the next unit never fits
  EXPECT_EQ(run(shard, environment).code, 124);
  EXPECT_EQ(record("scontrol").size(), 6u);
}

TEST(SlurmSeconds, ReadsTheFormsOfSbatch) {
  EXPECT_EQ(slurm_seconds("90"), 5400.0);
  EXPECT_EQ(slurm_seconds("10:30"), 630.0);
  EXPECT_EQ(slurm_seconds("4:00:05"), 14405.0);
  EXPECT_EQ(slurm_seconds("2-12"), 216000.0);
  EXPECT_EQ(slurm_seconds("2-12:30"), 217800.0);
  EXPECT_EQ(slurm_seconds("1-00:00:01"), 86401.0);
  for (const std::string wrong : {"", "0", "0-0", "4h", "1:2:3:4", "-5", "1-", "1-2-3", "1.5", ":",
                                  "1:", "infinite", "99999999999"}) {
    EXPECT_THROW(slurm_seconds(wrong), Error) << wrong;
  }
}

TEST_F(SlurmScriptsTest, AShardFailsWhereItsFolderIsGone) {
  jobs_.folder = folder_ + "/not there";
  EXPECT_EQ(run(slurm_scripts(jobs_).shard, "SLURM_ARRAY_TASK_ID=1").code, 1);
  EXPECT_EQ(record("sw-sweep"), Words{});
}

TEST_F(SlurmScriptsTest, TheMergeJoinsAllShards) {
  const auto result = run(slurm_scripts(jobs_).merge);
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(record("sw-report"),
            (Words{"in " + jobs_.folder, "merge", "--force", "it's out.json",
                   "it's out.shard-1-of-3.journal", "it's out.shard-2-of-3.journal",
                   "it's out.shard-3-of-3.journal"}));
}

TEST_F(SlurmScriptsTest, SubmitsTheArrayAndTheMergeBehindIt) {
  jobs_.partition = "a b";
  jobs_.time = "1-02:00";
  jobs_.cpus = 16;
  jobs_.options = {"--gres=gpu:1", "--comment=it's $x"};
  const auto result = run(slurm_scripts(jobs_).submit);
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(result.output, "array job 7, merge job 7\n");
  std::string logs = jobs_.scripts;
  logs.replace(logs.find('%'), 1, "%%");
  const Words common = {"--parsable",      "--requeue",      "--chdir=/",    "--open-mode=append",
                        "--partition=a b", "--time=1-02:00", "--gres=gpu:1", "--comment=it's $x"};
  Words expected = {"in " + jobs_.scripts, "--job-name=sw-sweep", "--array=1-3",
                    "--output=" + logs + "/shard-%a.log", "--cpus-per-task=16"};
  expected.insert(expected.end(), common.begin(), common.end());
  expected.insert(expected.end(), {"shard.sh", "in " + jobs_.scripts, "--job-name=sw-merge",
                                   "--dependency=afterok:7", "--kill-on-invalid-dep=yes",
                                   "--output=" + logs + "/merge.log"});
  expected.insert(expected.end(), common.begin(), common.end());
  expected.emplace_back("merge.sh");
  EXPECT_EQ(record("sbatch"), expected);
}

TEST_F(SlurmScriptsTest, SubmitsNoMergeWhereTheArrayIsRefused) {
  recorder("sbatch", 1);
  EXPECT_EQ(run(slurm_scripts(jobs_).submit).code, 1);
  const Words words = record("sbatch");
  EXPECT_EQ(std::count(words.begin(), words.end(), "in " + jobs_.scripts), 1);
}

}  // namespace
}  // namespace sw
