#include "eval/model_summary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "metric/density.hpp"

namespace sw {
namespace {

double ratio(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

void summarize_density(ModelCell& cell) {
  const std::size_t layers = cell.entries.front()->usage.size();
  DensityCount sparse;
  DensityCount all;
  std::int64_t read = 0;
  std::int64_t context = 0;
  std::vector<DensityCount> per_layer(layers);
  for (const RunEntry* entry : cell.entries) {
    for (std::size_t l = 0; l < layers; ++l) {
      const LayerUsage& usage = entry->usage[l];
      per_layer[l] = add(per_layer[l], usage.pairs);
      all = add(all, usage.pairs);
      if (!usage.sparse) continue;
      sparse = add(sparse, usage.pairs);
      read += usage.kv_tokens_read;
      context += usage.kv_tokens_context;
    }
  }
  // The dense arm has no sparse layer; its density is that of all layers, 1.
  const DensityCount& counted = sparse.causal > 0 ? sparse : all;
  cell.density.sparse = counted.density();
  cell.density.all = all.density();
  for (std::size_t p = 0; p < counted.kept.size(); ++p) {
    cell.density.parts[p] = ratio(counted.kept[p], counted.causal);
  }
  if (context > 0) cell.density.decode = ratio(read, context);
  for (const DensityCount& count : per_layer) cell.density_per_layer.push_back(count.density());
}

void summarize_replies(ModelCell& cell) {
  std::vector<double> scores;
  std::map<std::string, std::vector<double>> groups;
  for (const RunEntry* entry : cell.entries) {
    scores.push_back(entry->reply->score);
    if (!entry->group.empty()) groups[entry->group].push_back(entry->reply->score);
  }
  cell.score = bootstrap_mean({&scores, 1});
  for (const auto& [group, values] : groups) {
    cell.groups.push_back({group, std::ssize(values), mean(values)});
  }
}

void summarize_windows(ModelCell& cell) {
  double loss = 0.0;
  std::int64_t tokens = 0;
  for (const RunEntry* entry : cell.entries) {
    loss += std::accumulate(entry->window->nll.begin(), entry->window->nll.end(), 0.0);
    tokens += std::ssize(entry->window->nll);
  }
  cell.perplexity = std::exp(loss / static_cast<double>(tokens));
}

/// A sample as an arm and the dense arm ran it.
struct Pair {
  const RunEntry* dense;
  const RunEntry* arm;
};

void compare_replies(ModelCell& cell, std::span<const Pair> pairs) {
  Divergence divergence;
  std::vector<double> tokens;
  for (const auto& [dense, arm] : pairs) {
    const auto& ours = arm->reply->ids;
    const auto& theirs = dense->reply->ids;
    ++divergence.replies;
    if (ours == theirs) {
      ++divergence.identical;
      continue;
    }
    const auto at = std::mismatch(ours.begin(), ours.end(), theirs.begin(), theirs.end()).first;
    tokens.push_back(static_cast<double>(at - ours.begin()));
  }
  if (!tokens.empty()) divergence.median_token = median(std::move(tokens));
  cell.divergence = divergence;
}

PairedTask paired_scores(const TaskInfo& task, std::span<const Pair> pairs) {
  PairedTask scores{task.name, task.binary, {}, {}};
  for (const auto& [dense, arm] : pairs) {
    for (const auto& [entry, to] : {std::pair(dense, &scores.dense), {arm, &scores.sparse}}) {
      const double score = entry->reply->score;
      to->push_back(score);
      scores.binary = scores.binary && (score == 0.0 || score == 1.0);
    }
  }
  return scores;
}

void compare_windows(ModelCell& cell, std::span<const Pair> pairs) {
  std::vector<TokenStream> streams;
  cell.has_kl = true;
  for (const auto& [dense, arm] : pairs) {
    const WindowResult& ours = *arm->window;
    streams.push_back({dense->window->nll, ours.nll, ours.kl, ours.delta_p, ours.same_top});
    cell.has_kl = cell.has_kl && !ours.kl.empty();
    if (ours.hidden_error.empty()) continue;
    cell.hidden_error.resize(ours.hidden_error.size(), 0.0);
    for (std::size_t l = 0; l < ours.hidden_error.size(); ++l) {
      cell.hidden_error[l] += ours.hidden_error[l] / static_cast<double>(pairs.size());
    }
  }
  cell.distribution = summarize_distribution(streams);
}

/// Refuses a pair whose prompts differ.
void check_pair(const Pair& pair, const std::string& arm) {
  const PromptIdentity& a = pair.arm->prompt;
  const PromptIdentity& b = pair.dense->prompt;
  const auto require = [&](bool same, const std::string& what) {
    if (same) return;
    throw Error(ErrorKind::kInput,
                pair.arm->task + ", sample " + std::to_string(pair.arm->sample) + ": '" + arm +
                    "' and dense had different " + what + ", so their results cannot be compared",
                "run both arms with the same model files, template, context and protocol");
  };
  require(a.ids_sha256 == b.ids_sha256, "prompt ids");
  require(a.bos_count == b.bos_count, "numbers of BOS tokens");
  require(a.stop_set == b.stop_set, "stop sets");
  require(a.chat_template == b.chat_template, "chat templates");
}

/// The samples that both arms finished, in order: a run that was stopped has a ragged end.
std::vector<Pair> common_samples(const ModelCell& dense, const ModelCell& cell,
                                 const std::string& arm) {
  std::vector<Pair> pairs;
  auto reference = dense.entries.begin();
  for (const RunEntry* entry : cell.entries) {
    while (reference != dense.entries.end() && (*reference)->sample < entry->sample) ++reference;
    if (reference == dense.entries.end()) break;
    if ((*reference)->sample != entry->sample) continue;
    pairs.push_back({*reference, entry});
    check_pair(pairs.back(), arm);
  }
  return pairs;
}

ModelCell collect(std::span<const RunEntry> entries, std::size_t task, std::size_t arm,
                  const TaskInfo& task_info, const ArmInfo& arm_info) {
  ModelCell cell;
  cell.task = task;
  cell.arm = arm;
  for (const RunEntry& entry : entries) {
    if (entry.task == task_info.name && entry.arm == arm_info.label) cell.entries.push_back(&entry);
  }
  std::sort(cell.entries.begin(), cell.entries.end(),
            [](const RunEntry* a, const RunEntry* b) { return a->sample < b->sample; });
  // A mean over the samples that happened to work would be of other samples than the others' means.
  for (const RunEntry* entry : cell.entries) {
    if (entry->failure.empty()) continue;
    cell.failure = "sample " + std::to_string(entry->sample) + ": " + entry->failure;
    cell.entries.clear();
    return cell;
  }
  cell.samples = std::ssize(cell.entries);
  for (const RunEntry* entry : cell.entries) {
    const RunEntry& first = *cell.entries.front();
    if (entry->reply.has_value() != first.reply.has_value() ||
        entry->usage.size() != first.usage.size()) {
      throw Error(ErrorKind::kInput,
                  entry->task + ": the samples " + std::to_string(first.sample) + " and " +
                      std::to_string(entry->sample) + " are not of one model and kind of task",
                  "delete the journal, or choose another -o");
    }
    if (entry->prompt.tokens < entry->prompt.untruncated) ++cell.truncated;
    cell.prefill_seconds.push_back(entry->prefill_seconds);
    if (entry->decode_steps > 0) {
      cell.decode_seconds_per_token.push_back(entry->decode_seconds /
                                              static_cast<double>(entry->decode_steps));
    }
  }
  return cell;
}

}  // namespace

ModelSummary summarize_model(std::span<const RunEntry> entries, std::span<const TaskInfo> tasks,
                             std::span<const ArmInfo> arms) {
  ModelSummary summary;
  std::vector<std::vector<PairedTask>> pairs(arms.size());  // by arm
  std::vector<std::vector<std::size_t>> cells_of(arms.size());
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const std::size_t dense = summary.cells.size();
    for (std::size_t a = 0; a < arms.size(); ++a) {
      ModelCell& cell = summary.cells.emplace_back(collect(entries, t, a, tasks[t], arms[a]));
      if (cell.samples == 0) continue;
      summarize_density(cell);
      const bool replies = cell.entries.front()->reply.has_value();
      replies ? summarize_replies(cell) : summarize_windows(cell);
      if (a == 0) continue;
      const auto common = common_samples(summary.cells[dense], cell, arms[a].label);
      if (common.empty()) continue;
      if (replies) {
        compare_replies(cell, common);
        pairs[a].push_back(paired_scores(tasks[t], common));
        cells_of[a].push_back(summary.cells.size() - 1);
      } else {
        compare_windows(cell, common);
      }
    }
  }
  for (std::size_t a = 0; a < arms.size(); ++a) {
    if (pairs[a].empty()) continue;
    const std::vector<PairedResult> results = compare_tasks(pairs[a], kTieMargin);
    for (std::size_t i = 0; i < results.size(); ++i) {
      summary.cells[cells_of[a][i]].paired = results[i];
    }
    summary.overall.push_back({a, compare_stratified(pairs[a], kTieMargin)});
  }
  return summary;
}

}  // namespace sw
