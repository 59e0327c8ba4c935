#include "eval/model_sweep.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace sw {
namespace {

/// Relative time of a prompt: products grow with its tokens, attention with their square.
double prompt_cost(double tokens) {
  constexpr double kAttentionCatchesUp = 16384.0;
  return tokens * (1.0 + tokens / kAttentionCatchesUp);
}

/// Tokens of a sample, judged by its text: tokenizing all of a benchmark to plan it takes too long.
double estimated_tokens(const Task& task, std::int64_t sample, const ModelRunOptions& options) {
  constexpr double kBytesPerToken = 4.0;
  const auto context = static_cast<double>(options.context);
  if (task.kind() == TaskKind::kPerplexity) return context;
  const auto bytes = static_cast<double>(task.sample(sample, count_words).sample.prompt.size());
  return std::clamp(bytes / kBytesPerToken, 1.0, context);
}

}  // namespace

ModelSweep::ModelSweep(std::function<std::unique_ptr<const Model>()> load,
                       const Tokenizer& tokenizer, std::span<const Task> tasks,
                       std::span<const Arm> arms, const Backend& backend,
                       const ModelRunOptions& options)
    : load_(std::move(load)),
      tokenizer_(tokenizer),
      tasks_(tasks),
      arms_(arms),
      backend_(backend),
      options_(options),
      samples_(count_samples(tokenizer, tasks, options)) {
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    first_unit_.push_back(units_.size());
    const bool text = tasks[t].kind() == TaskKind::kPerplexity;
    for (std::int64_t i = 0; i < samples_[t]; ++i) {
      units_.push_back(
          {(text ? "window " : "sample ") + std::to_string(i) + " of " + tasks[t].name(),
           prompt_cost(estimated_tokens(tasks[t], i, options)) * static_cast<double>(arms.size())});
      places_.push_back({t, i});
    }
  }
  done_.resize(units_.size());
  seconds_.resize(units_.size());
}

void ModelSweep::note(const nlohmann::json& json) {
  if (!json.contains("task")) return;
  const RunEntry entry = run_entry_from_json(json);
  const auto task = std::find_if(tasks_.begin(), tasks_.end(),
                                 [&](const Task& t) { return t.name() == entry.task; });
  const auto arm = std::find_if(arms_.begin(), arms_.end(),
                                [&](const Arm& a) { return a.label() == entry.arm; });
  const auto t = static_cast<std::size_t>(task - tasks_.begin());
  if (task == tasks_.end() || arm == arms_.end() || entry.sample < 0 ||
      entry.sample >= samples_[t]) {
    throw Error(ErrorKind::kInput,
                "the journal holds sample " + std::to_string(entry.sample) + " of " + entry.task +
                    " by " + entry.arm + ", which this sweep has not",
                "delete the journal, or choose another -o");
  }
  const std::size_t unit = first_unit_[t] + static_cast<std::size_t>(entry.sample);
  done_[unit].insert(static_cast<std::size_t>(arm - arms_.begin()));
  seconds_[unit] += entry.prefill_seconds + entry.decode_seconds;
}

std::vector<std::size_t> ModelSweep::pending(std::size_t unit) const {
  std::vector<std::size_t> arms;
  for (std::size_t a = 0; a < arms_.size(); ++a) {
    if (!done_[unit].contains(a)) arms.push_back(a);
  }
  return arms;
}

void ModelSweep::run(std::size_t unit, const Append& append, const Advance& advance) {
  if (evaluation_ == nullptr) {
    model_ = load_();
    evaluation_ =
        std::make_unique<ModelEvaluation>(*model_, tokenizer_, tasks_, arms_, backend_, options_);
  }
  const Place& place = places_[unit];
  const double share = 1.0 / static_cast<double>(arms_.size());
  const auto attempt = [&](const std::vector<std::size_t>& arms) {
    evaluation_->run(
        place.task, place.sample, arms,
        [&](RunEntry&& entry) {
          const std::string where = units_[unit].name + ", " + entry.arm;
          append(to_json(entry));
          advance(share, where);
        },
        [&] { advance(0.0, units_[unit].name); });
  };
  try {
    return attempt(pending(unit));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kOutput) throw;
  }
  // One of them cannot be run: one at a time, so that the others are.
  for (std::size_t a : pending(unit)) {
    try {
      attempt({a});
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kOutput) throw;
      RunEntry entry;
      entry.task = tasks_[place.task].name();
      entry.sample = place.sample;
      entry.arm = arms_[a].label();
      entry.failure = error.what();
      if (!error.hint().empty()) entry.failure += " (" + error.hint() + ")";
      append(to_json(entry));
      advance(share, units_[unit].name + ", " + entry.arm);
    }
  }
}

}  // namespace sw
