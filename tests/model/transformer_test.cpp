#include "model/transformer.hpp"

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu_isa.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/panel_kernel.hpp"
#include "naive_attention.hpp"
#include "support.hpp"

// Expected values (golden/tiny_*.json): Hugging Face's llama and qwen2 in f32 on the random weights
// of golden/tiny_*.gguf.

namespace sw {
namespace {

using Ids = std::vector<std::int32_t>;
constexpr std::int64_t kCapacity = 64;

void expect_near(const std::vector<float>& got, const std::vector<float>& expected,
                 double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance) << i;
}

/// [heads][tokens][dim] against the tokens of a view that begin at `first`.
void expect_heads(const HeadsView& view, const nlohmann::json& expected, std::int64_t first) {
  ASSERT_EQ(view.heads, static_cast<std::int64_t>(expected.size()));
  std::vector<float> row(static_cast<std::size_t>(view.dim));
  for (std::int64_t h = 0; h < view.heads; ++h) {
    for (std::int64_t t = 0; t < view.tokens; ++t) {
      view.load_row(h, t, row.data());
      expect_near(row, expected[h][first + t].get<std::vector<float>>(), 2e-5);
    }
  }
}

class Tiny : public ::testing::TestWithParam<const char*> {
 protected:
  Tiny()
      : expected(test::golden(std::string("tiny_") + GetParam() + ".json")),
        ids(expected["ids"].get<Ids>()),
        checkpoint(
            Checkpoint::open(test::golden_path(std::string("tiny_") + GetParam() + ".gguf"))) {}

  /// Logits of all positions [n][vocabulary] when the ids are run in chunks of `chunk`.
  std::vector<float> all_logits(const Model& model, std::int64_t chunk) const {
    Session session(model, test::naive_attention, {.capacity = kCapacity, .chunk_tokens = chunk});
    std::vector<float> logits;
    session.run(ids, [&](std::int64_t first, std::int64_t rows, const float* x) {
      const std::int64_t vocabulary = model.config().vocabulary;
      EXPECT_EQ(first * vocabulary, static_cast<std::int64_t>(logits.size()));
      logits.insert(logits.end(), x, x + rows * vocabulary);
    });
    return logits;
  }

  nlohmann::json expected;
  Ids ids;
  std::shared_ptr<const Checkpoint> checkpoint;
};

TEST_P(Tiny, ReadsItsConfiguration) {
  const ModelConfig& c = checkpoint->config();
  EXPECT_EQ(c.architecture, GetParam());
  EXPECT_EQ(c.layers, 2);
  EXPECT_EQ(c.hidden, 32);
  EXPECT_EQ(c.ffn, 48);
  EXPECT_EQ(c.heads, 4);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.vocabulary, 480);
  EXPECT_EQ(c.context_length, 256);
  EXPECT_EQ(c.rope_base, 5000.0);
  EXPECT_EQ(c.qkv_bias, c.architecture == "qwen2");
  for (const DType compute : {DType::kF32, DType::kBf16}) {
    EXPECT_GE(Model(checkpoint, compute).weight_bytes(), estimated_weight_bytes(c, compute));
  }
  EXPECT_EQ(kv_cache_bytes(c, DType::kF32, 10), 2u * 2 * 2 * 8 * 10 * 4);
}

TEST_P(Tiny, LogitsAndLikelihoodsEqualHuggingFace) {
  const Model model(checkpoint, DType::kF32);
  Session session(model, test::naive_attention, {.capacity = kCapacity});
  session.run(ids);
  EXPECT_EQ(session.position(), static_cast<std::int64_t>(ids.size()));
  const auto logits = expected["last_logits"].get<std::vector<float>>();
  expect_near(session.last_logits(), logits, 2e-4);
  EXPECT_EQ(argmax(session.last_logits()), argmax(logits));

  const auto nll = negative_log_likelihoods(model, ids, test::naive_attention);
  const auto expected_nll = expected["nll"].get<std::vector<double>>();
  ASSERT_EQ(nll.size(), expected_nll.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < nll.size(); ++i) {
    EXPECT_NEAR(nll[i], expected_nll[i], 2e-4);
    sum += expected_nll[i];
  }
  const double mean = sum / static_cast<double>(nll.size());
  EXPECT_NEAR(perplexity(model, ids, test::naive_attention) / std::exp(mean), 1.0, 1e-4);
}

TEST_P(Tiny, ObserverSeesQkvOfHuggingFace) {
  const Model model(checkpoint, DType::kF32);
  std::vector<std::int64_t> seen;
  const auto observer = [&](const AttentionProblem& p) {
    seen.push_back(p.layer);
    EXPECT_EQ(p.tokens(), p.query_begin() + p.queries());
    const auto& layer = expected["layers"][static_cast<std::size_t>(p.layer)];
    expect_heads(p.q, layer["q"], p.query_begin());
    expect_heads(p.k, layer["k"], 0);
    expect_heads(p.v, layer["v"], 0);
  };
  Session session(model, test::naive_attention,
                  {.capacity = kCapacity, .chunk_tokens = 20, .observer = observer});
  session.run(ids);
  EXPECT_EQ(seen, (std::vector<std::int64_t>{0, 1, 0, 1}));  // 23 tokens are two chunks
}

TEST_P(Tiny, ChunksDoNotMatter) {
  const Model model(checkpoint, DType::kF32);
  const std::vector<float> whole = all_logits(model, kCapacity);
  ASSERT_EQ(whole.size(), ids.size() * 480);
  for (const std::int64_t chunk : {1, 3, 16, 22}) {
    expect_near(all_logits(model, chunk), whole, 2e-5);
  }
}

TEST_P(Tiny, DecodeStepEqualsPrefillOfOneMore) {
  const Model model(checkpoint, DType::kF32);
  Session session(model, test::naive_attention, {.capacity = kCapacity});
  session.run({ids.data(), 10});
  for (std::size_t n = 10; n < ids.size(); ++n) {
    session.run({ids.data() + n, 1});
    Session prefill(model, test::naive_attention, {.capacity = kCapacity});
    prefill.run({ids.data(), n + 1});
    expect_near(session.last_logits(), prefill.last_logits(), 2e-5);
  }
}

TEST_P(Tiny, ThreadsDoNotMatter) {
  const Model model(checkpoint, DType::kF32);
  const int threads = num_threads();
  set_num_threads(1);
  const std::vector<float> one = all_logits(model, 7);
  set_num_threads(4);
  const std::vector<float> four = all_logits(model, 7);
  set_num_threads(threads);
  EXPECT_EQ(one, four);
}

void expect_independent_rows(const Model& model) {
  const std::int64_t hidden = model.config().hidden;
  const std::int64_t vocabulary = model.config().vocabulary;
  std::vector<float> residual(static_cast<std::size_t>(300 * hidden));
  SplitMix64 rng(5);
  for (float& x : residual) x = static_cast<float>(rng.uniform() * 4 - 2);
  std::vector<float> all(static_cast<std::size_t>(300 * vocabulary));
  model.logits(residual.data(), 300, all.data());
  for (const std::int64_t rows : {1, 2, 3, 7, 16, 31, 64, 100, 127, 128, 129, 130, 257}) {
    for (const std::int64_t first : {std::int64_t{0}, 300 - rows}) {
      std::vector<float> some(static_cast<std::size_t>(rows * vocabulary));
      model.logits(residual.data() + first * hidden, rows, some.data());
      const auto* expected_rows = all.data() + first * vocabulary;
      EXPECT_TRUE(std::equal(some.begin(), some.end(), expected_rows)) << rows << " at " << first;
    }
  }
}

TEST_P(Tiny, LogitsOfARowDoNotDependOnTheOthers) {
  expect_independent_rows(Model(checkpoint, DType::kF32));
  try {
    expect_independent_rows(Model(checkpoint, DType::kBf16));
  } catch (const Error& error) {
    ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
  }
}

TEST_P(Tiny, ResidualOfTheLastLayerGivesTheLogits) {
  const Model model(checkpoint, DType::kF32);
  std::vector<std::array<std::int64_t, 3>> seen;
  std::vector<float> last;
  const auto observer = [&](std::int64_t layer, std::int64_t first, std::int64_t rows,
                            const float* x) {
    seen.push_back({layer, first, rows});
    if (layer == 1) last.insert(last.end(), x, x + rows * model.config().hidden);
  };
  Session session(model, test::naive_attention,
                  {.capacity = kCapacity, .chunk_tokens = 20, .residual = observer});
  std::vector<float> streamed;
  session.run(ids, [&](std::int64_t, std::int64_t rows, const float* x) {
    streamed.insert(streamed.end(), x, x + rows * model.config().vocabulary);
  });
  EXPECT_EQ(seen, (std::vector<std::array<std::int64_t, 3>>{
                      {0, 0, 20}, {1, 0, 20}, {0, 20, 3}, {1, 20, 3}}));
  std::vector<float> logits(streamed.size());
  model.logits(last.data(), std::ssize(ids), logits.data());
  EXPECT_EQ(logits, streamed);
  EXPECT_EQ(session.last_logits(),
            std::vector<float>(logits.end() - model.config().vocabulary, logits.end()));
}

TEST_P(Tiny, RewindForgetsWhatFollows) {
  const Model model(checkpoint, DType::kF32);
  Session fresh(model, test::naive_attention, {.capacity = kCapacity});
  EXPECT_THROW(fresh.last_logits(), Error);
  fresh.run({ids.data(), 10});
  fresh.run({ids.data() + 10, 5});
  Session session(model, test::naive_attention, {.capacity = kCapacity});
  session.run({ids.data(), 10});
  for (const std::int32_t wrong : {7, 11}) session.run(Ids{wrong, 3, wrong});
  EXPECT_THROW(session.rewind(17), Error);
  EXPECT_THROW(session.rewind(-1), Error);
  EXPECT_EQ(session.position(), 16);
  session.rewind(10);
  EXPECT_EQ(session.position(), 10);
  EXPECT_THROW(session.last_logits(), Error);
  session.run({ids.data() + 10, 5});
  EXPECT_EQ(session.last_logits(), fresh.last_logits());
  session.rewind(0);
  session.run({ids.data(), 10});
  session.run({ids.data() + 10, 5});
  EXPECT_EQ(session.last_logits(), fresh.last_logits());
}

TEST_P(Tiny, RunsWithAnInjectedBackend) {
  const Model model(checkpoint, DType::kF32);
  const auto backend = make_cpu_backend();
  Session session(model, dense_attention(*backend), {.capacity = kCapacity});
  session.run(ids);
  expect_near(session.last_logits(), expected["last_logits"].get<std::vector<float>>(), 5e-4);
}

TEST_P(Tiny, Bf16IsNear) {
  try {
    const Model model(checkpoint, DType::kBf16);
    std::vector<DType> seen;
    Session session(model, test::naive_attention,
                    {.capacity = kCapacity, .observer = [&](const AttentionProblem& p) {
                       seen.insert(seen.end(), {p.q.dtype, p.k.dtype, p.v.dtype});
                     }});
    session.run(ids);
    EXPECT_EQ(seen, std::vector<DType>(6, DType::kBf16));
    const auto exact = expected["last_logits"].get<std::vector<float>>();
    const std::vector<float> logits = session.last_logits();
    double error = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      error += (logits[i] - exact[i]) * (logits[i] - exact[i]);
      norm += exact[i] * exact[i];
    }
    EXPECT_LT(std::sqrt(error / norm), 0.05);
  } catch (const Error& error) {
    ASSERT_EQ(error.kind(), ErrorKind::kUnsupported) << error.what();
    GTEST_SKIP() << error.what();
  }
}

/// Products, norms and the rest limited to each instruction set in turn. Below AVX2 bf16 products
/// are oneDNN's, which may have none.
TEST_P(Tiny, EveryInstructionSetGivesTheLogits) {
  const auto exact = expected["last_logits"].get<std::vector<float>>();
  const auto logits = [&](DType compute) {
    const Model model(checkpoint, compute);
    Session session(model, test::naive_attention, {.capacity = kCapacity});
    session.run(ids);
    return session.last_logits();
  };
  for (const char* name : {"portable", "avx2", "avx512", "avx512_bf16"}) {
    SCOPED_TRACE(name);
    limit_cpu_isa(*parse_cpu_isa(name));
    const bool panels = find_panel_kernel() != nullptr;
    expect_near(logits(DType::kF32), exact, 2e-4);
    if (panels) {
      const std::vector<float> rounded = logits(DType::kBf16);
      double error = 0.0, norm = 0.0;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        error += (rounded[i] - exact[i]) * (rounded[i] - exact[i]);
        norm += exact[i] * exact[i];
      }
      EXPECT_LT(std::sqrt(error / norm), 0.05);
    }
    limit_cpu_isa(CpuIsa::kAmxBf16);
  }
}

TEST_P(Tiny, RefusesWrongRequests) {
  const Model model(checkpoint, DType::kF32);
  EXPECT_THROW(Model(checkpoint, DType::kF16), Error);
  EXPECT_THROW(Session(model, test::naive_attention, {.capacity = 0}), Error);
  EXPECT_THROW(negative_log_likelihoods(model, Ids{1}, test::naive_attention), Error);
  Session session(model, test::naive_attention, {.capacity = 4});
  EXPECT_THROW(session.run(Ids{1, 480}), Error);
  EXPECT_THROW(session.run(Ids{-1}), Error);
  session.run(Ids{1, 2, 3});
  EXPECT_THROW(session.run(Ids{1, 2}), Error);
  EXPECT_EQ(session.position(), 3);
}

INSTANTIATE_TEST_SUITE_P(Architectures, Tiny, ::testing::Values("llama", "qwen2"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace sw
