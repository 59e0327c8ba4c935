#include "capture.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "commands.hpp"
#include "core/error.hpp"
#include "kernels/reference/backend.hpp"
#include "model/tokenizer.hpp"
#include "model/transformer.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

const std::string kModel = std::string(SW_TEST_DIR) + "/model/golden/tiny_llama.gguf";
constexpr const char* kText =
    "In the unknown city, she was the first of the old writers, and her answer was in the third "
    "song.";

class Capture : public testing::Test {
 protected:
  Capture() {
    std::string folder = (fs::temp_directory_path() / "sw-capture-XXXXXX").string();
    if (!mkdtemp(folder.data())) throw std::runtime_error("cannot make " + folder);
    folder_ = folder;
    write("text.txt", kText);
  }
  ~Capture() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
  }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  CaptureOptions text_options(const std::string& output = "out.h5") const {
    CaptureOptions options;
    options.model = kModel;
    options.output = path(output);
    options.dataset = "text";
    options.sample.path = path("text.txt");
    options.dtype = DType::kF32;
    options.quiet = true;
    return options;
  }
  CaptureResult run(const CaptureOptions& options) const { return capture(options, *backend_); }

  /// Message and hint of the error; checks its kind and that no file is left behind.
  std::string error_of(ErrorKind kind, const CaptureOptions& options) const {
    const std::size_t before = files();
    try {
      run(options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_EQ(files(), before);
      return std::string(error.what()) + " | " + error.hint();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  int command(std::vector<std::string> arguments) const {
    Program program("sw-trace", "test");
    setup_capture(program);
    arguments.insert(arguments.begin(), {"sw-trace", "capture", "--quiet", "--threads", "2"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return program.run(static_cast<int>(argv.size()), argv.data());
  }

  fs::path folder_;
  std::unique_ptr<Backend> backend_ = make_reference_backend();
};

float largest_difference(const HeadsTensor& a, const HeadsTensor& b) {
  EXPECT_EQ(a.elements(), b.elements());
  float largest = 0;
  std::vector<float> x(static_cast<std::size_t>(a.dim())), y = x;
  for (std::int64_t head = 0; head < a.heads(); ++head) {
    for (std::int64_t token = 0; token < a.tokens(); ++token) {
      a.view().load_row(head, token, x.data());
      b.view().load_row(head, token, y.data());
      for (std::size_t i = 0; i < x.size(); ++i) {
        largest = std::max(largest, std::abs(x[i] - y[i]));
      }
    }
  }
  return largest;
}

/// Largest difference of q, k and v of every layer that `a` has.
float largest_difference(const TraceReader& a, const TraceReader& b) {
  float largest = 0;
  for (std::int64_t layer = a.info().first_layer; layer <= a.info().last_layer(); ++layer) {
    const TraceLayer x = a.layer(layer);
    const TraceLayer y = b.layer(layer);
    for (const auto part : {&TraceLayer::q, &TraceLayer::k, &TraceLayer::v}) {
      largest = std::max(largest, largest_difference(x.*part, y.*part));
    }
  }
  return largest;
}

std::string spelled(const TraceInfo& info, const TokenSpan& span) {
  const Tokenizer tokenizer{Gguf(kModel)};
  return tokenizer.decode(std::span(info.tokens)
                              .subspan(static_cast<std::size_t>(span.begin),
                                       static_cast<std::size_t>(span.end - span.begin)));
}

// The expected trace is that of Hugging Face's model in f32, made by
//   datasets/export_hf_trace.py tests/model/golden --gguf-file tiny_llama.gguf
//     --token-ids IDS --decode 5 --dtype f32 -o tests/apps/golden/capture_tiny_llama.safetensors
// with IDS = 43 80 264 223 265 80 349 80 284 281 91 14 271 260 319 264 279 465 278 264 268 421 272
// 460 408 14 291 352 84 386 85 89 267 319 280 264 307 316 70 271 437 16; the perplexity is exp of
// that model's loss.
TEST_F(Capture, EqualsHuggingFace) {
  CaptureOptions options = text_options();
  options.decode = 5;
  options.perplexity = true;
  options.answers = {"third song"};
  const CaptureResult result = run(options);
  ASSERT_TRUE(result.perplexity);
  EXPECT_NEAR(*result.perplexity, 8654.522, 0.05);

  const TraceReader expected(std::string(SW_TEST_DIR) +
                             "/apps/golden/capture_tiny_llama.safetensors");
  const TraceReader trace(options.output);
  EXPECT_EQ(trace.info().tokens, expected.info().tokens);
  EXPECT_EQ(trace.info().prefill_tokens, 42);
  EXPECT_EQ(trace.info().total_tokens, 47);
  EXPECT_EQ(trace.info().num_layers, 2);
  EXPECT_EQ(trace.info().model_layers, 2);
  EXPECT_EQ(trace.info().model, "tiny llama");
  EXPECT_EQ(trace.info().text, kText);
  EXPECT_THAT(trace.info().source, HasSubstr("text.txt"));
  EXPECT_THAT(trace.info().created_by, HasSubstr("sw-trace"));
  EXPECT_LT(largest_difference(expected, trace), 1e-4f);
  // " third song" is " th", "ir", "d", " s", "ong".
  EXPECT_THAT(trace.info().answer_spans, ElementsAre(TokenSpan{36, 41}));
  EXPECT_EQ(spelled(trace.info(), trace.info().answer_spans[0]), " third song");
  EXPECT_EQ(trace.info().perplexity, result.perplexity);
  EXPECT_EQ(result.info, trace.info());
  EXPECT_TRUE(validate_trace(options.output).empty());
}

TEST_F(Capture, EqualsWhatTheModelShowsItsObserver) {
  const CaptureOptions options = text_options("out.safetensors");
  const CaptureResult result = run(options);
  const TraceReader trace(options.output);
  EXPECT_EQ(trace.format(), TraceFormat::kSafetensors);
  const Model model(Checkpoint::open(kModel), DType::kF32);
  int seen = 0;
  SessionOptions session_options;
  session_options.capacity = 64;
  session_options.observer = [&](const AttentionProblem& problem) {
    const TraceLayer layer = trace.layer(problem.layer);
    for (const auto& [view, tensor] :
         {std::pair(problem.q, &layer.q), std::pair(problem.k, &layer.k),
          std::pair(problem.v, &layer.v)}) {
      for (std::int64_t head = 0; head < view.heads; ++head) {
        for (std::int64_t token = 0; token < view.tokens; ++token) {
          ASSERT_EQ(std::memcmp(view.row(head, token), tensor->row<float>(head, token),
                                sizeof(float) * static_cast<std::size_t>(view.dim)),
                    0);
        }
      }
    }
    ++seen;
  };
  Session session(model, dense_attention(*backend_), session_options);
  session.run(result.info.tokens);
  EXPECT_EQ(seen, 2);
}

TEST_F(Capture, Bf16TraceIsTheRoundedF32Trace) {
  run(text_options("f32.h5"));
  for (const DType dtype : {DType::kBf16, DType::kF16}) {
    CaptureOptions options = text_options(std::string(dtype_name(dtype)) + ".h5");
    options.dtype = dtype;
    run(options);
    const TraceReader exact(path("f32.h5"));
    const TraceReader rounded(options.output);
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      const TraceLayer x = exact.layer(layer);
      const TraceLayer y = rounded.layer(layer);
      for (const auto part : {&TraceLayer::q, &TraceLayer::k, &TraceLayer::v}) {
        HeadsTensor expected(dtype, (x.*part).heads(), (x.*part).tokens(), (x.*part).dim());
        convert_from_float(reinterpret_cast<const float*>((x.*part).data()), dtype,
                           expected.elements(), expected.data());
        ASSERT_EQ(std::memcmp(expected.data(), (y.*part).data(), expected.bytes()), 0);
      }
    }
  }
}

TEST_F(Capture, LayerRangeAndBf16Products) {
  run(text_options("all.h5"));
  CaptureOptions options = text_options("last.h5");
  options.layers = "1:";
  run(options);
  const TraceReader last(options.output);
  EXPECT_EQ(last.info().first_layer, 1);
  EXPECT_EQ(last.info().num_layers, 1);
  EXPECT_EQ(largest_difference(last, TraceReader(path("all.h5"))), 0.0f);

  CaptureOptions bf16 = text_options("bf16.h5");
  bf16.compute = DType::kBf16;
  run(bf16);
  const float difference =
      largest_difference(TraceReader(bf16.output), TraceReader(path("all.h5")));
  EXPECT_GT(difference, 0.0f);
  EXPECT_LT(difference, 1.0f);
}

TEST_F(Capture, ContextCutsTextAtItsEnd) {
  CaptureOptions options = text_options();
  options.context = 10;
  const CaptureResult result = run(options);
  EXPECT_THAT(result.info.tokens, ElementsAre(43, 80, 264, 223, 265, 80, 349, 80, 284, 281));
  EXPECT_EQ(result.untruncated, 42);
  EXPECT_EQ(result.info.text, "In the unknown cit");
  EXPECT_THAT(result.info.source, HasSubstr("cut from 42 tokens"));
}

TEST_F(Capture, RulerRecordInChatTemplateAndCutInTheMiddle) {
  std::string context = "The code is 4711. ";
  for (int i = 0; i < 40; ++i) context += "The old man was in the city. ";
  write("vt.jsonl", R"({"task": "vt", "context": ")" + context +
                        R"(", "question": "Is the code 4711? ", "answer_prefix": "It is", )"
                        R"("outputs": ["4711"]})");
  CaptureOptions options = text_options();
  options.dataset = "ruler";
  options.sample.path = path("vt.jsonl");
  options.context = 150;
  options.decode = 2;
  const CaptureResult result = run(options);
  const TraceInfo& info = result.info;
  EXPECT_LE(info.prefill_tokens, 150);
  EXPECT_GE(info.prefill_tokens, 146);
  EXPECT_GT(result.untruncated, 200);
  EXPECT_TRUE(info.text.starts_with("<|im_start|>user\nThe code is 4711. The old")) << info.text;
  EXPECT_TRUE(info.text.ends_with("Is the code 4711? <|im_end|>\n<|im_start|>assistant\nIt is"))
      << info.text;
  EXPECT_EQ(info.tokens[0], 1) << "<|im_start|> is one token";
  EXPECT_EQ(spelled(info, {0, info.prefill_tokens}), info.text);
  ASSERT_EQ(info.answer_spans.size(), 1u) << "the question is no place of the answer";
  EXPECT_THAT(spelled(info, info.answer_spans[0]), HasSubstr("4711"));
  EXPECT_THAT(info.source, HasSubstr("ruler:vt#0, chat template chatml, cut from "));
}

TEST_F(Capture, LongBenchRecordWithoutChatTemplate) {
  write("dataset2prompt.json", R"({"trec": "Types.\n\n{context}\n{input}"})");
  write("trec_e.jsonl", R"({"input": "Who was he?", "context": "A city: the place.", )"
                        R"("answers": ["place"], "dataset": "trec_e", "_id": "x1"})");
  CaptureOptions options = text_options();
  options.dataset = "longbench";
  options.sample.path = path("trec_e.jsonl");
  EXPECT_EQ(run(options).info.text, "Types.\n\nA city: the place.\nWho was he?");
  options.output = path("chat.h5");
  options.chat_template = "llama3";
  const CaptureResult chat = run(options);
  EXPECT_THAT(chat.info.text, HasSubstr("<|start_header_id|>user<|end_header_id|>"));
  EXPECT_THAT(chat.info.source, HasSubstr("longbench:trec_e#x1, chat template llama3"));
  ASSERT_EQ(chat.info.answer_spans.size(), 1u);
  EXPECT_THAT(spelled(chat.info, chat.info.answer_spans[0]), HasSubstr("place"));
}

TEST_F(Capture, Niah) {
  CaptureOptions options = text_options();
  options.dataset = "niah";
  options.sample.niah.question = "What about {key}?";
  options.context = 250;
  const TraceInfo info = run(options).info;
  EXPECT_LE(info.prefill_tokens, 250);
  ASSERT_EQ(info.answer_spans.size(), 1u);
  const std::string answer = spelled(info, info.answer_spans[0]);
  const auto number = answer.substr(answer.find_first_of("123456789"));
  EXPECT_EQ(number.size(), 7u) << answer;
  EXPECT_THAT(info.text, HasSubstr(" is " + number + "."));
}

TEST_F(Capture, RefusesWhatDoesNotFit) {
  CaptureOptions options = text_options();
  options.context = 257;
  EXPECT_THAT(error_of(ErrorKind::kUsage, options),
              HasSubstr("a context of 257 tokens is more than the model's limit of 256 tokens | "
                        "use --context 256 or less"));
  options.context = 250;
  options.decode = 7;
  EXPECT_THAT(error_of(ErrorKind::kUsage, options),
              HasSubstr("a context of 250 tokens and 7 decode steps is more than the model's limit "
                        "of 256 tokens | use --context 249 or less"));
  options.decode = 256;
  EXPECT_THAT(error_of(ErrorKind::kUsage, options),
              HasSubstr("256 decode steps leave no room for a prompt in the model's limit of 256"));
  options.decode = -1;
  EXPECT_THAT(error_of(ErrorKind::kUsage, options), HasSubstr("--decode"));
  options = text_options();
  options.context = 0;
  EXPECT_THAT(error_of(ErrorKind::kUsage, options), HasSubstr("--context"));
  options = text_options();
  write("long.txt", std::string(2000, '.'));
  options.sample.path = path("long.txt");
  EXPECT_THAT(error_of(ErrorKind::kUsage, options),
              HasSubstr("but the model's limit is 256 | capture its beginning with --context 256"));
}

TEST_F(Capture, RefusesBadOptions) {
  for (const char* layers : {"2:3", "1:1", "0:3", "-1:2", "1", "a:b", "0:1:2"}) {
    CaptureOptions options = text_options();
    options.layers = layers;
    EXPECT_THAT(error_of(ErrorKind::kUsage, options), HasSubstr("--layers")) << layers;
  }
  CaptureOptions options = text_options();
  options.answers = {"elephant"};
  EXPECT_THAT(error_of(ErrorKind::kUsage, options),
              HasSubstr("the answer 'elephant' does not occur in the prompt"));
  options = text_options();
  options.chat_template = "lama3";
  EXPECT_THAT(error_of(ErrorKind::kUsage, options), HasSubstr("did you mean 'llama3'?"));
  options = text_options("out.txt");
  EXPECT_THAT(error_of(ErrorKind::kUsage, options), HasSubstr(".safetensors"));
  options = text_options("missing/out.h5");
  error_of(ErrorKind::kOutput, options);
  options = text_options();
  options.model = path("text.txt");
  error_of(ErrorKind::kInput, options);
}

TEST_F(Capture, KeepsExistingOutputUnlessForced) {
  CaptureOptions options = text_options();
  write("out.h5", "precious");
  error_of(ErrorKind::kOutput, options);
  options.write.force = true;
  run(options);
  EXPECT_NO_THROW(TraceReader{options.output});
}

TEST_F(Capture, CommandLine) {
  const std::string out = path("out.h5");
  testing::internal::CaptureStdout();
  EXPECT_EQ(command({kModel, "--text", path("text.txt"), "-o", out, "--decode", "2", "--answer",
                     "city", "--answer", "old", "--perplexity"}),
            0);
  const std::string printed = testing::internal::GetCapturedStdout();
  EXPECT_THAT(printed, HasSubstr("wrote " + out));
  EXPECT_THAT(printed, HasSubstr("42 prefill, 2 decode, bf16"));
  EXPECT_THAT(printed, HasSubstr("answers    in 2 places"));
  EXPECT_THAT(printed, HasSubstr("perplexity 86"));
  EXPECT_THAT(printed, HasSubstr("next: sw-eval trace " + out));

  const auto fails = [&](std::vector<std::string> arguments, int code, const std::string& message) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(command(std::move(arguments)), code);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(message));
  };
  fails({kModel, "-o", path("b.h5")}, 2, "no prompt is given");
  fails({kModel, "-o", path("b.h5"), "--niah", "--text", path("text.txt")}, 2,
        "more than one prompt is given");
  fails({kModel, "-o", path("b.h5"), "--niah", "--depth", "2"}, 2, "the depth 2 is not in 0..1");
  fails({kModel, "-o", path("b.h5"), "--text", path("text.txt"), "--depth", "0"}, 2, "--niah");
  fails({kModel, "-o", out, "--text", path("text.txt")}, 1, "--force");
  fails({kModel, "-o", path("b.h5"), "--text", path("none.txt")}, 1, "none.txt");
  fails({kModel, "-o", path("b.h5"), "--text", path("text.txt"), "--compute", "f16"}, 2, "f16");
}

}  // namespace
}  // namespace sw
