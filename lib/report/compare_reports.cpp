#include "report/compare_reports.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "core/text.hpp"
#include "eval/distribution.hpp"
#include "eval/model_summary.hpp"
#include "eval/paired.hpp"
#include "eval/statistics.hpp"
#include "report/columns.hpp"
#include "report/report_arrays.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

struct ComparedMetric {
  const char* name;
  const char* path;   ///< in the cell
  double scale;       ///< from the report's unit to the one shown
  int better;         ///< 1: more is better, -1: less is better, 0: neither
  bool main;          ///< shown without being asked for
  const char* array;  ///< of traces: dataset with [layer, head, column] to pair, or nullptr
};

const std::vector<ComparedMetric>& compared_metrics(ReportKind kind) {
  static const std::vector<ComparedMetric> kTraceMetrics = {
      {"mass_recall", "metrics.mass_recall.mean", 1, 1, true, "mass_recall"},
      {"output_error", "metrics.output_error.mean", 1, -1, true, "output_error"},
      {"oracle_gap", "metrics.oracle_gap.mean", 1, -1, false, "oracle_gap"},
      {"topk_recall", "metrics.topk_recall.mean", 1, 1, false, "topk_recall"},
      {"cosine", "metrics.cosine.mean", 1, 1, false, "cosine"},
      {"answer_recall", "metrics.answer_recall.mean", 1, 1, false, nullptr},
      {"density_sparse", "realised_density.sparse", 1, 0, false, nullptr},
      {"density_decode", "realised_density.decode", 1, 0, false, nullptr},
      {"selection_ms", "latency.selection.median", 1e3, -1, false, nullptr},
      {"attention_ms", "latency.attention.median", 1e3, -1, false, nullptr},
      {"speed_ratio", "latency.speed_ratio", 1, 1, false, nullptr}};
  static const std::vector<ComparedMetric> kModelMetrics = {
      {"score", "score.mean", 100, 1, true, nullptr},
      {"ln_perplexity", "perplexity", 1, -1, true, nullptr},
      {"mean_kl", "versus_dense.kl.mean.mean", 1, -1, true, nullptr},
      {"same_top", "versus_dense.kl.same_top_1.mean", 1, 1, false, nullptr},
      {"density_sparse", "realised_density.sparse", 1, 0, false, nullptr},
      {"density_decode", "realised_density.decode", 1, 0, false, nullptr},
      {"prefill_ms", "latency.prefill.median", 1e3, -1, false, nullptr},
      {"decode_token_ms", "latency.decode_token.median", 1e3, -1, false, nullptr}};
  static const std::vector<ComparedMetric> kProfileMetrics = {
      {"time_ms", "time.median", 1e3, -1, true, nullptr},
      {"of_product", "of_product", 1, 1, false, nullptr},
      {"of_copy", "of_copy", 1, 1, false, nullptr}};
  static const std::vector<ComparedMetric> kScoreMetrics = {
      {"score", "score", 1, 1, true, nullptr}};
  switch (kind) {
    case ReportKind::kTrace:
      return kTraceMetrics;
    case ReportKind::kModel:
      return kModelMetrics;
    case ReportKind::kProfile:
      return kProfileMetrics;
    default:
      return kScoreMetrics;
  }
}

std::string label(const ReportCell& cell) {
  std::string text = cell.method;
  const auto add = [&](const std::string& part) {
    if (!part.empty()) text += (text.empty() ? "" : ", ") + part;
  };
  if (cell.density) add("density " + format_double(*cell.density));
  add(cell.phase);
  add(cell.variant);
  add(cell.input);
  return text;
}

std::string scope_key(const ReportCell& cell) {
  return cell.method + '\n' + (cell.density ? format_double(*cell.density) : "") + '\n' +
         cell.phase + '\n' + cell.variant;
}

/// What two inputs have in common: nothing, the name, or the tokens.
enum class Likeness { kNone, kName, kContent };

class Inputs {
 public:
  Inputs(const ReportFile& a, const ReportFile& b) : a_(a), b_(b) {}

  Likeness compare(const ReportCell& a, const ReportCell& b) const {
    const bool same_name = a.input == b.input;
    if (!a.input_json || !b.input_json) return same_name ? Likeness::kContent : Likeness::kNone;
    for (const char* key : {"sha256", "prompt_ids_sha256"}) {
      const auto x = a_.text(*a.input_json, key);
      if (x && x == b_.text(*b.input_json, key)) return Likeness::kContent;
    }
    return same_name ? Likeness::kName : Likeness::kNone;
  }

 private:
  const ReportFile& a_;
  const ReportFile& b_;
};

/// Verdict of a paired difference whose interval is known.
std::string verdict_of(const Interval& difference, int better) {
  if (!difference.low || !difference.high) return "underpowered";
  if (*difference.low <= 0 && *difference.high >= 0) return "tied";
  return (difference.mean > 0) == (better > 0) ? "better" : "worse";
}

void set_interval(MetricChange& change, const Interval& difference, int better) {
  change.low = difference.low;
  change.high = difference.high;
  if (better != 0) change.verdict = verdict_of(difference, better);
}

/// Difference of the medians of independent runs, with the interval of its bootstrap.
Interval difference_of_medians(const std::vector<double>& a, const std::vector<double>& b) {
  Interval interval;
  interval.mean = median(b) - median(a);
  constexpr std::size_t kFewestRuns = 5;
  if (std::min(a.size(), b.size()) < kFewestRuns) return interval;
  SplitMix64 rng(kBootstrapSeed);
  const auto resample = [&](const std::vector<double>& values) {
    std::vector<double> drawn(values.size());
    for (double& x : drawn) x = values[rng.below(values.size())];
    return median(std::move(drawn));
  };
  std::vector<double> medians(static_cast<std::size_t>(kBootstrapResamples));
  for (double& difference : medians) difference = resample(b) - resample(a);
  set_percentile_interval(interval, medians);
  return interval;
}

class Comparer {
 public:
  Comparer(const ReportFile& a, const ReportFile& b) : a_(a), b_(b), inputs_(a, b) {
    if (a.arrays_path() && b.arrays_path()) {
      arrays_a_.emplace(a);
      arrays_b_.emplace(b);
    }
  }

  CellChange compare(const ReportCell& a, const ReportCell& b) const {
    CellChange change{&a, &b, {}, ""};
    for (const ComparedMetric& metric : compared_metrics(a_.kind())) {
      const auto x = a_.number(*a.json, metric.path);
      const auto y = b_.number(*b.json, metric.path);
      if (!x || !y) continue;
      const bool logarithm = metric.name == std::string("ln_perplexity");
      if (logarithm && !(*x > 0 && *y > 0)) continue;
      MetricChange& m = change.metrics.emplace_back();
      m.metric = metric.name;
      m.main = metric.main;
      m.a = logarithm ? std::log(*x) : metric.scale * *x;
      m.b = logarithm ? std::log(*y) : metric.scale * *y;
    }
    switch (a_.kind()) {
      case ReportKind::kTrace:
        pair_columns(change);
        break;
      case ReportKind::kModel:
        pair_tokens(change);
        break;
      case ReportKind::kProfile:
        pair_runs(change);
        break;
      default:
        break;
    }
    return change;
  }

  /// Verdicts of replies, corrected over the tasks of each method and density.
  void pair_samples(std::vector<CellChange>& cells) const {
    std::map<std::string, std::vector<std::size_t>> families;
    std::map<std::size_t, PairedTask> tasks;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      auto task = paired_task(cells[i]);
      if (!task) continue;
      families[scope_key(*cells[i].a)].push_back(i);
      tasks.emplace(i, std::move(*task));
    }
    for (const auto& family : families) {
      std::vector<PairedTask> list;
      for (std::size_t i : family.second) list.push_back(tasks.at(i));
      const auto results = compare_tasks(list, kTieMargin);
      for (std::size_t k = 0; k < results.size(); ++k) {
        const PairedResult& result = results[k];
        MetricChange& m = *find(cells[family.second[k]], "score");
        if (result.difference.low) m.low = 100 * *result.difference.low;
        if (result.difference.high) m.high = 100 * *result.difference.high;
        m.p_value = result.p_holm;
        m.verdict = verdict_name(result.verdict);
      }
    }
  }

 private:
  static MetricChange* find(CellChange& change, std::string_view metric) {
    const auto it = std::ranges::find(change.metrics, metric, &MetricChange::metric);
    return it == change.metrics.end() ? nullptr : &*it;
  }

  /// Means over sparse layers and heads of each query block or step; empty when it is not there.
  static std::vector<double> columns(const ReportFile& report, const ReportArrays& arrays,
                                     const ReportCell& cell, const char* name) {
    const auto array = arrays.read(cell, name);
    const nlohmann::json* sparse = report.find(*cell.json, "sparse");
    if (!array || !sparse || !sparse->is_array() || array->shape.size() != 3 ||
        array->shape[0] != std::ssize(*sparse) || array->values.empty()) {
      return {};
    }
    const auto heads = static_cast<std::size_t>(array->shape[1]);
    const auto width = static_cast<std::size_t>(array->shape[2]);
    std::vector<double> sums(width, 0.0);
    std::size_t rows = 0;
    for (std::size_t layer = 0; layer < sparse->size(); ++layer) {
      if ((*sparse)[layer] != true) continue;
      rows += heads;
      for (std::size_t i = 0; i < heads * width; ++i) {
        sums[i % width] += array->values[layer * heads * width + i];
      }
    }
    if (rows == 0) return {};
    for (double& x : sums) x /= static_cast<double>(rows);
    const bool finite = std::ranges::all_of(sums, [](double x) { return std::isfinite(x); });
    return finite ? sums : std::vector<double>();
  }

  void pair_columns(CellChange& change) const {
    if (inputs_.compare(*change.a, *change.b) != Likeness::kContent) {
      change.unpaired = "the traces differ";
    } else if (!arrays_a_) {
      change.unpaired = "the HDF5 file of one report is missing";
    }
    if (!change.unpaired.empty()) return;
    for (const ComparedMetric& metric : compared_metrics(ReportKind::kTrace)) {
      MetricChange* m = metric.array ? find(change, metric.name) : nullptr;
      if (!m) continue;
      const auto x = columns(a_, *arrays_a_, *change.a, metric.array);
      const auto y = columns(b_, *arrays_b_, *change.b, metric.array);
      if (x.empty() || x.size() != y.size()) continue;
      std::vector<std::vector<double>> difference(1, std::vector<double>(x.size()));
      std::ranges::transform(y, x, difference[0].begin(), std::minus<>());
      set_interval(*m, bootstrap_mean(difference), metric.better);
    }
  }

  /// Hashes of the prompts of the windows of a text, in order.
  static std::vector<std::string> window_hashes(const ReportFile& report, const ReportCell& cell) {
    std::vector<std::string> hashes;
    if (const nlohmann::json* windows = report.find(*cell.json, "windows")) {
      for (const auto& window : *windows) {
        hashes.push_back(report.text(window, "prompt_ids_sha256").value_or(""));
      }
    }
    return hashes;
  }

  /// The losses of all scored tokens of a text, a window each.
  static std::vector<std::vector<float>> losses(const ReportArrays& arrays,
                                                const ReportCell& cell) {
    const auto nll = arrays.read(cell, "nll");
    const auto begin = arrays.read(cell, "window_ptr");
    std::vector<std::vector<float>> windows;
    if (!nll || !begin) return windows;
    for (std::size_t w = 0; w + 1 < begin->values.size(); ++w) {
      const double from = begin->values[w];
      const double to = begin->values[w + 1];
      if (!(0 <= from && from < to && to <= static_cast<double>(nll->values.size()))) return {};
      windows.emplace_back(nll->values.begin() + static_cast<std::ptrdiff_t>(from),
                           nll->values.begin() + static_cast<std::ptrdiff_t>(to));
    }
    return windows;
  }

  void pair_tokens(CellChange& change) const {
    MetricChange* m = find(change, "ln_perplexity");
    if (!m) return;
    const auto hashes = window_hashes(a_, *change.a);
    if (hashes.empty() || hashes != window_hashes(b_, *change.b)) {
      change.unpaired = "the texts differ";
    } else if (!arrays_a_) {
      change.unpaired = "the HDF5 file of one report is missing";
    }
    if (!change.unpaired.empty()) return;
    const auto x = losses(*arrays_a_, *change.a);
    const auto y = losses(*arrays_b_, *change.b);
    std::vector<TokenStream> streams;
    for (std::size_t w = 0; w < std::min(x.size(), y.size()); ++w) {
      if (x[w].size() != y[w].size()) break;
      TokenStream& stream = streams.emplace_back();
      stream.nll_dense = x[w];
      stream.nll_sparse = y[w];
    }
    const auto finite = [](const std::vector<float>& values) {
      return std::ranges::all_of(values, [](float v) { return std::isfinite(v); });
    };
    if (streams.empty() || streams.size() != x.size() || x.size() != y.size() ||
        !std::ranges::all_of(x, finite) || !std::ranges::all_of(y, finite)) {
      change.unpaired = "the losses of the tokens do not match";
      return;
    }
    set_interval(*m, summarize_distribution(streams).ln_ratio_interval, -1);
  }

  void pair_runs(CellChange& change) const {
    MetricChange* m = find(change, "time_ms");
    if (!m) return;
    const auto x = a_.numbers(*change.a->json, "seconds");
    const auto y = b_.numbers(*change.b->json, "seconds");
    if (x.empty() || y.empty()) return;
    Interval difference = difference_of_medians(x, y);
    if (difference.low) difference.low = 1e3 * *difference.low;
    if (difference.high) difference.high = 1e3 * *difference.high;
    set_interval(*m, difference, -1);
  }

  /// The samples that both cells have, when their prompts are the same.
  std::optional<PairedTask> paired_task(CellChange& change) const {
    if (!find(change, "score")) return std::nullopt;
    PairedTask task;
    task.task = change.a->input;
    if (a_.kind() == ReportKind::kScore) {
      task.dense = a_.numbers(*change.a->json, "scores");
      task.sparse = b_.numbers(*change.b->json, "scores");
      if (task.dense.size() != task.sparse.size()) change.unpaired = "the samples differ";
    } else {
      struct Reply {
        std::string prompt;
        double score = 0.0;
      };
      const auto replies = [](const ReportFile& report, const ReportCell& cell) {
        std::map<double, Reply> by_sample;
        const nlohmann::json* list = report.find(*cell.json, "replies");
        if (!list) return by_sample;
        for (const auto& reply : *list) {
          const auto sample = report.number(reply, "sample");
          const auto score = report.number(reply, "score");
          if (sample && score) {
            by_sample[*sample] = {report.text(reply, "prompt_ids_sha256").value_or(""), *score};
          }
        }
        return by_sample;
      };
      const auto x = replies(a_, *change.a);
      const auto y = replies(b_, *change.b);
      for (const auto& [sample, reply] : x) {
        const auto other = y.find(sample);
        if (other == y.end() || other->second.prompt != reply.prompt) continue;
        task.dense.push_back(reply.score);
        task.sparse.push_back(other->second.score);
      }
      if (task.dense.size() != x.size() || x.size() != y.size()) {
        change.unpaired = "the prompts differ";
      }
    }
    if (task.dense.empty() || !change.unpaired.empty()) return std::nullopt;
    const auto zero_or_one = [](double x) { return x == 0.0 || x == 1.0; };
    const auto finite = [](double x) { return std::isfinite(x); };
    if (!std::ranges::all_of(task.dense, finite) || !std::ranges::all_of(task.sparse, finite)) {
      change.unpaired = "scores are missing";
      return std::nullopt;
    }
    task.binary = std::ranges::all_of(task.dense, zero_or_one) &&
                  std::ranges::all_of(task.sparse, zero_or_one);
    return task;
  }

  const ReportFile& a_;
  const ReportFile& b_;
  Inputs inputs_;
  std::optional<ReportArrays> arrays_a_;
  std::optional<ReportArrays> arrays_b_;
};

/// Scalars of one object of both reports that differ. `what` begins their names.
void add_differences(const ReportFile& a, const ReportFile& b, const std::string& key,
                     std::vector<Difference>& list) {
  std::map<std::string, std::pair<std::string, std::string>> values;
  const auto collect = [&](const ReportFile& report, auto member) {
    const nlohmann::json* object = report.find(report.json(), key);
    if (!object) return;
    for (const ReportScalar& scalar : scalars(*object)) values[scalar.path].*member = scalar.text;
  };
  collect(a, &std::pair<std::string, std::string>::first);
  collect(b, &std::pair<std::string, std::string>::second);
  for (const auto& [path, both] : values) {
    if (both.first != both.second) list.push_back({key + "." + path, both.first, both.second});
  }
}

/// Inputs of the same name or role whose content differs.
void add_input_differences(const ReportFile& a, const ReportFile& b,
                           std::vector<Difference>& list) {
  const auto hashes = [](const ReportFile& report) {
    std::map<std::string, std::string> map;
    const nlohmann::json* inputs = report.find(report.json(), "inputs");
    if (!inputs || !inputs->is_array()) return map;
    for (const auto& input : *inputs) {
      const auto role = report.text(input, "role");
      std::string name = report.text(input, "path").value_or("");
      name = role ? *role : name.substr(name.find_last_of('/') + 1);
      map[name] = report.text(input, "sha256").value_or("");
    }
    return map;
  };
  const auto x = hashes(a);
  const auto y = hashes(b);
  for (const auto& [name, hash] : x) {
    const auto other = y.find(name);
    if (other != y.end() && other->second != hash) {
      list.push_back({"input " + name, hash.substr(0, 12), other->second.substr(0, 12)});
    }
  }
}

std::string number_text(double value) {
  const double size = std::abs(value);
  if (value == 0) return "0";
  if (size >= 1000 || size < 1e-4) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
  }
  return fixed(value, size >= 10 ? 2 : 4);
}

std::string signed_text(double value) { return (value > 0 ? "+" : "") + number_text(value); }

Json optional_number(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json cell_json(const ReportCell& cell) {
  return {{"method", cell.method},   {"density", optional_number(cell.density)},
          {"input", cell.input},     {"phase", cell.phase},
          {"variant", cell.variant}, {"status", cell.status}};
}

}  // namespace

CellMatch match_cells(const ReportFile& a, const ReportFile& b) {
  const Inputs inputs(a, b);
  std::map<std::string, std::vector<const ReportCell*>> candidates;
  for (const ReportCell& cell : b.cells()) candidates[scope_key(cell)].push_back(&cell);
  std::map<const ReportCell*, const ReportCell*> partner;
  std::set<const ReportCell*> taken;
  for (Likeness wanted : {Likeness::kContent, Likeness::kName}) {
    for (const ReportCell& cell : a.cells()) {
      if (partner.contains(&cell)) continue;
      for (const ReportCell* other : candidates[scope_key(cell)]) {
        if (taken.contains(other) || inputs.compare(cell, *other) != wanted) continue;
        partner[&cell] = other;
        taken.insert(other);
        break;
      }
    }
  }
  CellMatch match;
  for (const ReportCell& cell : a.cells()) {
    const auto it = partner.find(&cell);
    if (it == partner.end()) {
      match.only_a.push_back(&cell);
    } else {
      match.pairs.emplace_back(&cell, it->second);
    }
  }
  for (const ReportCell& cell : b.cells()) {
    if (!taken.contains(&cell)) match.only_b.push_back(&cell);
  }
  return match;
}

ReportComparison compare_reports(const ReportFile& a, const ReportFile& b) {
  if (a.kind() != b.kind()) {
    throw Error(ErrorKind::kInput,
                "'" + a.path() + "' is a " + report_kind_name(a.kind()) + " report and '" +
                    b.path() + "' a " + report_kind_name(b.kind()) + " report",
                "compare two reports of the same command");
  }
  const CellMatch match = match_cells(a, b);
  if (match.pairs.empty()) {
    throw Error(ErrorKind::kInput,
                "'" + a.path() + "' and '" + b.path() + "' have no cell in common",
                "cells match when method, density, phase and input are the same");
  }
  ReportComparison comparison;
  comparison.only_a = match.only_a;
  comparison.only_b = match.only_b;
  const Comparer comparer(a, b);
  for (const auto& [x, y] : match.pairs) comparison.cells.push_back(comparer.compare(*x, *y));
  comparer.pair_samples(comparison.cells);
  add_differences(a, b, "environment", comparison.differences);
  add_differences(a, b, "protocol", comparison.differences);
  add_input_differences(a, b, comparison.differences);
  return comparison;
}

std::vector<std::string> comparison_gate_metrics(ReportKind kind) {
  std::vector<std::string> names = {"worse"};
  for (const ComparedMetric& metric : compared_metrics(kind)) {
    names.push_back(metric.name);
    names.push_back(std::string("ratio:") + metric.name);
  }
  return names;
}

std::vector<std::string> unmet(const Gate& gate, const ReportComparison& comparison) {
  std::vector<std::string> lines;
  bool any = false;
  const bool ratio = gate.metric.starts_with("ratio:");
  const std::string name = ratio ? gate.metric.substr(6) : gate.metric;
  for (const CellChange& cell : comparison.cells) {
    if (!gate.concerns(cell.a->method, cell.a->name, cell.a->density)) continue;
    // A cell that had values and has none any more does not pass in silence.
    if (cell.a->status == "ok" && cell.b->status != "ok") {
      any = true;
      lines.push_back(label(*cell.b) + ": " + cell.b->status + ", " + cell.b->reason);
    } else if (name == "worse") {
      any = true;
      std::string worse;
      for (const MetricChange& m : cell.metrics) {
        if (m.verdict == "worse") worse += (worse.empty() ? "" : ", ") + m.metric;
      }
      if (gate.holds(worse.empty() ? 0 : 1)) {
        lines.push_back(label(*cell.b) + ": " + (worse.empty() ? "nothing" : worse) + " is worse");
      }
    } else {
      const auto m = std::ranges::find(cell.metrics, name, &MetricChange::metric);
      if (m == cell.metrics.end()) continue;
      any = true;
      const double value = ratio ? m->b / m->a : m->b - m->a;
      // 0 / 0 is no change that a gate could speak of.
      if (ratio && m->a == 0 && m->b == 0) continue;
      if (gate.holds(value)) {
        lines.push_back(label(*cell.b) + ": " + gate.metric + " is " + number_text(value) +
                        " (from " + number_text(m->a) + " to " + number_text(m->b) + ")");
      }
    }
  }
  for (const ReportCell* cell : comparison.only_a) {
    if (cell->status == "ok" && gate.concerns(cell->method, cell->name, cell->density)) {
      any = true;
      lines.push_back(label(*cell) + ": is not in the second report");
    }
  }
  if (!any) lines.push_back("no cell with " + name + " is meant by it");
  return lines;
}

std::string comparison_table(const ReportComparison& comparison, bool all) {
  Columns table({"cell", "metric", "A", "B", "B - A", "95% interval", "p", "verdict"}, 2);
  std::map<std::string, int> reasons;
  int verdicts = 0;
  int worse = 0;
  int better = 0;
  for (const CellChange& cell : comparison.cells) {
    if (!cell.unpaired.empty()) ++reasons[cell.unpaired];
    for (const MetricChange& m : cell.metrics) {
      verdicts += m.verdict.empty() ? 0 : 1;
      worse += m.verdict == "worse" ? 1 : 0;
      better += m.verdict == "better" ? 1 : 0;
      if (!all && !m.main) continue;
      table.add(
          {label(*cell.a), m.metric, number_text(m.a), number_text(m.b), signed_text(m.b - m.a),
           m.low && m.high ? "[" + signed_text(*m.low) + ", " + signed_text(*m.high) + "]" : "-",
           m.p_value ? number_text(*m.p_value) : "-", m.verdict.empty() ? "-" : m.verdict});
    }
    if (cell.a->status != cell.b->status) {
      table.add({label(*cell.a), "status", cell.a->status, cell.b->status, "-", "-", "-", "-"});
    }
  }
  std::string text = table.text();
  const std::size_t number = comparison.cells.size();
  text += "\n" + std::to_string(number) + (number == 1 ? " cell matches" : " cells match");
  if (verdicts > 0) {
    text += "; of " + std::to_string(verdicts) + " paired values B is better in " +
            std::to_string(better) + " and worse in " + std::to_string(worse);
  }
  text += ".\n";
  for (const auto& [reason, count] : reasons) {
    text += std::to_string(count) + " of them without a verdict: " + reason + ".\n";
  }
  const auto list = [&](const char* title, const std::vector<const ReportCell*>& cells) {
    if (cells.empty()) return;
    text += std::to_string(cells.size()) + " only in " + title + ":\n";
    constexpr std::size_t kMost = 10;
    for (std::size_t i = 0; i < std::min(cells.size(), kMost); ++i) {
      text += "  " + label(*cells[i]) + "\n";
    }
    if (cells.size() > kMost) text += "  and " + std::to_string(cells.size() - kMost) + " more\n";
  };
  list("A", comparison.only_a);
  list("B", comparison.only_b);
  if (comparison.differences.empty()) {
    text += "\nEnvironment, protocol and inputs are the same.\n";
  } else {
    Columns facts({"differs", "A", "B"}, 3);
    for (const Difference& d : comparison.differences) facts.add({d.what, d.a, d.b});
    text += "\n" + facts.text();
  }
  return text;
}

std::string comparison_json_text(const ReportComparison& comparison, const ReportFile& a,
                                 const ReportFile& b) {
  Json cells = Json::array();
  for (const CellChange& cell : comparison.cells) {
    Json metrics = Json::object();
    for (const MetricChange& m : cell.metrics) {
      metrics[m.metric] = {{"a", m.a},
                           {"b", m.b},
                           {"difference", m.b - m.a},
                           {"low", optional_number(m.low)},
                           {"high", optional_number(m.high)},
                           {"p_value", optional_number(m.p_value)},
                           {"verdict", m.verdict.empty() ? Json(nullptr) : Json(m.verdict)}};
    }
    Json json = cell_json(*cell.a);
    json["status_b"] = cell.b->status;
    json["unpaired"] = cell.unpaired.empty() ? Json(nullptr) : Json(cell.unpaired);
    json["metrics"] = metrics;
    cells.push_back(json);
  }
  const auto list = [](const std::vector<const ReportCell*>& only) {
    Json array = Json::array();
    for (const ReportCell* cell : only) array.push_back(cell_json(*cell));
    return array;
  };
  Json differences = Json::array();
  for (const Difference& d : comparison.differences) {
    differences.push_back({{"what", d.what}, {"a", d.a}, {"b", d.b}});
  }
  const Json json = {{"a", a.path()},
                     {"b", b.path()},
                     {"kind", report_kind_name(a.kind())},
                     {"cells", cells},
                     {"only_a", list(comparison.only_a)},
                     {"only_b", list(comparison.only_b)},
                     {"differences", differences}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace sw
