#include "eval/model_summary.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "metric/density.hpp"

namespace sw {
namespace {

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

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

void summarize_replies(ModelCell& cell, const ModelCell* dense) {
  std::vector<double> scores;
  std::map<std::string, std::vector<double>> groups;
  for (const RunEntry* entry : cell.entries) {
    scores.push_back(entry->reply->score);
    if (!entry->group.empty()) groups[entry->group].push_back(entry->reply->score);
  }
  const std::vector<double> all = scores;
  cell.score = bootstrap_mean({&all, 1});
  for (const auto& [group, values] : groups) {
    cell.groups.push_back({group, std::ssize(values), mean(values)});
  }
  if (dense == nullptr) return;
  Divergence divergence;
  std::vector<double> tokens;
  for (std::size_t i = 0; i < cell.entries.size(); ++i) {
    const auto& ours = cell.entries[i]->reply->ids;
    const auto& theirs = dense->entries[i]->reply->ids;
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

void summarize_windows(ModelCell& cell, const ModelCell* dense) {
  double loss = 0.0;
  std::int64_t tokens = 0;
  for (const RunEntry* entry : cell.entries) {
    loss += std::accumulate(entry->window->nll.begin(), entry->window->nll.end(), 0.0);
    tokens += std::ssize(entry->window->nll);
  }
  cell.perplexity = std::exp(loss / static_cast<double>(tokens));
  if (dense == nullptr) return;
  std::vector<TokenStream> streams;
  cell.has_kl = true;
  for (std::size_t i = 0; i < cell.entries.size(); ++i) {
    const WindowResult& ours = *cell.entries[i]->window;
    const WindowResult& theirs = *dense->entries[i]->window;
    streams.push_back({theirs.nll, ours.nll, ours.kl, ours.delta_p, ours.same_top});
    cell.has_kl = cell.has_kl && !ours.kl.empty();
    if (ours.hidden_error.empty()) continue;
    cell.hidden_error.resize(ours.hidden_error.size(), 0.0);
    for (std::size_t l = 0; l < ours.hidden_error.size(); ++l) {
      cell.hidden_error[l] += ours.hidden_error[l] / static_cast<double>(cell.entries.size());
    }
  }
  cell.distribution = summarize_distribution(streams);
}

/// The samples that both arms finished, in order; refuses pairs with different prompts.
void check_pairs(const ModelCell& dense, const ModelCell& cell, std::string_view task,
                 std::string_view arm) {
  const auto fail = [&](std::int64_t sample, const std::string& what) {
    throw Error(ErrorKind::kInput,
                std::string(task) + ", sample " + std::to_string(sample) + ": '" +
                    std::string(arm) + "' and dense had different " + what +
                    ", so their results cannot be compared",
                "run both arms with the same model files, template, context and protocol");
  };
  for (std::size_t i = 0; i < cell.entries.size(); ++i) {
    const RunEntry& a = *cell.entries[i];
    const RunEntry& b = *dense.entries[i];
    if (a.prompt.ids_sha256 != b.prompt.ids_sha256) fail(a.sample, "prompt ids");
    if (a.prompt.bos_count != b.prompt.bos_count) fail(a.sample, "numbers of BOS tokens");
    if (a.prompt.stop_set != b.prompt.stop_set) fail(a.sample, "stop sets");
    if (a.prompt.chat_template != b.prompt.chat_template) fail(a.sample, "chat templates");
  }
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
  cell.samples = std::ssize(cell.entries);
  for (const RunEntry* entry : cell.entries) {
    if (entry->prompt.tokens < entry->prompt.untruncated) ++cell.truncated;
    cell.prefill_seconds.push_back(entry->prefill_seconds);
    if (entry->decode_steps > 0) {
      cell.decode_seconds_per_token.push_back(entry->decode_seconds /
                                              static_cast<double>(entry->decode_steps));
    }
  }
  return cell;
}

/// Keeps the samples that both arms finished: a run that was stopped has a ragged end.
void keep_common(ModelCell& dense, ModelCell& cell) {
  const auto has = [](const ModelCell& c, std::int64_t sample) {
    return std::any_of(c.entries.begin(), c.entries.end(),
                       [&](const RunEntry* e) { return e->sample == sample; });
  };
  std::erase_if(cell.entries, [&](const RunEntry* e) { return !has(dense, e->sample); });
  std::erase_if(dense.entries, [&](const RunEntry* e) { return !has(cell, e->sample); });
}

}  // namespace

ModelSummary summarize_model(std::span<const RunEntry> entries, std::span<const TaskInfo> tasks,
                             std::span<const ArmInfo> arms) {
  ModelSummary summary;
  std::vector<std::vector<PairedTask>> pairs(arms.size());  // by arm
  std::vector<std::vector<std::size_t>> cells_of(arms.size());
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    std::optional<ModelCell> dense;
    for (std::size_t a = 0; a < arms.size(); ++a) {
      ModelCell cell = collect(entries, t, a, tasks[t], arms[a]);
      if (cell.samples > 0) {
        const bool reference = a == 0;
        ModelCell common = cell;
        std::optional<ModelCell> against;
        if (!reference && dense) {
          against = *dense;
          keep_common(*against, common);
          check_pairs(*against, common, tasks[t].name, arms[a].label);
        }
        summarize_density(cell);
        const bool comparable = against && !common.entries.empty();
        if (cell.entries.front()->reply) {
          summarize_replies(cell, nullptr);
          if (comparable) {
            summarize_replies(common, &*against);
            cell.divergence = common.divergence;
            PairedTask pair{tasks[t].name, tasks[t].binary, {}, {}};
            for (std::size_t i = 0; i < common.entries.size(); ++i) {
              pair.dense.push_back(against->entries[i]->reply->score);
              pair.sparse.push_back(common.entries[i]->reply->score);
            }
            const auto right_or_wrong = [](double x) { return x == 0.0 || x == 1.0; };
            pair.binary = pair.binary && std::ranges::all_of(pair.dense, right_or_wrong) &&
                          std::ranges::all_of(pair.sparse, right_or_wrong);
            pairs[a].push_back(std::move(pair));
            cells_of[a].push_back(summary.cells.size());
          }
        } else {
          summarize_windows(cell, nullptr);
          if (comparable) {
            summarize_windows(common, &*against);
            cell.distribution = common.distribution;
            cell.has_kl = common.has_kl;
            cell.hidden_error = common.hidden_error;
          }
        }
        if (reference) dense = cell;
      }
      summary.cells.push_back(std::move(cell));
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
