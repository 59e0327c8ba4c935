#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/chat_template.hpp"
#include "model/tokenizer.hpp"
#include "model/transformer.hpp"
#include "support.hpp"

// Real models against Hugging Face's transformers in f32 on the same GGUF file
// (golden/<model>.json, written by make_model_goldens.py). Skipped where the files are not.

namespace sw {
namespace {

using Ids = std::vector<std::int32_t>;

std::string folder(const char* variable, const std::string& otherwise) {
  const char* value = std::getenv(variable);
  return value && *value ? value : otherwise;
}

std::string model_path(const std::string& name) {
  const char* home = std::getenv("HOME");
  return folder("SW_MODEL_DIR", std::string(home ? home : "") + "/.cache/sketchwalk/models") + "/" +
         name + ".gguf";
}

std::string text_path() {
  return folder("SW_DATA_DIR", std::string(SW_TEST_DIR) + "/../../shared/data") +
         "/text/wikitext-2.test.txt";
}

class ModelFile : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string path = model_path(GetParam());
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "there is no " << path;
    if (!std::filesystem::exists(text_path())) GTEST_SKIP() << "there is no " << text_path();
    expected = test::golden(std::string(GetParam()) + ".json");
    checkpoint = Checkpoint::open(path);
    tokenizer.emplace(checkpoint->tokenizer());
  }

  nlohmann::json expected;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<Tokenizer> tokenizer;
};

TEST_P(ModelFile, TokenIdsEqualHuggingFace) {
  const std::string text = read_file(text_path());
  const Ids ids = tokenizer->encode(text, SpecialText::kPlain);
  const auto& wiki = expected["wikitext"];
  EXPECT_EQ(ids.size(), wiki["total_tokens"].get<std::size_t>());
  EXPECT_EQ(Ids(ids.begin(), ids.begin() + 32), wiki["first_32_ids"].get<Ids>());
  EXPECT_EQ(Ids(ids.end() - 16, ids.end()), wiki["last_16_ids"].get<Ids>());
  EXPECT_EQ(std::accumulate(ids.begin(), ids.begin() + 8192, std::int64_t{0}),
            wiki["ids_sum_first_8192"].get<std::int64_t>());
  EXPECT_EQ(tokenizer->decode(ids), text);
  for (const auto& s : expected["strings"]) {
    const std::string string = s["text"];
    const Ids parsed = tokenizer->encode(string, SpecialText::kParse);
    EXPECT_EQ(parsed, s["ids"].get<Ids>()) << string;
    EXPECT_EQ(tokenizer->decode(parsed), string);
  }
}

TEST_P(ModelFile, ChatEqualsHuggingFace) {
  const ChatTemplate chat = checkpoint->chat_template();
  for (const auto& c : expected["chat"]) {
    std::vector<ChatMessage> messages;
    for (const auto& m : c["messages"]) messages.push_back({m["role"], m["content"]});
    const std::string rendered = chat.render(messages, true);
    EXPECT_EQ(rendered, c["rendered"]);
    EXPECT_EQ(tokenizer->encode(rendered, SpecialText::kParse), c["ids"].get<Ids>());
  }
}

TEST_P(ModelFile, PerplexityLogitsAndGreedyTextEqualHuggingFace) {
  const Model model(checkpoint, DType::kF32);
  const auto backend = make_cpu_backend();
  const AttentionFunction attention = dense_attention(*backend);
  Ids ids = tokenizer->encode(read_file(text_path()), SpecialText::kPlain);
  ids.resize(512);

  const auto& likelihood = expected["perplexity"]["512"];
  const auto nll = negative_log_likelihoods(model, ids, attention);
  const auto first = likelihood["first_16_nll"].get<std::vector<double>>();
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_NEAR(nll[i], first[i], 1e-2) << i;
  const double mean =
      std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(nll.size());
  EXPECT_NEAR(std::exp(mean) / likelihood["ppl"].get<double>(), 1.0, 5e-4);

  Session session(model, attention, {.capacity = 512, .observer = {}});
  session.run(ids);
  const std::vector<float> logits = session.last_logits();
  const auto& last = expected["logits_512_last"];
  const auto sample = last["first_64"].get<std::vector<float>>();
  for (std::size_t i = 0; i < sample.size(); ++i) EXPECT_NEAR(logits[i], sample[i], 2e-2) << i;
  EXPECT_EQ(argmax(logits), last["argmax"].get<std::int32_t>());

  for (const auto& [name, g] : expected["greedy"].items()) {
    SCOPED_TRACE(name);
    const Ids prompt = tokenizer->encode(g["prompt"].get<std::string>(), SpecialText::kParse);
    ASSERT_EQ(prompt, g["prompt_ids"].get<Ids>());
    const auto margins = g["top1_minus_top2"].get<std::vector<double>>();
    Session run(model, attention, {.capacity = 256, .observer = {}});
    run.run(prompt);
    for (std::size_t i = 0; i < margins.size() && margins[i] > 0.02; ++i) {  // until a near tie
      const std::int32_t id = argmax(run.last_logits());
      ASSERT_EQ(id, g["ids"][i].get<std::int32_t>()) << "step " << i;
      run.run({&id, 1});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelFile, ::testing::Values("smollm2", "qwen2.5-coder-0.5b"),
                         [](const auto& param) {
                           return std::string(param.param)
                               .substr(0, std::string(param.param).find_first_of("0123456789"));
                         });

}  // namespace
}  // namespace sw
