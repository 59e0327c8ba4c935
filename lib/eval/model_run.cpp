#include "eval/model_run.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <tuple>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/distribution.hpp"
#include "eval/prompt_codec.hpp"

namespace sw {
namespace {

/// Positions of which each layer's residual stream is kept for the hidden-state error.
constexpr std::int64_t kHiddenRows = 256;
/// Positions whose logits exist at a time.
constexpr std::int64_t kLogitRows = 128;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Residual streams of one run over a window: the last layer's for the logits, and sampled
/// positions of every layer for the hidden-state error.
class ResidualRecorder {
 public:
  void begin(std::int64_t tokens, const ModelConfig& config, bool all_layers) {
    hidden_ = config.hidden;
    layers_ = config.layers;
    every_ = std::max<std::int64_t>(1, tokens / kHiddenRows);
    sampled_ = (tokens + every_ - 1) / every_;
    last_.resize(static_cast<std::size_t>(tokens * hidden_));
    per_layer_.assign(all_layers ? static_cast<std::size_t>(layers_ * sampled_ * hidden_) : 0,
                      0.0f);
  }

  void add(std::int64_t layer, std::int64_t first, std::int64_t rows, const float* residual) {
    if (layer == layers_ - 1) {
      std::copy_n(residual, rows * hidden_, last_.begin() + first * hidden_);
    }
    if (per_layer_.empty()) return;
    for (std::int64_t r = 0; r < rows; ++r) {
      if ((first + r) % every_ != 0) continue;
      const std::int64_t slot = layer * sampled_ + (first + r) / every_;
      std::copy_n(residual + r * hidden_, hidden_, per_layer_.begin() + slot * hidden_);
    }
  }

  const float* last(std::int64_t position) const { return last_.data() + position * hidden_; }

  /// ||dense - this||_F / ||dense||_F of each layer, over the sampled positions.
  std::vector<double> error_against(const ResidualRecorder& dense) const {
    std::vector<double> errors;
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      double difference = 0.0;
      double norm = 0.0;
      const std::int64_t size = sampled_ * hidden_;
      for (std::int64_t i = layer * size; i < (layer + 1) * size; ++i) {
        const double x = dense.per_layer_[static_cast<std::size_t>(i)];
        const double y = per_layer_[static_cast<std::size_t>(i)];
        difference += (x - y) * (x - y);
        norm += x * x;
      }
      errors.push_back(norm > 0.0 ? std::sqrt(difference / norm) : 0.0);
    }
    return errors;
  }

 private:
  std::int64_t hidden_ = 0;
  std::int64_t layers_ = 0;
  std::int64_t every_ = 1;
  std::int64_t sampled_ = 0;
  std::vector<float> last_;       // [tokens, hidden]
  std::vector<float> per_layer_;  // [layers, sampled, hidden]
};

/// A text as the windows of a task cut it.
struct WindowedText {
  std::vector<std::int32_t> ids;
  std::vector<TextWindow> windows;
};

WindowedText cut_text(const Tokenizer& tokenizer, const Task& task,
                      const ModelRunOptions& options) {
  WindowedText text;
  text.ids = tokenizer.encode(task.sample(0, count_words).sample.prompt, SpecialText::kPlain);
  if (text.ids.size() < 2) {
    throw Error(ErrorKind::kInput, task.name() + ": the text has fewer than two tokens");
  }
  text.windows = text_windows(std::ssize(text.ids), options.context,
                              options.stride > 0 ? options.stride : options.context);
  return text;
}

}  // namespace

std::vector<std::int64_t> count_samples(const Tokenizer& tokenizer, std::span<const Task> tasks,
                                        const ModelRunOptions& options) {
  std::vector<std::int64_t> samples;
  for (const Task& task : tasks) {
    const std::int64_t count = task.kind() == TaskKind::kPerplexity
                                   ? std::ssize(cut_text(tokenizer, task, options).windows)
                                   : task.size();
    samples.push_back(std::min(count, options.limit));
  }
  return samples;
}

class ModelEvaluation::State {
 public:
  State(const Model& model, const Tokenizer& tokenizer, std::span<const Task> tasks,
        std::span<const Arm> arms, const Backend& backend, const ModelRunOptions& options)
      : model_(model), tokenizer_(tokenizer), tasks_(tasks), arms_(arms), options_(options) {
    check_options();
    for (const Arm& arm : arms) {
      attention_.emplace_back(arm, backend, options.block, model.config().layers);
    }
    newline_ = newline_token();
    for (const Task& task : tasks_) {
      WindowedText& text = texts_.emplace_back();
      if (task.kind() == TaskKind::kPerplexity) text = cut_text(tokenizer_, task, options_);
      const std::int64_t count =
          task.kind() == TaskKind::kPerplexity ? std::ssize(text.windows) : task.size();
      samples_.push_back(std::min(count, options_.limit));
    }
  }

  const std::vector<std::int64_t>& samples() const { return samples_; }

  void run(std::size_t task, std::int64_t sample, const std::vector<std::size_t>& pending,
           const std::function<void(RunEntry&&)>& take, const std::function<void()>& tick) {
    take_ = take;
    tick_ = tick;
    listeners_.clear();  // of a sample that could not be run
    if (tasks_[task].kind() == TaskKind::kPerplexity) {
      const WindowedText& text = texts_[task];
      run_window(tasks_[task], sample, text.ids, text.windows[static_cast<std::size_t>(sample)],
                 pending);
    } else {
      run_sample(tasks_[task], sample, pending);
    }
  }

 private:
  void check_options() const {
    const std::int64_t longest = model_.config().context_length;
    if (arms_.empty() || !arms_.front().dense()) {
      throw Error(ErrorKind::kUsage, "the first arm has to be the dense one");
    }
    if (options_.context < 2) {
      throw Error(ErrorKind::kUsage,
                  "a context of " + std::to_string(options_.context) + " tokens is too short",
                  "use --context 2 or more");
    }
    if (longest > 0 && options_.context > longest) {
      throw Error(ErrorKind::kUsage,
                  "a context of " + std::to_string(options_.context) +
                      " tokens is longer than the model's " + std::to_string(longest),
                  "use --context " + std::to_string(longest) +
                      " or less; longer prompts lose their middle");
    }
    if (options_.limit < 1) throw Error(ErrorKind::kUsage, "--limit must be at least 1");
    if (options_.decode_tokens < 1) {
      throw Error(ErrorKind::kUsage, "--decode-tokens must be at least 1");
    }
  }

  /// The last token of an encoded newline: the one that ends replies of samsum.
  std::int32_t newline_token() const {
    const auto ids = tokenizer_.encode("\n", SpecialText::kPlain);
    return ids.empty() ? -1 : ids.back();
  }

  Session& session(std::int64_t capacity) {
    if (!session_ || capacity > capacity_) {
      capacity_ = std::max(capacity, options_.context);
      SessionOptions options;
      options.capacity = capacity_;
      options.chunk_tokens = capacity_;  // a sparse prefill scores all queries of a layer together
      options.residual = [this](std::int64_t layer, std::int64_t first, std::int64_t rows,
                                const float* residual) {
        if (recorder_ != nullptr) recorder_->add(layer, first, rows, residual);
      };
      session_ = std::make_unique<Session>(
          model_,
          [this](const AttentionProblem& problem, AttentionOutput& output) {
            if (tick_) tick_();
            (*current_)(problem, output);
            for (ArmAttention* listener : listeners_) listener->observe_prefill(problem);
          },
          options);
    }
    session_->rewind(0);
    return *session_;
  }

  PromptCodec codec_for(const Sample& sample) const {
    return prompt_codec(tokenizer_, sample.chat ? options_.chat : std::nullopt,
                        SpecialText::kParse);
  }

  PromptIdentity identify(std::span<const std::int32_t> ids, std::int64_t untruncated,
                          const std::vector<std::int32_t>& stops, bool chat) const {
    PromptIdentity identity;
    identity.ids_sha256 = sha256(std::as_bytes(ids));
    identity.tokens = std::ssize(ids);
    identity.untruncated = untruncated;
    if (const auto bos = tokenizer_.bos()) {
      identity.bos_count = std::count(ids.begin(), ids.end(), *bos);
    }
    for (const std::int32_t id : stops) {
      identity.stop_set += (identity.stop_set.empty() ? "" : " ") + std::to_string(id);
    }
    identity.chat_template = chat && options_.chat ? options_.chat->name() : "none";
    return identity;
  }

  RunEntry new_entry(const Task& task, std::int64_t sample, const Arm& arm) const {
    RunEntry entry;
    entry.task = task.name();
    entry.sample = sample;
    entry.arm = arm.label();
    return entry;
  }

  static void take_usage(RunEntry& entry, const ArmAttention& attention) {
    entry.usage = attention.usage().layers;
    entry.prefill_stages = attention.usage().prefill_times;
    entry.decode_stages = attention.usage().decode_times;
  }

  // Generation.

  /// Greedy continuation from `logits` of the last prompt position, without the id that ends it.
  std::vector<std::int32_t> generate(Session& session, std::vector<float> logits,
                                     std::int64_t max_tokens, std::span<const std::int32_t> stops,
                                     bool at_least_one) const {
    std::vector<std::int32_t> ids;
    while (true) {
      if (at_least_one && ids.empty()) {
        for (const std::int32_t id : stops) {
          logits[static_cast<std::size_t>(id)] = -std::numeric_limits<float>::infinity();
        }
      }
      const std::int32_t next = argmax(logits);
      if (!std::isfinite(logits[static_cast<std::size_t>(next)])) fail_not_finite("a reply");
      if (std::binary_search(stops.begin(), stops.end(), next)) return ids;
      ids.push_back(next);
      if (std::ssize(ids) == max_tokens) return ids;
      session.run({&next, 1});
      logits = session.last_logits();
    }
  }

  [[noreturn]] static void fail_not_finite(const std::string& where) {
    throw Error(ErrorKind::kInput, "the model's logits are not finite in " + where,
                "its weights are damaged, or exceed the range of --compute; try f32");
  }

  /// The text of a reply, special tokens left out as LongBench's pred.py does.
  std::string reply_text(std::span<const std::int32_t> ids) const {
    std::vector<std::int32_t> kept;
    for (const std::int32_t id : ids) {
      if (tokenizer_.special_id(tokenizer_.decode({&id, 1})) != id) kept.push_back(id);
    }
    return to_valid_utf8(tokenizer_.decode(kept));
  }

  void run_sample(const Task& task, std::int64_t index, const std::vector<std::size_t>& pending) {
    const std::int64_t reply_tokens =
        options_.max_new_tokens > 0 ? options_.max_new_tokens : task.max_new_tokens();
    const std::int64_t limit = options_.context - reply_tokens;
    if (limit < 2) {
      throw Error(ErrorKind::kUsage,
                  task.name() + ": replies of " + std::to_string(reply_tokens) +
                      " tokens leave no room for a prompt in a context of " +
                      std::to_string(options_.context),
                  "use a longer --context, or --max-new-tokens");
    }
    const TaskSample sample = task.sample(index, [this](const Sample& s) {
      return std::ssize(build_prompt(s, codec_for(s), INT64_MAX).ids);
    });
    const Prompt prompt =
        build_prompt(sample.sample, codec_for(sample.sample), limit, options_.protocol);
    std::vector<std::int32_t> stops = tokenizer_.end_tokens();
    if (task.stops_at_newline() && newline_ >= 0) {
      stops.push_back(newline_);
      std::sort(stops.begin(), stops.end());
    }

    RunEntry common = new_entry(task, index, arms_.front());
    common.id = sample.sample.id;
    common.group = sample.group;
    common.prompt = identify(prompt.ids, prompt.untruncated, stops, sample.sample.chat);

    // Arms that prefill densely share one prefill: it is the same computation.
    std::vector<std::size_t> shared;
    for (const std::size_t a : pending) {
      if (!arms_[a].sparse_prefill()) shared.push_back(a);
    }
    const auto finish = [&](Session& session, std::size_t a, const std::vector<float>& first,
                            double prefill_seconds) {
      current_ = &attention_[a];
      RunEntry entry = common;
      entry.arm = arms_[a].label();
      const Stopwatch decode;
      Reply reply;
      reply.ids = generate(session, first, reply_tokens, stops, task.stops_at_newline());
      entry.decode_seconds = decode.seconds();
      entry.decode_steps = session.position() - std::ssize(prompt.ids);
      entry.prefill_seconds = prefill_seconds;
      reply.text = task.prediction(reply_text(reply.ids));
      reply.answers = sample.sample.answers;
      reply.classes = sample.sample.classes;
      reply.length = sample.length;
      reply.score = task.scorer()->score(reply.text, reply.answers, reply.classes);
      entry.reply = std::move(reply);
      take_usage(entry, attention_[a]);
      take_(std::move(entry));
    };
    const auto prefill = [&](Session& session, std::size_t a) {
      attention_[a].begin();
      current_ = &attention_[a];
      const Stopwatch watch;
      session.run(prompt.ids);
      return watch.seconds();
    };

    recorder_ = nullptr;
    Session& session = this->session(options_.context);
    if (!shared.empty()) {
      // The first one attends; the others only fill their caches.
      for (std::size_t i = 1; i < shared.size(); ++i) {
        attention_[shared[i]].begin();
        listeners_.push_back(&attention_[shared[i]]);
      }
      const double seconds = prefill(session, shared.front());
      listeners_.clear();
      const std::vector<float> first = session.last_logits();
      for (const std::size_t a : shared) {
        finish(session, a, first, seconds);
        session.rewind(std::ssize(prompt.ids));
      }
    }
    for (const std::size_t a : pending) {
      if (!arms_[a].sparse_prefill()) continue;
      session.rewind(0);
      const double seconds = prefill(session, a);
      finish(session, a, session.last_logits(), seconds);
    }
  }

  // Perplexity.

  void run_window(const Task& task, std::int64_t index, std::span<const std::int32_t> text,
                  const TextWindow& window, const std::vector<std::size_t>& pending) {
    const auto ids = text.subspan(static_cast<std::size_t>(window.begin),
                                  static_cast<std::size_t>(window.end - window.begin));
    const bool compares =
        options_.kl && std::any_of(pending.begin(), pending.end(), [](auto a) { return a != 0; });
    std::vector<std::size_t> todo = pending;
    // The dense distributions are the reference of every arm that is left.
    if (compares && todo.front() != 0) todo.insert(todo.begin(), 0);
    for (const std::size_t a : todo) {
      ResidualRecorder& recorder = a == 0 ? dense_ : sparse_;
      RunEntry entry = run_arm(task, index, ids, window, a, recorder);
      const bool wanted = std::find(pending.begin(), pending.end(), a) != pending.end();
      if (wanted) take_(std::move(entry));
    }
  }

  RunEntry run_arm(const Task& task, std::int64_t index, std::span<const std::int32_t> ids,
                   const TextWindow& window, std::size_t a, ResidualRecorder& recorder) {
    const Arm& arm = arms_[a];
    const std::int64_t tokens = std::ssize(ids);
    const std::int64_t steps =
        any_sparse_decode() ? std::min(options_.decode_tokens, tokens - 1) : std::int64_t{0};
    const std::int64_t prefill = tokens - steps;
    RunEntry entry = new_entry(task, index, arm);
    entry.id = std::to_string(window.begin) + ":" + std::to_string(window.end);
    entry.prompt = identify(ids, tokens, {}, false);
    recorder.begin(tokens, model_.config(), options_.kl);
    recorder_ = &recorder;
    attention_[a].begin();
    current_ = &attention_[a];
    Session& session = this->session(tokens);
    const Stopwatch prefill_watch;
    session.run(ids.first(static_cast<std::size_t>(prefill)));
    entry.prefill_seconds = prefill_watch.seconds();
    const Stopwatch decode_watch;
    for (std::int64_t t = prefill; t < tokens; ++t) {
      session.run(ids.subspan(static_cast<std::size_t>(t), 1));
    }
    entry.decode_seconds = decode_watch.seconds();
    entry.decode_steps = steps;
    recorder_ = nullptr;
    take_usage(entry, attention_[a]);

    WindowResult result;
    result.begin = window.begin;
    result.end = window.end;
    // Where only decode is sparse, only what follows from decode steps says something.
    const bool decode_only = any_sparse_decode() && !any_sparse_prefill();
    result.scored_from =
        std::max(window.scored_from, decode_only ? window.begin + prefill + 1 : window.begin + 1);
    score(ids, result, a, recorder);
    const auto finite = [](float x) { return std::isfinite(x); };
    if (!std::ranges::all_of(result.nll, finite) || !std::ranges::all_of(result.kl, finite)) {
      fail_not_finite(task.name() + ", tokens " + entry.id + ", " + arm.label());
    }
    entry.window = std::move(result);
    return entry;
  }

  bool any_sparse_decode() const {
    return std::any_of(arms_.begin(), arms_.end(), [](const Arm& a) { return a.sparse_decode(); });
  }
  bool any_sparse_prefill() const {
    return std::any_of(arms_.begin(), arms_.end(), [](const Arm& a) { return a.sparse_prefill(); });
  }

  /// Fills the arrays of `result`, a few rows of logits at a time.
  void score(std::span<const std::int32_t> ids, WindowResult& result, std::size_t arm,
             const ResidualRecorder& recorder) const {
    const std::int64_t vocabulary = model_.config().vocabulary;
    const std::int64_t first = result.scored_from - result.begin - 1;  // position of the logits
    const std::int64_t count = result.end - result.scored_from;
    const bool compare = options_.kl && arm != 0;
    result.nll.resize(static_cast<std::size_t>(count));
    if (compare) {
      result.kl.resize(static_cast<std::size_t>(count));
      result.delta_p.resize(static_cast<std::size_t>(count));
      result.same_top.resize(static_cast<std::size_t>(count));
      result.hidden_error = recorder.error_against(dense_);
    }
    const std::int64_t tile = std::min(kLogitRows, count);
    std::vector<float> logits(static_cast<std::size_t>(tile * vocabulary));
    std::vector<float> reference(compare ? logits.size() : 0);
    for (std::int64_t done = 0; done < count; done += tile) {
      const std::int64_t rows = std::min(tile, count - done);
      model_.logits(recorder.last(first + done), rows, logits.data());
      if (compare) model_.logits(dense_.last(first + done), rows, reference.data());
      parallel_for(rows, [&](std::int64_t r, int) {
        const auto at = static_cast<std::size_t>(done + r);
        const std::int32_t token = ids[static_cast<std::size_t>(first + done + r + 1)];
        const auto row = [&](const std::vector<float>& all) {
          return std::span<const float>(all).subspan(static_cast<std::size_t>(r * vocabulary),
                                                     static_cast<std::size_t>(vocabulary));
        };
        if (!compare) {
          result.nll[at] = static_cast<float>(negative_log_likelihood(row(logits), token));
          return;
        }
        const TokenComparison c = compare_logits(row(reference), row(logits), token);
        result.nll[at] = c.nll_sparse;
        result.kl[at] = c.kl;
        result.delta_p[at] = c.delta_p;
        result.same_top[at] = c.same_top ? 1 : 0;
      });
    }
  }

  const Model& model_;
  const Tokenizer& tokenizer_;
  std::span<const Task> tasks_;
  std::span<const Arm> arms_;
  const ModelRunOptions& options_;
  std::vector<ArmAttention> attention_;  // by arm
  std::vector<WindowedText> texts_;      // by task; empty but for perplexity
  std::vector<std::int64_t> samples_;    // by task
  std::int32_t newline_ = -1;
  std::function<void(RunEntry&&)> take_;
  std::function<void()> tick_;
  std::unique_ptr<Session> session_;
  std::int64_t capacity_ = 0;
  ArmAttention* current_ = nullptr;       // what the session's attention calls
  std::vector<ArmAttention*> listeners_;  // arms that share the prefill
  ResidualRecorder* recorder_ = nullptr;
  ResidualRecorder dense_;
  ResidualRecorder sparse_;
};

ModelEvaluation::ModelEvaluation(const Model& model, const Tokenizer& tokenizer,
                                 std::span<const Task> tasks, std::span<const Arm> arms,
                                 const Backend& backend, const ModelRunOptions& options)
    : state_(std::make_unique<State>(model, tokenizer, tasks, arms, backend, options)) {}
ModelEvaluation::~ModelEvaluation() = default;

const std::vector<std::int64_t>& ModelEvaluation::samples() const { return state_->samples(); }

void ModelEvaluation::run(std::size_t task, std::int64_t sample,
                          const std::vector<std::size_t>& pending,
                          const std::function<void(RunEntry&&)>& take,
                          const std::function<void()>& tick) {
  state_->run(task, sample, pending, take, tick);
}

std::vector<TextWindow> text_windows(std::int64_t tokens, std::int64_t context,
                                     std::int64_t stride) {
  if (stride < 1 || stride > context) {
    throw Error(ErrorKind::kUsage,
                "a stride of " + std::to_string(stride) + " does not suit windows of " +
                    std::to_string(context) + " tokens",
                "use a --stride from 1 to the context");
  }
  std::vector<TextWindow> windows;
  std::int64_t scored = 1;
  for (std::int64_t begin = 0; begin == 0 || begin + context <= tokens; begin += stride) {
    const std::int64_t end = std::min(tokens, begin + context);
    windows.push_back({begin, end, std::max(scored, begin + 1)});
    scored = end;
  }
  return windows;
}

void run_model(const Model& model, const Tokenizer& tokenizer, std::span<const Task> tasks,
               std::span<const Arm> arms, const Backend& backend, const ModelRunOptions& options,
               Journal& journal, bool quiet) {
  ModelEvaluation evaluation(model, tokenizer, tasks, arms, backend, options);
  std::set<std::tuple<std::string, std::int64_t, std::string>> finished;
  for (const nlohmann::json& json : journal.entries()) {
    if (is_report_mark(json)) continue;
    const RunEntry entry = run_entry_from_json(json);
    finished.emplace(entry.task, entry.sample, entry.arm);
  }
  const std::vector<std::int64_t>& samples = evaluation.samples();
  Progress progress(
      "running",
      std::accumulate(samples.begin(), samples.end(), std::int64_t{0}) * std::ssize(arms), quiet);
  progress.skip(std::ssize(finished));
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    for (std::int64_t i = 0; i < samples[t]; ++i) {
      std::vector<std::size_t> pending;
      for (std::size_t a = 0; a < arms.size(); ++a) {
        if (!finished.contains({tasks[t].name(), i, arms[a].label()})) pending.push_back(a);
      }
      if (pending.empty()) continue;
      const auto take = [&](RunEntry&& entry) {
        progress.advance(1, entry.task + " " + std::to_string(entry.sample) + ", " + entry.arm);
        journal.append(to_json(entry));
      };
      evaluation.run(t, i, pending, take, {});
    }
  }
}

}  // namespace sw
