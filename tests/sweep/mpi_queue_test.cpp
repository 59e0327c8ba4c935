// The queue of sw-sweep --mpi, by jobs of three ranks: mpi_queue_check.cpp is what they run.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "mpirun.hpp"

namespace {

using sw::testing::CommandResult;
using Units = std::vector<std::size_t>;

constexpr std::size_t kUnits = 40;
constexpr int kRanks = 3;

class MpiQueueTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SW_REQUIRE_MPIRUN();
    folder_ = ::testing::TempDir() + "mpi_queue_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  CommandResult run(const std::string& scenario, const Units& finished = {},
                    int ranks = kRanks) const {
    std::string line = "timeout 60 " + sw::testing::mpirun(ranks) + "'" + SW_CHECK + "' '" +
                       folder_ + "' " + scenario;
    for (const std::size_t unit : finished) line += " " + std::to_string(unit);
    return sw::testing::run_command(line);
  }

  Units taken(int rank) const {
    std::ifstream file(folder_ + "/" + std::to_string(rank));
    Units units;
    for (std::size_t unit = 0; file >> unit;) units.push_back(unit);
    return units;
  }

  /// The units of all ranks, ascending. Those of each rank have to ascend by themselves.
  Units all_taken(int ranks = kRanks) const {
    Units all;
    for (int rank = 0; rank < ranks; ++rank) {
      const Units units = taken(rank);
      EXPECT_TRUE(std::is_sorted(units.begin(), units.end())) << "rank " << rank;
      all.insert(all.end(), units.begin(), units.end());
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  static Units every_unit() {
    Units units(kUnits);
    std::iota(units.begin(), units.end(), std::size_t{0});
    return units;
  }

  static int count(const std::string& text, const std::string& what) {
    int found = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
      ++found;
    }
    return found;
  }

  std::string folder_;
};

TEST_F(MpiQueueTest, HandsOutEveryUnitOnce) {
  const CommandResult result = run("plain");
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(count(result.output, "all ended"), kRanks) << result.output;
  EXPECT_EQ(all_taken(), every_unit());
  for (int rank = 0; rank < kRanks; ++rank) EXPECT_FALSE(taken(rank).empty()) << rank;
}

TEST_F(MpiQueueTest, OneRankIsEnough) {
  const CommandResult result = run("plain", {}, 1);
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(all_taken(1), every_unit());
}

TEST_F(MpiQueueTest, LeavesOutWhatAnyRankHasFinished) {
  const Units finished = {39, 0, 7, 7, 8, 20};  // 7 stands in the journals of two ranks
  const CommandResult result = run("plain", finished);
  EXPECT_EQ(result.code, 0) << result.output;
  Units expected;
  for (const std::size_t unit : every_unit()) {
    if (std::find(finished.begin(), finished.end(), unit) == finished.end()) {
      expected.push_back(unit);
    }
  }
  EXPECT_EQ(all_taken(), expected);
}

TEST_F(MpiQueueTest, NothingToDo) {
  const CommandResult result = run("plain", every_unit());
  EXPECT_EQ(result.code, 0) << result.output;
  EXPECT_EQ(all_taken(), Units{});
}

// While a rank works on one unit the others do the rest, whichever rank it is: rank 0 hands out
// while it works.
TEST_F(MpiQueueTest, SlowRanksGetFewUnits) {
  for (const int slow : {0, 1}) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    const CommandResult result = run("slow-" + std::to_string(slow));
    EXPECT_EQ(result.code, 0) << result.output;
    EXPECT_EQ(all_taken(), every_unit());
    EXPECT_LT(taken(slow).size(), kUnits / 4) << "rank " << slow;
  }
}

TEST_F(MpiQueueTest, ARankThatStopsEarlyLeavesItsShareToTheOthers) {
  for (const int stopped : {0, 2}) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    const CommandResult result = run("stop-" + std::to_string(stopped));
    EXPECT_EQ(result.code, 0) << result.output;
    EXPECT_EQ(all_taken(), every_unit());
    EXPECT_EQ(taken(stopped).size(), 2u) << "rank " << stopped;
  }
}

TEST_F(MpiQueueTest, AnErrorOfARankIsKnownToAllAndStopsNone) {
  for (const int failed : {0, 1}) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    const CommandResult result = run("fail-" + std::to_string(failed));
    EXPECT_EQ(result.code, 1) << result.output;
    EXPECT_EQ(count(result.output, "error: disk full"), 1) << result.output;
    EXPECT_EQ(count(result.output, "all ended"), 0) << result.output;
    EXPECT_EQ(all_taken(), every_unit()) << "rank " << failed;
  }
}

TEST_F(MpiQueueTest, ADeadRankEndsTheJob) {
  const CommandResult result = run("die-1");
  EXPECT_EQ(result.code, 9) << result.output;
  EXPECT_EQ(count(result.output, "all ended"), 0) << result.output;
}

TEST_F(MpiQueueTest, RefusesRanksOfDifferentPlans) {
  const CommandResult result = run("other-plan-1");
  EXPECT_EQ(result.code, 2) << result.output;
  EXPECT_GE(count(result.output, "have planned different sweeps"), 1) << result.output;
  EXPECT_EQ(all_taken(), Units{});
}

TEST_F(MpiQueueTest, ARankThatCannotStartKeepsTheOthersFromWaiting) {
  for (const int failed : {0, 2}) {
    const CommandResult result = run("no-start-" + std::to_string(failed));
    EXPECT_EQ(result.code, 1) << result.output;
    EXPECT_EQ(count(result.output, "error: no journal"), 1) << result.output;
    EXPECT_EQ(all_taken(), Units{});
  }
}

}  // namespace
