// The command `sw-profile cpu` from outside: the report, its arithmetic, messages.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;
using testing::CommandResult;

class SwProfile : public ::testing::Test {
 protected:
  CommandResult profile(const std::string& arguments) const {
    return testing::run_command("cd '" + folder_.path() + "' && '" SW_BIN_DIR "/sw-profile' cpu " +
                                arguments);
  }
  json report() const {
    std::ifstream file(folder_.file("out.json"));
    return json::parse(file);
  }
  testing::TemporaryFolder folder_;
};

constexpr const char* kSmall =
    "--tokens 192 320 --heads 4 --kv-heads 2 --head-dim 32 --density 0.3 --repeat 3 --quiet ";

TEST_F(SwProfile, ReportHoldsEveryRunAndAddsUp) {
  const CommandResult result = profile(std::string(kSmall) + "--dtype f32 -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  if (testing::python_has("jsonschema")) {
    EXPECT_EQ(testing::validate_json(SW_SCHEMA, folder_.file("out.json")).output, "");
  }
  EXPECT_TRUE(std::filesystem::exists(folder_.file("out.h5")));
  const json out = report();
  // Two lengths; prefill: dense, dense with block masses, and one density of five stages, selection
  // and total; decode: the same without masses.
  const json& rows = out["measurements"];
  ASSERT_EQ(rows.size(), 2u * (2 + 7 + 1 + 7));
  for (const json& row : rows) EXPECT_EQ(row["seconds"].size(), 3u);
  for (const std::size_t dense : {0u, 9u, 17u, 26u}) {
    EXPECT_EQ(rows[dense]["method"], "dense");
    EXPECT_EQ(rows[dense]["part"], "total");
    const bool prefill = rows[dense]["phase"] == "prefill";
    if (prefill) {
      EXPECT_EQ(rows[dense + 1]["part"], "masses");
      EXPECT_EQ(rows[dense + 1]["flops"], rows[dense]["flops"]);
    }
    const std::size_t first = dense + (prefill ? 2 : 1);
    for (std::size_t run = 0; run < 3; ++run) {
      double stages = 0.0;
      for (std::size_t j = 0; j < 4; ++j) stages += rows[first + j]["seconds"][run].get<double>();
      EXPECT_NEAR(rows[first + 5]["seconds"][run].get<double>(), stages, 1e-12);
      EXPECT_GE(rows[first + 6]["seconds"][run].get<double>(),
                stages + rows[first + 4]["seconds"][run].get<double>());
    }
  }
  // Pooling reads 192 tokens of 4 + 2 heads of 32 f32; scores and three steps of a walk over three
  // blocks, none of it causal.
  EXPECT_EQ(rows[2]["bytes"].get<double>(), 192.0 * 6 * 32 * 4);
  EXPECT_EQ(rows[3]["flops"].get<double>(), 2.0 * 32 * 3 * 3 * 4);
  EXPECT_EQ(rows[4]["flops"].get<double>(), 3.0 * 2 * 3 * 3 * 3);
  // Selection reads 1 + 2 + 3 scores of 8 bytes and keeps a block a row, 5 bytes each.
  EXPECT_EQ(rows[5]["bytes"].get<double>(), 8.0 * 6 + 5 * 3);
  // The step after 192 tokens: a query of 4 heads meets three pooled keys of 2 heads; 32 queries
  // meet the fourth and sum up four blocks, in f32; three steps of a walk over them; two blocks
  // of four are kept.
  const auto costs = [&](std::size_t row) {
    return std::pair{rows[row]["flops"].get<double>(), rows[row]["bytes"].get<double>()};
  };
  EXPECT_EQ(costs(10), std::pair(2.0 * 32 * 4 * 3, 4.0 * 32 * (4 + 2) + 4 * 32 * 2 * 3));
  EXPECT_EQ(costs(11), std::pair(2.0 * 4 * 32 * (32 + 4), 4.0 * 4 * 32 * (32 + 4)));
  EXPECT_EQ(costs(12), std::pair(3.0 * 2 * 4 * 4, 4.0 * 4 * 4));
  EXPECT_EQ(costs(13), std::pair(0.0, 8.0 * 4 + 5 * 2));
  for (const std::size_t first : {2u, 10u}) {  // the selection has what its stages have
    std::pair sum{0.0, 0.0};
    for (std::size_t j = first; j < first + 4; ++j) {
      sum.first += costs(j).first;
      sum.second += costs(j).second;
    }
    EXPECT_EQ(costs(first + 5), sum);
    EXPECT_TRUE(rows[first + 3]["of_copy"].is_number());
    EXPECT_TRUE(rows[first + 5]["of_copy"].is_number());
  }
  // Dense prefill of n tokens: n (n + 1) / 2 pairs, 4 d operations each, all heads.
  EXPECT_EQ(out["measurements"][0]["flops"].get<double>(), 192.0 * 193 / 2 * 4 * 32 * 4);
  EXPECT_EQ(out["comparisons"].size(), 4u);
  EXPECT_EQ(out["crossovers"].size(), 2u);
}

TEST_F(SwProfile, CostsFollowTheBlockSize) {
  const CommandResult result =
      profile(std::string(kSmall) + "--phase prefill --block 32 --dtype f32 -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  const json rows = report()["measurements"];
  EXPECT_EQ(rows[3]["part"], "sketch");
  EXPECT_EQ(rows[3]["flops"].get<double>(), 2.0 * 32 * 6 * 6 * 4);
  EXPECT_EQ(rows[4]["flops"].get<double>(), 3.0 * 2 * 6 * 6 * 6);
}

TEST_F(SwProfile, PeersJoinTheComparison) {
  std::ofstream(folder_.file("peer.sh")) << "echo '[{\"implementation\": \"theirs\", \"tokens\": "
                                            "192, \"seconds\": [1.0, 3.0, 2.0]}]'\n";
  const CommandResult result =
      profile(std::string(kSmall) + "--phase prefill --peer 'sh peer.sh' -o out");
  ASSERT_EQ(result.code, 0) << result.output;
  const json out = report();
  const json& against = out["comparisons"][0]["dense_over_total"];
  ASSERT_EQ(against.size(), 2u);
  EXPECT_EQ(against[1]["implementation"], "theirs");
  EXPECT_NEAR(against[1]["times"].get<double>(),
              2.0 / out["comparisons"][0]["total"]["median"].get<double>(), 1e-6);
}

#ifndef SW_WITH_CUDA
TEST_F(SwProfile, WithoutCudaTheGpuCommandSaysSo) {
  const CommandResult result =
      testing::run_command("'" SW_BIN_DIR "/sw-profile' gpu --batch 8 -o '" + folder_.file("out") +
                           "' --peer 'python3 x.py'");
  EXPECT_EQ(result.code, 1) << result.output;
  EXPECT_EQ(result.output.find("error: this build has no CUDA kernels\nhint: "), 0u)
      << result.output;
}
#endif

TEST_F(SwProfile, ErrorsSayWhatIsWrong) {
  const auto expect = [&](const std::string& arguments, int code, const std::string& words) {
    const CommandResult result = profile(arguments);
    EXPECT_EQ(result.code, code) << result.output;
    EXPECT_NE(result.output.find(words), std::string::npos) << result.output;
    EXPECT_FALSE(std::filesystem::exists(folder_.file("out.json")));
  };
  expect("--heads 4 --kv-heads 3 -o out", 2, "no multiple");
  expect("--tokens 0 -o out", 2, "--tokens");
  expect(std::string(kSmall) + "--density 1.5 -o out", 2, "density");
  expect(std::string(kSmall) + "--backend cuda -o out", 2, "sw-profile cpu");
  expect(std::string(kSmall) + "--peer false -o out", 1, "the peer failed");
  expect(std::string(kSmall) + "--peer 'echo no' -o out", 1, "JSON list");
  std::ofstream(folder_.file("there.json")) << "kept";
  expect(std::string(kSmall) + "-o there", 1, "--force");
}

}  // namespace
}  // namespace sw
