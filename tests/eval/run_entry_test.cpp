// Entries of a journal that contradict themselves or each other are refused, before a report is
// computed from them.
#include "eval/run_entry.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "eval/model_summary.hpp"

namespace sw {
namespace {

using nlohmann::json;

RunEntry window_entry() {
  RunEntry entry;
  entry.task = "perplexity:a.txt";
  entry.arm = "dense";
  entry.usage.resize(2);
  entry.window = WindowResult{.begin = 4,
                              .end = 8,
                              .scored_from = 6,
                              .nll = {1.0f, 2.0f},
                              .kl = {0.5f, 0.5f},
                              .delta_p = {0.0f, 0.0f},
                              .same_top = {1, 0},
                              .hidden_error = {0.1, 0.2}};
  return entry;
}

RunEntry reply_entry() {
  RunEntry entry;
  entry.task = "niah";
  entry.arm = "dense";
  entry.usage.resize(2);
  entry.reply =
      Reply{.ids = {1}, .text = "a", .score = 1.0, .answers = {"a"}, .classes = {}, .length = 1};
  return entry;
}

void expect_refused(const json& entry) {
  try {
    run_entry_from_json(entry);
    ADD_FAILURE() << entry;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInput);
  }
}

TEST(RunEntry, ComesBack) {
  for (const RunEntry& entry : {window_entry(), reply_entry()}) {
    EXPECT_EQ(to_json(run_entry_from_json(to_json(entry))), to_json(entry));
  }
}

TEST(RunEntry, ArraysHaveTheSizesThatTheEntrySays) {
  for (const auto& [field, value] : std::initializer_list<std::pair<const char*, json>>{
           {"nll", "0000003f"},
           {"kl", "0000003f"},
           {"delta_p", ""},
           {"same_top", "010001"},
           {"hidden_error", {0.1, 0.2, 0.3}},
           {"end", 9},
           {"end", std::numeric_limits<std::int64_t>::min()},
           {"begin", -1},
           {"scored_from", 3}}) {
    json changed = to_json(window_entry());
    changed["window"][field] = value;
    expect_refused(changed);
  }
}

TEST(RunEntry, IsOfOneReplyOrOneWindow) {
  json neither = to_json(reply_entry());
  neither.erase("reply");
  expect_refused(neither);
  json both = to_json(window_entry());
  both["reply"] = to_json(reply_entry())["reply"];
  expect_refused(both);
}

TEST(RunEntry, CountsAreBounded) {
  for (const std::int64_t count : {std::int64_t{-1}, std::numeric_limits<std::int64_t>::max()}) {
    for (int place = 1; place < 8; ++place) {
      json changed = to_json(reply_entry());
      changed["usage"][1][place] = count;
      expect_refused(changed);
    }
  }
}

TEST(RunEntry, SamplesOfACellAreOfOneModelAndKind) {
  const std::vector<TaskInfo> tasks = {{"niah", "string_match_all", false}};
  const std::vector<ArmInfo> arms = {{"dense", "dense", "dense", {}}};
  RunEntry other = reply_entry();
  other.sample = 1;
  EXPECT_NO_THROW(summarize_model(std::vector<RunEntry>{reply_entry(), other}, tasks, arms));
  RunEntry layers = other;
  layers.usage.resize(1);
  EXPECT_THROW(summarize_model(std::vector<RunEntry>{reply_entry(), layers}, tasks, arms), Error);
  RunEntry window = window_entry();
  window.task = "niah";
  window.sample = 1;
  EXPECT_THROW(summarize_model(std::vector<RunEntry>{reply_entry(), window}, tasks, arms), Error);
}

}  // namespace
}  // namespace sw
