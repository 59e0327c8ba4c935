#include "report/findings.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/text.hpp"
#include "report/columns.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

/// The density whose numbers are quoted is the tested one that is nearest to this.
constexpr double kQuotedDensity = 0.2;

const std::set<std::string> kBaselines = {"dense", "sink_window", "random", "oracle"};

std::string code(std::string name) {
  std::erase(name, '`');
  return "`" + name + "`";
}

/// "5%", "12.5%", of a share.
std::string percent(double share, int digits = 1) {
  std::string text = fixed(100 * share, digits);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return (text == "-0" ? "0" : text) + "%";
}

/// Points of a hundred: "+0.2" of 0.002.
std::string points(double share) {
  return (share > 0 ? "+" : "") + fixed(100 * share, std::abs(share) < 0.01 ? 2 : 1);
}

std::string count(std::size_t n, const std::string& noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

/// "a, b and c"
std::string enumerate(const std::vector<std::string>& parts) {
  std::string text;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) text += i + 1 == parts.size() ? " and " : ", ";
    text += parts[i];
  }
  return text;
}

/// "5%, 10% and 20% to 40%": the places `chosen` of `names`, ascending, with three or more that
/// follow each other by their ends.
std::string enumerate_runs(const std::vector<std::string>& names,
                           const std::vector<std::size_t>& chosen) {
  std::vector<std::string> parts;
  for (std::size_t i = 0, end = 0; i < chosen.size(); i = end) {
    end = i + 1;
    while (end < chosen.size() && chosen[end] == chosen[end - 1] + 1) ++end;
    if (end - i < 3) end = i + 1;
    parts.push_back(names[chosen[i]]);
    if (end - i > 1) parts.back() += " to " + names[chosen[end - 1]];
  }
  return enumerate(parts);
}

std::string milliseconds(double seconds) {
  return fixed(1e3 * seconds, seconds < 0.01 ? 2 : seconds < 0.1 ? 1 : 0) + " ms";
}

/// "4.5 times as quick" or "2 times as slow", of dense time over sparse time.
std::string speed(double ratio) {
  if (std::max(ratio, 1 / ratio) < 1.05) return "as quick";
  if (ratio >= 1) return fixed(ratio, 1) + " times as quick";
  return fixed(1 / ratio, 1) + " times as slow";
}

/// The element whose density is nearest to the one that is quoted.
template <class T>
const T* nearest(const std::vector<T>& rows) {
  const auto distance = [](const T& row) { return std::abs(*row.density - kQuotedDensity); };
  const auto it = std::ranges::min_element(
      rows, [&](const T& x, const T& y) { return distance(x) < distance(y); });
  return it == rows.end() ? nullptr : &*it;
}

void add_failures(const ReportFile& report, std::vector<Finding>& list) {
  std::size_t failed = 0;
  std::size_t skipped = 0;
  for (const ReportCell& cell : report.cells()) {
    failed += cell.status == "failed" ? 1 : 0;
    skipped += cell.status == "skipped" ? 1 : 0;
  }
  if (failed + skipped == 0) return;
  std::vector<std::string> parts;
  if (failed > 0) parts.push_back(std::to_string(failed) + " failed");
  if (skipped > 0) parts.push_back(std::to_string(skipped) + " were skipped");
  list.push_back({Tone::kWarning, "Of " + count(report.cells().size(), "cell") + " " +
                                      enumerate(parts) + "; the table gives the reasons."});
}

struct TraceRow {
  std::string method;
  std::string name;
  std::string phase;
  std::optional<double> density;
  const Json* json = nullptr;
};

/// Rows over all inputs: those of the summary, or the cells when there is one input.
std::vector<TraceRow> trace_rows(const ReportFile& report) {
  std::vector<TraceRow> rows;
  const Json* summary = report.find(report.json(), "summary");
  if (summary && summary->is_array() && !summary->empty()) {
    for (const Json& json : *summary) {
      TraceRow& row = rows.emplace_back();
      row.method = report.text(json, "method").value_or("");
      row.name = row.method.substr(0, row.method.find(':'));
      row.phase = report.text(json, "phase").value_or("");
      row.density = report.number(json, "density");
      row.json = &json;
    }
    return rows;
  }
  for (const ReportCell& cell : report.cells()) {
    if (cell.status == "ok") {
      rows.push_back({cell.method, cell.name, cell.phase, cell.density, cell.json});
    }
  }
  return rows;
}

class TraceFindings {
 public:
  explicit TraceFindings(const ReportFile& report) : report_(report), rows_(trace_rows(report)) {}

  std::vector<Finding> list() const {
    std::vector<Finding> list;
    for (const char* phase : {"prefill", "decode"}) {
      std::vector<std::string> methods;
      for (const TraceRow& row : rows_) {
        if (row.phase == phase && row.density && !kBaselines.contains(row.name) &&
            std::ranges::find(methods, row.method) == methods.end()) {
          methods.push_back(row.method);
        }
      }
      for (const std::string& method : methods) {
        const std::vector<TraceRow> rows = rows_of(method, phase);
        list.push_back(against_sink_window(rows, method, phase));
        list.back().details = details(*nearest(rows));
      }
    }
    add_density(list);
    return list;
  }

 private:
  std::vector<TraceRow> rows_of(const std::string& method, const std::string& phase) const {
    std::vector<TraceRow> rows;
    for (const TraceRow& row : rows_) {
      if (row.method == method && row.phase == phase && row.density) rows.push_back(row);
    }
    std::ranges::sort(rows, {}, [](const TraceRow& row) { return *row.density; });
    return rows;
  }

  std::optional<double> value(const TraceRow& row, const char* path) const {
    return report_.number(*row.json, path);
  }

  /// "+0.2, +0.3 and +0.4", or the least and the most of more.
  static std::string sizes(std::vector<double> gains) {
    constexpr std::size_t kFew = 4;
    if (gains.size() > kFew) {
      const auto [least, most] = std::minmax_element(gains.begin(), gains.end());
      return points(*least) + " to " + points(*most);
    }
    std::vector<std::string> texts;
    for (double gain : gains) texts.push_back(points(gain));
    return enumerate(texts);
  }

  Finding against_sink_window(const std::vector<TraceRow>& rows, const std::string& method,
                              const std::string& phase) const {
    std::vector<std::string> densities;
    std::map<std::string, std::vector<std::size_t>> places;  // of densities, by verdict
    std::vector<double> gains;
    for (const TraceRow& row : rows) {
      const auto verdict = report_.text(*row.json, "versus_sink_window.verdict");
      if (!verdict) continue;
      places[*verdict].push_back(densities.size());
      densities.push_back(percent(*row.density));
      const auto gain = value(row, "versus_sink_window.mass_recall_difference.mean");
      if (*verdict == "better" && gain) gains.push_back(*gain);
    }
    const auto at = [&](const char* verdict) { return enumerate_runs(densities, places[verdict]); };
    const std::string begin = "In " + phase + ", " + code(method);
    if (densities.empty()) {
      return {Tone::kNeutral,
              begin + " was not compared with `sink_window`, which is not in this run."};
    }
    std::vector<std::string> rest;
    for (const char* verdict : {"tied", "worse"}) {
      if (!places[verdict].empty()) rest.push_back(std::string(verdict) + " at " + at(verdict));
    }
    const std::string plain = "keeping only the first and the latest blocks (`sink_window`)";
    if (places["better"].empty()) {
      return {Tone::kBad,
              begin + " is no better than " + plain + ": " + enumerate(rest) + " density."};
    }
    const std::string size = "(" + sizes(std::move(gains)) + " points)";
    if (rest.empty()) {
      return {Tone::kGood, begin + " keeps more attention mass than " + plain + " at " +
                               at("better") + " density " + size + "."};
    }
    return {Tone::kMixed, begin + " keeps more attention mass than " + plain + " only at " +
                              at("better") + " density " + size + "; it is " + enumerate(rest) +
                              "."};
  }

  /// Quality, loss and time at one density.
  std::vector<std::string> details(const TraceRow& row) const {
    std::vector<std::string> list;
    const std::string at = "At " + percent(*row.density) + " density ";
    if (const auto recall = value(row, "metrics.mass_recall.mean")) {
      std::string text = at + "it keeps " + percent(*recall) + " of the attention mass";
      const auto low = value(row, "metrics.mass_recall.low");
      const auto high = value(row, "metrics.mass_recall.high");
      if (low && high) text += " (95% interval " + percent(*low) + " to " + percent(*high) + ")";
      if (const auto gap = value(row, "metrics.oracle_gap.mean")) {
        text += "; the best selection of the same size would keep " + percent(*recall + *gap);
      }
      if (const auto error = value(row, "metrics.output_error.mean")) {
        text += ". The attention output is off by " + percent(*error);
      }
      list.push_back(text + ".");
    }
    if (const auto total = value(row, "attribution.mean.total"); total && *total > 0) {
      const auto cost = [](double loss, const std::string& noun) {
        if (std::abs(loss) < 5e-5) return noun + " costs nothing";
        return noun + (loss > 0 ? " costs " : " gives back ") + fixed(100 * std::abs(loss), 2);
      };
      std::string parts;
      const auto add = [&](const char* name, const std::string& noun) {
        const double loss =
            value(row, ("attribution.mean." + std::string(name)).c_str()).value_or(0);
        parts += (parts.empty() ? "" : ", ") + cost(loss, noun);
      };
      if (value(row, "attribution.mean.key_pooling")) {
        add("forced", "keeping sink and window in any case");
        add("query_pooling", "averaging queries");
        add("key_pooling", "averaging keys");
        const double softmax = value(row, "attribution.mean.mask").value_or(0) +
                               value(row, "attribution.mean.temperature").value_or(0) +
                               value(row, "attribution.mean.aggregation").value_or(0) +
                               value(row, "attribution.mean.interaction").value_or(0);
        parts += ", " + cost(softmax, "the form of the softmax");
      } else {
        add("block_mean", "averaging over blocks");
      }
      add("sketch", "the sketch");
      add("walk", "the walk");
      list.push_back("Of the " + fixed(100 * *total, 2) + " points lost to that best selection, " +
                     parts + ".");
    }
    const auto total = value(row, "latency.total.median");
    const auto dense = value(row, "latency.dense_attention.median");
    if (total && dense && *total > 0 && *dense > 0) {
      list.push_back("Selection and attention of one layer take " + milliseconds(*total) +
                     ", dense attention " + milliseconds(*dense) + ": " + speed(*dense / *total) +
                     ", in single passes that are no benchmark.");
    }
    return list;
  }

  /// Warns where the realised density is far from what was asked for.
  void add_density(std::vector<Finding>& list) const {
    double worst = 0;
    const TraceRow* at = nullptr;
    for (const TraceRow& row : rows_) {
      const char* path =
          row.phase == "decode" ? "realised_density.decode" : "realised_density.sparse";
      const auto realised = value(row, path);
      if (!realised || !row.density) continue;
      const double off = std::abs(*realised / *row.density - 1);
      if (off > worst) {
        worst = off;
        at = &row;
      }
    }
    if (!at || worst < 0.1) return;
    const double realised =
        *value(*at, at->phase == "decode" ? "realised_density.decode" : "realised_density.sparse");
    list.push_back(
        {Tone::kWarning,
         "The density that was really kept differs from the one asked for: by most with " +
             code(at->method) + " in " + at->phase + ", " + percent(realised) + " instead of " +
             percent(*at->density) + "."});
  }

  const ReportFile& report_;
  std::vector<TraceRow> rows_;
};

struct Range {
  double mean = 0.0;
  std::optional<double> low;
  std::optional<double> high;
};

bool overlap(const Range& x, const Range& y) {
  return !x.low || !x.high || !y.low || !y.high || (*x.low <= *y.high && *y.low <= *x.high);
}

class ModelFindings {
 public:
  explicit ModelFindings(const ReportFile& report) : report_(report) {}

  std::vector<Finding> list() const {
    std::vector<Finding> list;
    std::vector<std::string> tasks;
    for (const ReportCell& cell : report_.cells()) {
      if (std::ranges::find(tasks, cell.input) == tasks.end()) tasks.push_back(cell.input);
    }
    for (const std::string& task : tasks) add_task(task, list);
    add_overall(list);
    return list;
  }

 private:
  std::optional<Range> range(const Json& json, const std::string& mean,
                             const std::string& interval) const {
    const auto middle = report_.number(json, mean);
    if (!middle) return std::nullopt;
    return Range{*middle, report_.number(json, interval + ".low"),
                 report_.number(json, interval + ".high")};
  }

  const ReportCell* sink_window(const ReportCell& cell) const {
    for (const ReportCell& other : report_.cells()) {
      if (other.name == "sink_window" && other.input == cell.input &&
          other.density == cell.density && other.status == "ok") {
        return &other;
      }
    }
    return nullptr;
  }

  void add_task(const std::string& task, std::vector<Finding>& list) const {
    std::map<std::string, std::vector<ReportCell>> methods;
    for (const ReportCell& cell : report_.cells()) {
      if (cell.input == task && cell.status == "ok" && cell.density &&
          !kBaselines.contains(cell.name)) {
        methods[cell.method].push_back(cell);
      }
    }
    for (const auto& [method, cells] : methods) {
      const ReportCell& cell = *nearest(cells);
      if (report_.number(*cell.json, "perplexity")) {
        add_text(cell, list);
      } else {
        add_replies(cell, list);
      }
    }
  }

  void add_text(const ReportCell& cell, std::vector<Finding>& list) const {
    const auto ratio = range(*cell.json, "versus_dense.ln_ratio", "versus_dense.ln_ratio_interval");
    const auto dense = report_.number(*cell.json, "versus_dense.perplexity_dense");
    const auto perplexity = report_.number(*cell.json, "perplexity");
    if (!ratio || !dense || !perplexity) return;
    const bool significant = ratio->low && ratio->high && (*ratio->low > 0 || *ratio->high < 0);
    std::string text = "At " + percent(*cell.density) + " density, perplexity of " +
                       code(cell.input) + " goes from " + fixed(*dense, 2) + " to " +
                       fixed(*perplexity, 2) + " with " + code(cell.method);
    if (ratio->low && ratio->high) {
      text += " (ln ratio " + fixed(ratio->mean, 3) + ", 95% interval " + fixed(*ratio->low, 3) +
              " to " + fixed(*ratio->high, 3) + ")";
    }
    text += significant ? (ratio->mean > 0 ? ": worse than dense."
                                           : ": better than dense, which "
                                             "asks for a check.")
                        : ": no difference from dense is shown.";
    Tone tone = significant && ratio->mean > 0 ? Tone::kBad : Tone::kNeutral;
    if (const ReportCell* plain = sink_window(cell)) {
      const auto other =
          range(*plain->json, "versus_dense.ln_ratio", "versus_dense.ln_ratio_interval");
      const auto other_perplexity = report_.number(*plain->json, "perplexity");
      if (other && other_perplexity) {
        text += versus_plain(overlap(*ratio, *other), ratio->mean < other->mean,
                             fixed(*other_perplexity, 2), tone);
      }
    }
    list.push_back({tone, text});
  }

  void add_replies(const ReportCell& cell, std::vector<Finding>& list) const {
    const auto difference =
        range(*cell.json, "versus_dense.difference.mean", "versus_dense.difference");
    const auto dense = report_.number(*cell.json, "versus_dense.dense");
    const auto score = report_.number(*cell.json, "score.mean");
    if (!difference || !dense || !score) return;
    const std::string verdict =
        report_.text(*cell.json, "versus_dense.verdict").value_or("underpowered");
    std::string text = "At " + percent(*cell.density) + " density, " + code(cell.method) +
                       " scores " + fixed(100 * *score, 1) + " on " + code(cell.input) +
                       ", dense attention " + fixed(100 * *dense, 1) + ": ";
    Tone tone = verdict_tone(verdict);
    text += verdict_text(*cell.json, "versus_dense");
    if (const ReportCell* plain = sink_window(cell)) {
      const auto other = range(*plain->json, "score.mean", "score");
      const auto own = range(*cell.json, "score.mean", "score");
      if (other && own) {
        text += versus_plain(overlap(*own, *other), own->mean > other->mean,
                             fixed(100 * other->mean, 1), tone);
      }
    }
    list.push_back({tone, text});
  }

  static Tone verdict_tone(const std::string& verdict) {
    if (verdict == "worse") return Tone::kBad;
    if (verdict == "tied") return Tone::kGood;
    return verdict == "better" ? Tone::kWarning : Tone::kNeutral;
  }

  std::string verdict_text(const Json& json, const std::string& at) const {
    const std::string verdict = report_.text(json, at + ".verdict").value_or("");
    if (verdict == "worse") return "significantly worse.";
    if (verdict == "better") return "significantly better, which asks for a check of the protocol.";
    if (verdict == "tied") return "tied, within two points.";
    std::string text = "too few samples to say";
    if (const auto least = report_.number(json, at + ".minimum_detectable")) {
      text += " (only a difference of " + fixed(100 * *least, 0) + " points would be found)";
    }
    return text + ".";
  }

  /// What keeping only the first and latest blocks gives; a method that shows no advantage gets no
  /// good tone.
  static std::string versus_plain(bool overlaps, bool better, const std::string& other,
                                  Tone& tone) {
    std::string text =
        " Keeping only the first and the latest blocks (`sink_window`) gives " + other + ": ";
    if (better && !overlaps) return text + "the method is better.";
    if (tone == Tone::kGood) tone = Tone::kNeutral;
    if (better) return text + "the intervals overlap, so no advantage is shown.";
    return text + "the method is no better.";
  }

  void add_overall(std::vector<Finding>& list) const {
    const Json* summary = report_.find(report_.json(), "summary");
    if (!summary || !summary->is_array()) return;
    std::set<std::string> tasks;
    for (const ReportCell& cell : report_.cells()) {
      if (report_.find(*cell.json, "score")) tasks.insert(cell.input);
    }
    if (tasks.size() < 2) return;
    for (const Json& row : *summary) {
      const std::string method = report_.text(row, "method").value_or("");
      const auto density = report_.number(row, "density");
      const auto dense = report_.number(row, "versus_dense.dense");
      const auto sparse = report_.number(row, "versus_dense.sparse");
      if (!density || !dense || !sparse || kBaselines.contains(method.substr(0, method.find(':'))))
        continue;
      const std::string verdict = report_.text(row, "versus_dense.verdict").value_or("");
      list.insert(list.begin(),
                  {verdict_tone(verdict),
                   "Over " + count(tasks.size(), "task") + ", " + code(method) + " at " +
                       percent(*density) + " density scores " + fixed(100 * *sparse, 1) +
                       " against " + fixed(100 * *dense, 1) +
                       " of dense attention: " + verdict_text(row, "versus_dense")});
    }
  }

  const ReportFile& report_;
};

/// Phase, implementation and method of a comparison or crossover.
std::string arm_key(const ReportFile& report, const Json& json) {
  return report.text(json, "phase").value_or("") + '\n' +
         report.text(json, "implementation").value_or("") + '\n' +
         report.text(json, "method").value_or("");
}

std::vector<Finding> profile_findings(const ReportFile& report) {
  std::vector<Finding> list;
  const Json empty = Json::array();
  const auto array = [&](const char* key) -> const Json& {
    const Json* found = report.find(report.json(), key);
    return found && found->is_array() ? *found : empty;
  };
  // Of each phase, implementation and method: the longest context at the quoted density.
  struct Row {
    std::optional<double> density;
    double tokens = 0;
    const Json* json = nullptr;
  };
  std::map<std::string, std::vector<Row>> groups;
  for (const Json& json : array("comparisons")) {
    const auto density = report.number(json, "density");
    if (!density) continue;
    groups[arm_key(report, json)].push_back(
        {density, report.number(json, "shape.tokens").value_or(0), &json});
  }
  for (auto& group : groups) {
    std::vector<Row>& rows = group.second;
    const double longest = std::ranges::max(rows, {}, &Row::tokens).tokens;
    std::set<double> lengths_seen;
    for (const Row& row : rows) lengths_seen.insert(row.tokens);
    const std::size_t lengths = lengths_seen.size();
    std::erase_if(rows, [&](const Row& row) { return row.tokens < longest; });
    const Row& row = *nearest(rows);
    const auto total = report.number(*row.json, "total.median");
    const Json* ratios = report.find(*row.json, "dense_over_total");
    if (!total || !ratios || !ratios->is_array()) continue;
    std::vector<std::string> parts;
    bool quicker = true;
    bool slower = false;
    for (const Json& ratio : *ratios) {
      const auto times = report.number(ratio, "times");
      if (!times || !(*times > 0)) continue;
      quicker = quicker && *times >= 1.05;
      slower = slower || *times <= 1 / 1.05;
      parts.push_back(speed(*times) + " as dense attention of " +
                      report.text(ratio, "implementation").value_or("?"));
    }
    if (parts.empty()) continue;
    std::vector<std::string> details;
    for (const Json& json : array("crossovers")) {
      const auto density = report.number(json, "density");
      const auto tokens = report.number(json, "tokens");
      if (!density || lengths < 2 || arm_key(report, json) != group.first) continue;
      details.push_back("At " + percent(*density) + " density it is " +
                        (tokens ? "quicker from " + format_double(*tokens) +
                                      " tokens on, over the lengths measured."
                                : "not quicker at the longest length measured."));
    }
    list.push_back({quicker  ? Tone::kGood
                    : slower ? Tone::kBad
                             : Tone::kMixed,
                    "At " + format_double(row.tokens) + " tokens in " +
                        report.text(*row.json, "phase").value_or("") + ", " +
                        code(report.text(*row.json, "method").value_or("")) + " at " +
                        percent(*row.density) + " density takes " + milliseconds(*total) +
                        ", selection included: " + enumerate(parts) + ".",
                    details});
  }
  // Of dense attention at the longest context of each phase.
  std::map<std::string, std::pair<double, std::string>> dense;
  for (const ReportCell& cell : report.cells()) {
    const double share = std::max(report.number(*cell.json, "of_product").value_or(0),
                                  report.number(*cell.json, "of_copy").value_or(0));
    const double tokens = report.number(*cell.json, "shape.tokens").value_or(0);
    if (cell.method != "dense" || report.text(*cell.json, "part") != "total" || share <= 0)
      continue;
    const std::string code_name = report.text(*cell.json, "implementation").value_or("");
    auto& best = dense[cell.phase + ", " + code_name];
    if (tokens > best.first) best = {tokens, percent(share, 0)};
  }
  if (!dense.empty()) {
    std::vector<std::string> parts;
    for (const auto& [name, best] : dense) {
      parts.push_back(best.second + " (" + name + ", " + format_double(best.first) + " tokens)");
    }
    list.push_back({Tone::kNeutral,
                    "Of what this machine's matrix products or copies reach in "
                    "the same run, dense attention reaches " +
                        enumerate(parts) + "."});
  }
  return list;
}

std::vector<Finding> score_findings(const ReportFile& report) {
  const auto mean = report.number(report.json(), "average.mean");
  if (!mean) return {};
  std::size_t scored = 0;
  for (const ReportCell& cell : report.cells()) scored += cell.status == "ok" ? 1 : 0;
  std::string text = "The average score is " + fixed(*mean, 2) + " of 100";
  const auto low = report.number(report.json(), "average.low");
  const auto high = report.number(report.json(), "average.high");
  if (low && high) text += " (95% interval " + fixed(*low, 2) + " to " + fixed(*high, 2) + ")";
  return {{Tone::kNeutral, text + " over " + count(scored, "task") + "."}};
}

}  // namespace

const char* tone_name(Tone tone) {
  switch (tone) {
    case Tone::kGood:
      return "good";
    case Tone::kBad:
      return "bad";
    case Tone::kMixed:
      return "mixed";
    case Tone::kWarning:
      return "warning";
    default:
      return "neutral";
  }
}

std::vector<Finding> findings(const ReportFile& report) {
  std::vector<Finding> list;
  switch (report.kind()) {
    case ReportKind::kTrace:
      list = TraceFindings(report).list();
      break;
    case ReportKind::kModel:
      list = ModelFindings(report).list();
      break;
    case ReportKind::kProfile:
      list = profile_findings(report);
      break;
    default:
      list = score_findings(report);
  }
  add_failures(report, list);
  return list;
}

}  // namespace sw
