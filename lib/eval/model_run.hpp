#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "dataset/prompt.hpp"
#include "dataset/task.hpp"
#include "eval/arm.hpp"
#include "eval/journal.hpp"
#include "eval/run_entry.hpp"
#include "model/chat_template.hpp"
#include "model/tokenizer.hpp"
#include "model/transformer.hpp"

/// The evaluation loop of full models: every task, sample and arm, with one set of weights and one
/// session. What is finished stands in the journal before the next begins, so that a run that was
/// stopped goes on where it was.
namespace sw {

struct ModelRunOptions {
  std::int64_t context = 0;        ///< tokens of prompt and reply together, or of a window
  std::int64_t block = 64;         ///< tokens of a block
  std::int64_t limit = INT64_MAX;  ///< samples of a task, or windows of a text; the first ones
  PromptProtocol protocol = PromptProtocol::kLongBench;
  std::optional<ChatTemplate> chat;  ///< none: prompts go in as plain text
  std::int64_t max_new_tokens = 0;   ///< 0: as the task says
  bool kl = false;                   ///< perplexity: compare with the dense distributions too
  std::int64_t stride = 0;           ///< tokens between windows; 0: the context (chunked)
  /// Last tokens of a window that are run one at a time where decode is sparse.
  std::int64_t decode_tokens = 128;
};

/// Samples or windows of each task that a run takes. Throws Error(kUsage) for options out of range,
/// Error(kInput) for a text of fewer than two tokens.
std::vector<std::int64_t> count_samples(const Tokenizer& tokenizer, std::span<const Task> tasks,
                                        const ModelRunOptions& options);

/// A model evaluation, a sample at a time. arms[0] is the dense arm, the reference of all others.
class ModelEvaluation {
 public:
  /// What is given has to outlive the evaluation. Throws Error(kUsage) for options out of range (a
  /// context longer than the model's among them).
  ModelEvaluation(const Model& model, const Tokenizer& tokenizer, std::span<const Task> tasks,
                  std::span<const Arm> arms, const Backend& backend,
                  const ModelRunOptions& options);
  ~ModelEvaluation();

  /// Samples or windows of each task.
  const std::vector<std::int64_t>& samples() const;

  /// Runs the arms `pending` (indices, ascending) of one sample and gives each to `take` as soon as
  /// it is finished. `tick`, which may be empty, is called at every layer and may throw anything to
  /// give up; the evaluation cannot be used any more then. Throws Error(kInput) for a broken
  /// record, and what backends throw.
  void run(std::size_t task, std::int64_t sample, const std::vector<std::size_t>& pending,
           const std::function<void(RunEntry&&)>& take, const std::function<void()>& tick);

 private:
  class State;
  std::unique_ptr<State> state_;
};

/// Runs what the journal does not hold yet. A sample that cannot be run stops the run with its
/// Error: nothing is lost, and the same command goes on from there. The other errors are those of
/// ModelEvaluation and of the journal.
void run_model(const Model& model, const Tokenizer& tokenizer, std::span<const Task> tasks,
               std::span<const Arm> arms, const Backend& backend, const ModelRunOptions& options,
               Journal& journal, bool quiet);

/// Windows of a text: chunked (stride = context) or sliding. Each token but the first is scored
/// once, in the first window that holds it.
struct TextWindow {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t scored_from = 0;
};
/// Windows of at least two tokens over `tokens` tokens; a last one shorter than the context is left
/// out unless it is the only one. Throws Error(kUsage) unless 1 <= stride <= context.
std::vector<TextWindow> text_windows(std::int64_t tokens, std::int64_t context,
                                     std::int64_t stride);

}  // namespace sw
