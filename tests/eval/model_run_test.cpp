#include "eval/model_run.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "eval/model_summary.hpp"
#include "eval/run_entry.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/checkpoint.hpp"
#include "policy/list.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;

// Two layers, 480 tokens, 256 positions; blocks of 8 give it enough of them.
const std::string kModel = std::string(SW_TEST_DIR) + "/model/golden/tiny_llama.gguf";

std::string long_text() {
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += "In the city of " + std::to_string(i * 37 % 101) + " songs she was the first writer. ";
  }
  return text;
}

class ModelRunTest : public ::testing::Test {
 protected:
  ModelRunTest()
      : checkpoint_(Checkpoint::open(kModel)),
        model_(checkpoint_, DType::kF32),
        tokenizer_(checkpoint_->tokenizer()) {
    std::ofstream(folder_.file("text.txt")) << long_text();
    options_.context = 240;
    options_.block = 8;
    options_.limit = 2;
    options_.kl = true;
    options_.decode_tokens = 16;
    options_.max_new_tokens = 6;
    options_.chat = checkpoint_->chat_template();
  }

  Arm arm(const std::string& spec, std::optional<double> density,
          SparsePhase phase = SparsePhase::kBoth) const {
    return {std::shared_ptr<const Policy>(make_policy(spec, 0)), density, phase};
  }
  Task text_task() const { return Task::open("perplexity=" + folder_.file("text.txt"), {}); }
  static Task needle_task() { return Task::open("niah:lengths=230,depths=0.5,samples=2", {}); }

  std::vector<RunEntry> run(const std::vector<Task>& tasks, const std::vector<Arm>& arms,
                            const std::string& journal = "journal") {
    Journal file(folder_.file(journal), json{{"kind", "test"}});
    run_model(model_, tokenizer_, tasks, arms, *backend_, options_, file, true);
    std::vector<RunEntry> entries;
    for (const json& entry : file.entries()) entries.push_back(run_entry_from_json(entry));
    return entries;
  }

  static const RunEntry& find(const std::vector<RunEntry>& entries, const std::string& arm,
                              std::int64_t sample) {
    for (const RunEntry& entry : entries) {
      if (entry.arm == arm && entry.sample == sample) return entry;
    }
    throw std::out_of_range("no entry of " + arm);
  }

  testing::TemporaryFolder folder_;
  std::unique_ptr<Backend> backend_ = make_cpu_backend();
  std::shared_ptr<const Checkpoint> checkpoint_;
  Model model_;
  Tokenizer tokenizer_;
  ModelRunOptions options_;
};

json without_timing(const RunEntry& entry) {
  json value = to_json(entry);
  value.erase("timing");
  return value;
}

TEST_F(ModelRunTest, FullDensityIsTheDenseRunBitForBit) {
  for (const char* spec :
       {"sketchwalk:dense_layers=0", "sink_window:dense_layers=0", "oracle:dense_layers=0"}) {
    const std::vector<Arm> arms = {arm("dense", std::nullopt), arm(spec, 1.0)};
    const std::vector<Task> tasks = {text_task()};
    const auto entries = run(tasks, arms, spec);
    for (const std::int64_t sample : {0, 1}) {
      const WindowResult& dense = *find(entries, "dense", sample).window;
      const WindowResult& sparse = *find(entries, arms[1].label(), sample).window;
      EXPECT_EQ(dense.nll, sparse.nll) << spec;
      for (const float kl : sparse.kl) EXPECT_EQ(kl, 0.0f);
      for (const double error : sparse.hidden_error) EXPECT_EQ(error, 0.0);
      EXPECT_EQ(find(entries, arms[1].label(), sample).usage[1].pairs.density(), 1.0);
    }
  }
}

TEST_F(ModelRunTest, FullDensityAndOneBlockGiveTheDenseReply) {
  const std::vector<Arm> arms = {arm("dense", std::nullopt), arm("sketchwalk:dense_layers=0", 1.0)};
  const auto entries = run({needle_task()}, arms);
  for (const std::int64_t sample : {0, 1}) {
    EXPECT_EQ(find(entries, "dense", sample).reply->ids,
              find(entries, arms[1].label(), sample).reply->ids);
  }
  options_.block = 256;  // one block holds everything
  const std::vector<Arm> one_block = {arm("dense", std::nullopt),
                                      arm("sketchwalk:dense_layers=0", 0.1)};
  const auto same = run({needle_task()}, one_block, "one-block");
  for (const std::int64_t sample : {0, 1}) {
    EXPECT_EQ(find(entries, "dense", sample).reply->ids,
              find(same, one_block[1].label(), sample).reply->ids);
  }
}

// Methods of single keys in a running model: as many keys are read as asked for, and all of them
// are the dense run but for the order of sums: two layers of f32 sums of 240 terms, relative 1e-5,
// and logits below 30, of which a likelihood is a difference.
TEST_F(ModelRunTest, DecodeKeepsSingleKeys) {
  for (const std::string name : {"h2o", "tova", "snapkv", "adamas"}) {
    const std::string spec = name + ":granularity=layer,dense_layers=0";
    const std::vector<Arm> arms = {arm("dense", std::nullopt), arm(spec, 0.25), arm(spec, 1.0)};
    const auto entries = run({text_task()}, arms, name);
    const RunEntry& dense = find(entries, "dense", 0);
    const RunEntry& sparse = find(entries, arms[1].label(), 0);
    const RunEntry& full = find(entries, arms[2].label(), 0);
    ASSERT_EQ(sparse.decode_steps, 16);
    for (const LayerUsage& layer : sparse.usage) {
      EXPECT_EQ(layer.pairs.density(), 1.0);  // the prefill attends densely
      EXPECT_NEAR(
          static_cast<double>(layer.kv_tokens_read) / static_cast<double>(layer.kv_tokens_context),
          0.25, 0.5 / 224)
          << name;
    }
    EXPECT_NE(sparse.window->nll, dense.window->nll) << name;
    ASSERT_EQ(full.window->nll.size(), dense.window->nll.size());
    for (std::size_t i = 0; i < full.window->nll.size(); ++i) {
      EXPECT_NEAR(full.window->nll[i], dense.window->nll[i], 1e-3) << name;
    }
  }
}

TEST_F(ModelRunTest, SparseArmsKeepTheirDensityAndDiffer) {
  const std::vector<Arm> arms = {arm("dense", std::nullopt),
                                 arm("sink_window:dense_layers=1", 0.25)};
  const auto entries = run({text_task()}, arms);
  const RunEntry& entry = find(entries, arms[1].label(), 0);
  EXPECT_FALSE(entry.usage[0].sparse);
  EXPECT_TRUE(entry.usage[1].sparse);
  EXPECT_EQ(entry.usage[0].pairs.density(), 1.0);
  EXPECT_NEAR(entry.usage[1].pairs.density(), 0.25, 0.02);  // 28 rows of blocks
  EXPECT_GT(entry.usage[1].kv_tokens_read, 0);
  EXPECT_LT(entry.usage[1].kv_tokens_read, entry.usage[1].kv_tokens_context / 2);
  EXPECT_EQ(entry.decode_steps, 16);
  double kl = 0.0;
  for (const float x : entry.window->kl) {
    EXPECT_GE(x, 0.0f);
    kl += x;
  }
  EXPECT_GT(kl, 0.0);
  ASSERT_EQ(entry.window->hidden_error.size(), 2u);
  EXPECT_EQ(entry.window->hidden_error[0], 0.0);
  EXPECT_GT(entry.window->hidden_error[1], 0.0);
}

TEST_F(ModelRunTest, LikelihoodsAreThoseOfThePlainModel) {
  options_.limit = 1;
  const auto entries = run({text_task()}, {arm("dense", std::nullopt)});
  const auto ids = tokenizer_.encode(long_text(), SpecialText::kPlain);
  const auto expected =
      negative_log_likelihoods(model_, std::span(ids).first(240), dense_attention(*backend_));
  const auto& nll = entries.at(0).window->nll;
  ASSERT_EQ(nll.size(), expected.size());
  // Sums of floats in another order: blocks of 8 tokens here, of 64 there. Losses reach 15, and a
  // few hundred roundings of 6e-8 relative stay below 1e-4.
  for (std::size_t i = 0; i < nll.size(); ++i) EXPECT_NEAR(nll[i], expected[i], 1e-4) << i;
}

TEST_F(ModelRunTest, ASharedDensePrefillChangesNothing) {
  const Arm dense = arm("dense", std::nullopt);
  const Arm sparse = arm("sketchwalk:dense_layers=0", 0.3, SparsePhase::kDecode);
  const auto shared = run({needle_task()}, {dense, sparse}, "shared");
  // Dense alone first, so that the other arm has to prefill for itself.
  run({needle_task()}, {dense}, "apart");
  const auto apart = run({needle_task()}, {dense, sparse}, "apart");
  for (const std::int64_t sample : {0, 1}) {
    EXPECT_EQ(without_timing(find(shared, sparse.label(), sample)),
              without_timing(find(apart, sparse.label(), sample)));
  }
}

TEST_F(ModelRunTest, DecodeOnlyScoresWhatFollowsFromDecodeSteps) {
  const std::vector<Arm> arms = {arm("dense", std::nullopt),
                                 arm("sink_window:dense_layers=0", 0.3, SparsePhase::kDecode)};
  const auto entries = run({text_task()}, arms);
  const RunEntry& entry = find(entries, arms[1].label(), 0);
  EXPECT_EQ(entry.window->scored_from, 240 - 16 + 1);
  EXPECT_EQ(entry.usage[1].pairs.density(), 1.0);
  EXPECT_LT(entry.usage[1].kv_tokens_read, entry.usage[1].kv_tokens_context);
}

TEST_F(ModelRunTest, GoesOnFromEveryPlaceWhereItWasCut) {
  const std::vector<Arm> arms = {arm("dense", std::nullopt), arm("sketchwalk:dense_layers=0", 0.3)};
  std::vector<Task> tasks = {needle_task(), text_task()};
  const auto whole = run(tasks, arms, "whole");
  ASSERT_EQ(whole.size(), 8u);
  const std::string text = read_file(folder_.file("whole"));
  // After the header and after each entry, and in the middle of each line.
  std::vector<std::size_t> cuts;
  for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) {
    cuts.push_back(at + 1);
    if (at + 40 < text.size()) cuts.push_back(at + 40);
  }
  for (const std::size_t cut : cuts) {
    const std::string name = "cut" + std::to_string(cut);
    std::ofstream(folder_.file(name), std::ios::binary) << text.substr(0, cut);
    const auto again = run(tasks, arms, name);
    ASSERT_EQ(again.size(), whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      EXPECT_EQ(without_timing(again[i]), without_timing(whole[i])) << "cut at " << cut;
    }
  }
}

TEST_F(ModelRunTest, LongPromptsAreCutAndSaySo) {
  options_.context = 160;
  const auto entries = run({needle_task()}, {arm("dense", std::nullopt)});
  EXPECT_LE(entries.at(0).prompt.tokens, 154);
  EXPECT_GT(entries.at(0).prompt.untruncated, 154);
  EXPECT_EQ(entries.at(0).prompt.chat_template, options_.chat->name());
}

TEST_F(ModelRunTest, RefusesWhatCannotBeRun) {
  options_.context = 257;
  EXPECT_THROW(run({text_task()}, {arm("dense", std::nullopt)}), Error);
  options_.context = 8;  // no room for a reply of 6 and a prompt
  EXPECT_THROW(run({needle_task()}, {arm("dense", std::nullopt)}), Error);
  EXPECT_THROW(run({needle_task()}, {arm("sink_window", 0.2)}), Error);
}

TEST_F(ModelRunTest, TheGuardRefusesDifferentPrompts) {
  const std::vector<Arm> arms = {arm("dense", std::nullopt),
                                 arm("sink_window:dense_layers=0", 0.3)};
  const auto entries = run({needle_task()}, arms);
  const std::vector<TaskInfo> tasks = {{"niah", "string_match_all", true}};
  const std::vector<ArmInfo> infos = {
      {"dense", "dense", "dense", std::nullopt},
      {arms[1].label(), arms[1].policy->spec(), "sink_window", 0.3}};
  const ModelSummary summary = summarize_model(entries, tasks, infos);
  ASSERT_EQ(summary.cells.size(), 2u);
  EXPECT_EQ(summary.cells[1].samples, 2);
  ASSERT_TRUE(summary.cells[1].paired.has_value());
  const auto broken = [&](auto&& change) {
    std::vector<RunEntry> changed = entries;
    change(changed.back().prompt);
    EXPECT_THROW(summarize_model(changed, tasks, infos), Error);
  };
  broken([](PromptIdentity& p) { p.ids_sha256[0] = p.ids_sha256[0] == '0' ? '1' : '0'; });
  broken([](PromptIdentity& p) { ++p.bos_count; });
  broken([](PromptIdentity& p) { p.stop_set += " 7"; });
  broken([](PromptIdentity& p) { p.chat_template = "llama3"; });
}

TEST(TextWindows, ChunkedAndSliding) {
  const auto chunked = text_windows(25, 10, 10);
  ASSERT_EQ(chunked.size(), 2u);
  EXPECT_EQ(chunked[1].begin, 10);
  EXPECT_EQ(chunked[1].end, 20);
  EXPECT_EQ(chunked[1].scored_from, 11);
  const auto sliding = text_windows(20, 10, 5);
  ASSERT_EQ(sliding.size(), 3u);
  std::int64_t next = 1;
  for (const TextWindow& window : sliding) {
    EXPECT_EQ(window.scored_from, next);
    next = window.end;
  }
  EXPECT_EQ(next, 20);
  ASSERT_EQ(text_windows(4, 10, 10).size(), 1u);
  EXPECT_EQ(text_windows(4, 10, 10)[0].end, 4);
  EXPECT_THROW(text_windows(20, 10, 0), Error);
  EXPECT_THROW(text_windows(20, 10, 11), Error);
}

}  // namespace
}  // namespace sw
