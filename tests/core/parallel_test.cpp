#include "core/parallel.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <vector>

namespace sw {
namespace {

class ParallelTest : public ::testing::Test {
 protected:
  void TearDown() override { set_num_threads(before_); }
  int before_ = num_threads();
};

TEST_F(ParallelTest, EveryIndexOnceWithAValidThread) {
  for (int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    std::vector<std::atomic<int>> seen(1000);
    parallel_for(1000, [&](std::int64_t i, int thread) {
      EXPECT_GE(thread, 0);
      EXPECT_LT(thread, threads);
      ++seen[static_cast<std::size_t>(i)];
    });
    for (const auto& count : seen) EXPECT_EQ(count, 1);
  }
  parallel_for(0, [](std::int64_t, int) { FAIL(); });
}

TEST_F(ParallelTest, NestedLoopsRun) {
  set_num_threads(4);
  std::atomic<int> total{0};
  parallel_for(8, [&](std::int64_t, int) { parallel_for(8, [&](std::int64_t, int) { ++total; }); });
  EXPECT_EQ(total, 64);
}

TEST_F(ParallelTest, AnExceptionReachesTheCallerAndTheLoopGoesOnWorking) {
  set_num_threads(3);
  for (int round = 0; round < 50; ++round) {
    EXPECT_THROW(parallel_for(100,
                              [](std::int64_t i, int) {
                                if (i == 17) throw std::runtime_error("body");
                              }),
                 std::runtime_error);
    std::atomic<int> total{0};
    parallel_for(100, [&](std::int64_t, int) { ++total; });
    EXPECT_EQ(total, 100);
  }
}

}  // namespace
}  // namespace sw
