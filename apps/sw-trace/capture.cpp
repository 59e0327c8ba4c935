#include "capture.hpp"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "core/text.hpp"
#include "dataset/prompt.hpp"
#include "eval/prompt_codec.hpp"
#include "model/checkpoint.hpp"
#include "model/transformer.hpp"

namespace sw {
namespace {

/// Length of a generated prompt when none is asked for.
constexpr std::int64_t kNiahTokens = 4096;

std::string count_text(std::int64_t count, const std::string& unit) {
  return std::to_string(count) + " " + unit + (count == 1 ? "" : "s");
}

struct LayerRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

LayerRange parse_layers(const std::string& text, std::int64_t layers) {
  if (text.empty()) return {0, layers};
  const auto parts = split(text, ':');
  LayerRange range{0, layers};
  const auto fail = [&] {
    throw Error(
        ErrorKind::kUsage,
        "--layers " + text + " is not a range of the model's " + std::to_string(layers) + " layers",
        "write first:end, for example 0:" + std::to_string(layers));
  };
  if (parts.size() != 2) fail();
  if (!parts[0].empty()) range.begin = parse_int(parts[0], "--layers");
  if (!parts[1].empty()) range.end = parse_int(parts[1], "--layers");
  if (range.begin < 0 || range.begin >= range.end || range.end > layers) fail();
  return range;
}

/// The template to use: that of the model for tasks whose protocol has one, or the one named.
std::optional<ChatTemplate> choose_template(const std::string& name, bool wanted,
                                            const Checkpoint& checkpoint) {
  if (name == "none" || (name == "auto" && !wanted)) return std::nullopt;
  return name == "auto" ? checkpoint.chat_template() : ChatTemplate(name);
}

struct CapturePrompt {
  Prompt prompt;
  std::string source;
};

/// Most tokens that the prompt may have, nothing when it may not be cut to fit.
std::optional<std::int64_t> context_limit(const CaptureOptions& options,
                                          const ModelConfig& config) {
  if (options.decode < 0) throw Error(ErrorKind::kUsage, "--decode cannot be negative");
  const std::int64_t longest = config.context_length - options.decode;
  const std::string limit = "the model's limit of " + count_text(config.context_length, "token");
  const std::string steps = count_text(options.decode, "decode step");
  if (options.context && *options.context < 1) {
    throw Error(ErrorKind::kUsage, "--context must be at least 1");
  }
  if (longest < 1) {
    throw Error(ErrorKind::kUsage, steps + " leave no room for a prompt in " + limit,
                "use fewer decode steps");
  }
  if (options.context && *options.context > longest) {
    throw Error(ErrorKind::kUsage,
                "a context of " + count_text(*options.context, "token") +
                    (options.decode > 0 ? " and " + steps : "") + " is more than " + limit,
                "use --context " + std::to_string(longest) + " or less");
  }
  if (options.context) return options.context;
  if (options.dataset == "text") return std::nullopt;
  return options.dataset == "niah" ? std::min(kNiahTokens, longest) : longest;
}

CapturePrompt make_prompt(CaptureOptions& options, const Checkpoint& checkpoint,
                          const Tokenizer& tokenizer) {
  const ModelConfig& config = checkpoint.config();
  const std::optional<std::int64_t> limit = context_limit(options, config);
  const DatasetKind& kind = dataset_kind(options.dataset);
  // A document is text throughout; the prompts of tasks are encoded as the benchmarks do.
  const bool templated = options.chat_template != "auto" && options.chat_template != "none";
  const SpecialText special =
      options.dataset != "text" || templated ? SpecialText::kParse : SpecialText::kPlain;
  if (limit) options.sample.niah.length = *limit;
  options.sample.measure = [&](const Sample& sample) {
    const auto codec = prompt_codec(
        tokenizer, choose_template(options.chat_template, sample.chat, checkpoint), special);
    return std::ssize(build_prompt(sample, codec, INT64_MAX).ids);
  };
  const Sample sample = kind.load(options.sample);
  const auto chat = choose_template(options.chat_template, sample.chat, checkpoint);
  CapturePrompt made{
      build_prompt(sample, prompt_codec(tokenizer, chat, special), limit.value_or(INT64_MAX)),
      options.dataset};
  if (sample.dataset != options.dataset) made.source += ":" + sample.dataset;
  made.source += "#" + sample.id;
  Prompt& prompt = made.prompt;
  const std::int64_t tokens = std::ssize(prompt.ids);
  if (tokens > config.context_length - options.decode) {
    throw Error(ErrorKind::kUsage,
                "the text has " + count_text(tokens, "token") + ", but the model's limit is " +
                    std::to_string(config.context_length),
                "capture its beginning with --context " +
                    std::to_string(config.context_length - options.decode) + " or less");
  }
  for (const std::string& answer : options.answers) {
    const auto spans = prompt.text.find({&answer, 1});
    if (spans.empty()) {
      throw Error(ErrorKind::kUsage,
                  "the answer '" + answer + "' does not occur in the prompt as a whole word",
                  tokens < prompt.untruncated ? "the prompt was cut; try a longer --context"
                                              : "answers are compared letter by letter");
    }
    prompt.answer_spans.insert(prompt.answer_spans.end(), spans.begin(), spans.end());
  }
  std::ranges::sort(prompt.answer_spans);
  const auto repeated = std::ranges::unique(prompt.answer_spans);
  prompt.answer_spans.erase(repeated.begin(), repeated.end());
  if (chat) made.source += ", chat template " + chat->name();
  if (tokens < prompt.untruncated) {
    made.source += ", cut from " + count_text(prompt.untruncated, "token");
  }
  return made;
}

/// The part in the dtype of the trace; `buffer` owns it when it had to be converted.
HeadsView in_dtype(const HeadsView& part, DType dtype, HeadsTensor& buffer) {
  if (part.dtype == dtype) return part;
  buffer = HeadsTensor(dtype, part.heads, part.tokens, part.dim);
  const std::size_t row_bytes = static_cast<std::size_t>(part.dim) * dtype_size(dtype);
  parallel_for(part.heads, [&](std::int64_t head, int) {
    std::vector<float> row(static_cast<std::size_t>(part.dim));
    for (std::int64_t token = 0; token < part.tokens; ++token) {
      part.load_row(head, token, row.data());
      convert_from_float(
          row.data(), dtype, part.dim,
          buffer.data() + static_cast<std::size_t>(head * part.tokens + token) * row_bytes);
    }
  });
  return buffer.view();
}

/// Writes what the attention of a layer is given, for the tokens of the chunk.
void write_chunk(TraceWriter& writer, const AttentionProblem& problem) {
  const TraceInfo& info = writer.info();
  for (const TraceTensor tensor : kTraceTensors) {
    const HeadsView part = tensor == TraceTensor::kQ
                               ? problem.q
                               : (tensor == TraceTensor::kK ? problem.k : problem.v)
                                     .tokens_slice(problem.query_begin(), problem.tokens());
    HeadsTensor buffer;
    const HeadsView stored = in_dtype(part, info.dtype, buffer);
    if (const auto bad = find_non_finite(stored)) {
      throw Error(ErrorKind::kUnsupported,
                  "layer " + std::to_string(problem.layer) + ": " +
                      std::string(trace_tensor_name(tensor)) + " at head " +
                      std::to_string(bad->head) + ", token " +
                      std::to_string(problem.query_begin() + bad->token) +
                      " exceeds the range of " + std::string(dtype_name(info.dtype)),
                  "store the trace with --dtype f32 or bf16");
    }
    writer.append(problem.layer, tensor, stored);
  }
}

TraceInfo plan_trace(const CaptureOptions& options, const ModelConfig& config,
                     const CapturePrompt& made, const Backend& backend) {
  const LayerRange layers = parse_layers(options.layers, config.layers);
  TraceInfo info;
  info.model =
      config.name.empty() ? std::filesystem::path(options.model).stem().string() : config.name;
  info.first_layer = layers.begin;
  info.num_layers = layers.end - layers.begin;
  info.model_layers = config.layers;
  info.num_heads = config.heads;
  info.num_kv_heads = config.kv_heads;
  info.head_dim = config.head_dim;
  info.prefill_tokens = std::ssize(made.prompt.ids);
  info.total_tokens = info.prefill_tokens + options.decode;
  info.dtype = options.dtype;
  info.source = made.source;
  info.created_by = program_version("sw-trace") + " capture (" +
                    std::string(dtype_name(options.compute)) + " products, attention by " +
                    backend.name() + " " + backend.detail() + ")";
  info.text = to_valid_utf8(made.prompt.text.text());
  for (const TokenRange& range : made.prompt.answer_spans) {
    info.answer_spans.push_back({range.begin, range.end});
  }
  return info;
}

std::string reply_text(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  const auto end = std::ranges::find_if(ids, [&](auto id) { return tokenizer.is_end(id); });
  return to_valid_utf8(tokenizer.decode(ids.first(static_cast<std::size_t>(end - ids.begin()))));
}

}  // namespace

CaptureResult capture(CaptureOptions options, const Backend& backend) {
  const auto checkpoint = Checkpoint::open(options.model);
  const ModelConfig& config = checkpoint->config();
  const Tokenizer tokenizer = checkpoint->tokenizer();
  const CapturePrompt made = make_prompt(options, *checkpoint, tokenizer);
  std::vector<std::int32_t> tokens = made.prompt.ids;
  const auto prefill = tokens.size();
  std::optional<TextLikelihood> likelihood;
  if (options.perplexity) likelihood.emplace(made.prompt.ids, config.vocabulary);
  // The writer comes before the model, so that a bad output path is found at once.
  TraceWriter writer(options.output, plan_trace(options, config, made, backend), options.write);
  const TraceInfo& info = writer.info();

  const Model model(checkpoint, options.compute);
  SessionOptions session_options;
  // Neither the next token nor the likelihood is asked for: later layers need not run.
  if (!options.perplexity && options.decode == 0) session_options.layers = info.last_layer() + 1;
  Progress progress("capturing " + options.output,
                    info.total_tokens * std::min(config.layers, session_options.layers),
                    options.quiet);
  session_options.capacity = info.total_tokens;
  session_options.observer = [&](const AttentionProblem& problem) {
    if (problem.layer >= info.first_layer && problem.layer <= info.last_layer()) {
      write_chunk(writer, problem);
    }
    progress.advance(problem.queries());
  };
  Session session(model, dense_attention(backend), session_options);

  CaptureResult result;
  if (likelihood) {
    session.run(tokens, [&](std::int64_t first, std::int64_t rows, const float* logits) {
      likelihood->add(first, rows, logits);
    });
    result.perplexity = likelihood->perplexity();
  } else {
    session.run(tokens);
  }
  for (std::int64_t step = 0; step < options.decode; ++step) {
    tokens.push_back(argmax(session.last_logits()));
    session.run({&tokens.back(), 1});
  }
  result.untruncated = made.prompt.untruncated;
  result.reply = reply_text(tokenizer, std::span(tokens).subspan(prefill));
  if (result.perplexity) writer.set_perplexity(*result.perplexity);
  writer.set_tokens(std::move(tokens));
  writer.commit();
  result.info = writer.info();
  return result;
}

namespace {

struct CaptureCommand {
  CaptureOptions options;
  std::string text;
  std::string longbench;
  std::string ruler;
  bool niah = false;
  std::string dtype = "bf16";
  std::string compute = "f32";
};

void choose_dataset(CaptureCommand& command) {
  CaptureOptions& options = command.options;
  int given = 0;
  const auto choose = [&](const char* dataset, bool is_given, const std::string& path) {
    if (!is_given) return;
    ++given;
    options.dataset = dataset;
    options.sample.path = path;
  };
  choose("text", !command.text.empty(), command.text);
  choose("longbench", !command.longbench.empty(), command.longbench);
  choose("ruler", !command.ruler.empty(), command.ruler);
  choose("niah", command.niah, "");
  if (given != 1) {
    throw Error(ErrorKind::kUsage,
                given == 0 ? "no prompt is given" : "more than one prompt is given",
                "give exactly one of --text FILE, --longbench FILE, --ruler FILE and --niah");
  }
}

void print_result(const CaptureOptions& options, const CaptureResult& result, double seconds) {
  const TraceInfo& info = result.info;
  std::cout << "wrote " << options.output << " ("
            << format_bytes(std::filesystem::file_size(options.output)) << ") in "
            << format_duration(seconds) << "\n"
            << "  model      " << info.model << ", layers " << info.first_layer << " to "
            << info.last_layer() << " of " << *info.model_layers << "\n"
            << "  prompt     " << info.source << "\n"
            << "  tokens     " << info.prefill_tokens << " prefill, "
            << info.total_tokens - info.prefill_tokens << " decode, " << dtype_name(info.dtype)
            << "\n";
  if (!info.answer_spans.empty()) {
    std::cout << "  answers    in " << count_text(std::ssize(info.answer_spans), "place")
              << ", the first in tokens " << info.answer_spans.front().begin << " to "
              << info.answer_spans.front().end - 1 << "\n";
  } else if (options.dataset != "text") {
    std::cout << "  answers    none stands in the prompt\n";
  }
  if (result.perplexity) std::cout << "  perplexity " << format_double(*result.perplexity) << "\n";
  if (options.decode > 0) std::cout << "  reply      " << result.reply << "\n";
  std::cout << "next: sw-eval trace " << options.output
            << " --method dense sketchwalk --density 0.1 0.2 -o report\n";
}

int run_capture(CaptureCommand command, const CommonOptions& common) {
  const auto start = std::chrono::steady_clock::now();
  CaptureOptions& options = command.options;
  choose_dataset(command);
  options.dtype = parse_dtype(command.dtype);
  options.compute = parse_dtype(command.compute);
  options.write.force = common.force;
  options.quiet = common.quiet;
  const auto backend = make_backend(common.backend, common.cpu_isa);
  const CaptureResult result = capture(options, *backend);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
  print_result(options, result, passed.count());
  return 0;
}

}  // namespace

void setup_capture(Program& program) {
  const auto command = std::make_shared<CaptureCommand>();
  CaptureOptions& o = command->options;
  CLI::App& app = program.add_command(
      "capture", "Run a model over a prompt and write its queries, keys and values",
      {"sw-trace capture model.gguf --text book.txt --context 8192 -o book.h5",
       "sw-trace capture model.gguf --longbench hotpotqa.jsonl --record 3 --decode 16 -o qa.h5",
       "sw-trace capture model.gguf --niah --context 4096 --depth 0.3 --decode 8 -o niah.h5",
       "sw-trace capture model.gguf --text book.txt --context 1000 --layers 0:4 --dtype f32 "
       "-o part.safetensors"},
      [command](const CommonOptions& common) { return run_capture(*command, common); });
  app.add_option("model", o.model, "GGUF file or Hugging Face folder (llama, qwen2, qwen3)")
      ->required();
  app.add_option("-o,--output", o.output, "Trace to write, .h5 or .safetensors")->required();

  const auto prompt = [](CLI::Option* option) { return option->group("Prompt (one of four)"); };
  prompt(app.add_option("--text", command->text, "UTF-8 file: its first tokens"));
  CLI::Option* longbench =
      prompt(app.add_option("--longbench", command->longbench, "LongBench v1 records"));
  prompt(app.add_option("--ruler", command->ruler, "RULER samples"));
  CLI::Option* niah =
      prompt(app.add_flag("--niah", command->niah, "Needle in a haystack, generated"));

  const auto detail = [](CLI::Option* option) { return option->group("Details of the prompt"); };
  detail(app.add_option("--context", o.context,
                        "Most tokens of the prompt; longer text is cut at its end, tasks in the "
                        "middle (default: the model's limit; 4096 for --niah)"));
  detail(app.add_option("--record", o.sample.record, "Record of the file, from 0"))
      ->capture_default_str();
  detail(app.add_option("--prompts", o.sample.prompts,
                        "LongBench's dataset2prompt.json (default: looked for beside the records "
                        "and in ../config and ../longbench_config)"))
      ->needs(longbench);
  detail(app.add_option("--chat-template", o.chat_template,
                        "auto (the model's, for tasks whose protocol has one), none, or a name "
                        "such as chatml or llama3"))
      ->capture_default_str();
  detail(app.add_option("--answer", o.answers, "Text whose tokens are stored as answer spans too"))
      ->expected(1)
      ->take_all();
  detail(app.add_option("--depth", o.sample.niah.depth, "Place of the needle: 0 begin, 1 end"))
      ->needs(niah)
      ->capture_default_str();
  detail(app.add_option("--needles", o.sample.niah.needles,
                        "Needles; all but the one asked for speak of other towns"))
      ->needs(niah)
      ->capture_default_str();
  detail(app.add_option("--niah-seed", o.sample.niah.seed, "Seed of text and needles"))
      ->needs(niah)
      ->capture_default_str();
  detail(app.add_option("--niah-question", o.sample.niah.question,
                        "Question instead of the built-in one; {key} is the town"))
      ->needs(niah);

  app.add_option("--decode", o.decode, "Greedy decode steps after the prompt")
      ->capture_default_str();
  app.add_option("--layers", o.layers, "Layers to write, first:end (default: all)");
  app.add_option("--dtype", command->dtype, "Type of the trace")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str();
  app.add_option("--compute", command->compute, "Type of the matrix products and the KV cache")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_flag("--perplexity", o.perplexity, "Print and store the prompt's perplexity");
  app.add_option("--compression", o.write.compression, "Deflate level of HDF5, 0: off")
      ->check(CLI::Range(0, 9))
      ->capture_default_str();
}

}  // namespace sw
