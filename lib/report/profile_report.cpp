#include "report/profile_report.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/text.hpp"
#include "eval/statistics.hpp"
#include "report/columns.hpp"
#include "report/json_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::ordered_json;

Timing timing(const std::vector<double>& seconds) {
  return {median(seconds), median_absolute_deviation(seconds)};
}

Json to_json(const Timing& time) { return {{"median", time.median}, {"mad", time.mad}}; }

Json to_json(const ProfileShape& shape) {
  return {{"tokens", shape.tokens},
          {"num_heads", shape.num_heads},
          {"num_kv_heads", shape.num_kv_heads},
          {"head_dim", shape.head_dim},
          {"block", shape.block},
          {"batch", shape.batch},
          {"dtype", shape.dtype}};
}

/// Nothing where either number is not stated.
std::optional<double> share(double amount, double seconds, double ceiling) {
  if (amount <= 0.0 || ceiling <= 0.0) return {};
  return amount / seconds / ceiling;
}

Json to_json(const Measurement& m, const Roofline& roofline) {
  Json json = {{"phase", m.phase},
               {"part", m.part},
               {"implementation", m.implementation},
               {"peer", m.peer},
               {"shape", to_json(m.shape)},
               {"method", m.method},
               {"density", nullable(m.density)},
               {"realised_density", nullable(m.realised_density)},
               {"status", m.seconds.empty() ? "skipped" : "ok"}};
  if (m.seconds.empty()) {
    json["reason"] = m.reason;
    return json;
  }
  const Timing time = timing(m.seconds);
  json["flops"] = m.flops;
  json["bytes"] = m.bytes;
  json["time"] = to_json(time);
  json["of_product"] = nullable(share(m.flops, time.median, roofline.flops_per_second));
  json["of_copy"] = nullable(share(m.bytes, time.median, roofline.bytes_per_second));
  json["seconds"] = m.seconds;
  return json;
}

std::string shape_key(const ProfileShape& s) {
  return std::to_string(s.num_heads) + "/" + std::to_string(s.num_kv_heads) + "/" +
         std::to_string(s.head_dim) + " " + s.dtype +
         (s.batch > 1 ? " x" + std::to_string(s.batch) : "");
}

bool is_dense_total(const Measurement& m) {
  return m.method == "dense" && m.part == "total" && !m.seconds.empty();
}

std::string milliseconds(double seconds) {
  const double ms = seconds * 1e3;
  return fixed(ms, ms < 1 ? 4 : ms < 100 ? 3 : 1);
}

}  // namespace

std::vector<ProfileComparison> compare_with_dense(const ProfileReport& report) {
  std::vector<ProfileComparison> comparisons;
  for (const Measurement& m : report.measurements) {
    if (m.peer || m.part != "total" || !m.density || m.seconds.empty()) continue;
    ProfileComparison comparison{m.phase,           m.shape, m.implementation, m.method, *m.density,
                                 timing(m.seconds), {}};
    for (const Measurement& other : report.measurements) {
      if (!is_dense_total(other) || other.phase != m.phase || !(other.shape == m.shape)) continue;
      if (!other.peer && other.implementation != m.implementation) continue;
      comparison.dense.push_back(
          {other.implementation, other.peer, median(other.seconds) / comparison.total.median});
    }
    std::stable_partition(comparison.dense.begin(), comparison.dense.end(),
                          [](const auto& ratio) { return !ratio.peer; });
    comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

std::vector<Crossover> crossovers(const ProfileReport& report) {
  using Key = std::tuple<std::string, std::string, std::string, std::string, double>;
  std::map<Key, std::map<std::int64_t, bool>> quicker;  // by tokens
  std::vector<Key> order;
  for (const ProfileComparison& c : compare_with_dense(report)) {
    for (const auto& ratio : c.dense) {
      if (ratio.peer) continue;
      const Key key{c.phase, shape_key(c.shape), c.implementation, c.method, c.density};
      if (!quicker.contains(key)) order.push_back(key);
      quicker[key][c.shape.tokens] = ratio.times > 1.0;
    }
  }
  std::vector<Crossover> result;
  for (const Key& key : order) {
    Crossover crossover{std::get<0>(key), std::get<1>(key), std::get<2>(key),
                        std::get<3>(key), std::get<4>(key), {}};
    const auto& lengths = quicker[key];
    for (auto it = lengths.rbegin(); it != lengths.rend() && it->second; ++it) {
      crossover.tokens = it->first;
    }
    result.push_back(std::move(crossover));
  }
  return result;
}

std::string profile_json_text(const ProfileReport& report) {
  Json measurements = Json::array();
  for (const Measurement& m : report.measurements) {
    measurements.push_back(to_json(m, report.roofline));
  }
  Json comparisons = Json::array();
  for (const ProfileComparison& c : compare_with_dense(report)) {
    Json ratios = Json::array();
    for (const auto& ratio : c.dense) {
      ratios.push_back(
          {{"implementation", ratio.implementation}, {"peer", ratio.peer}, {"times", ratio.times}});
    }
    comparisons.push_back({{"phase", c.phase},
                           {"shape", to_json(c.shape)},
                           {"implementation", c.implementation},
                           {"method", c.method},
                           {"density", c.density},
                           {"total", to_json(c.total)},
                           {"dense_over_total", ratios}});
  }
  Json lengths = Json::array();
  for (const Crossover& c : crossovers(report)) {
    lengths.push_back({{"phase", c.phase},
                       {"shape", c.shape},
                       {"implementation", c.implementation},
                       {"method", c.method},
                       {"density", c.density},
                       {"tokens", nullable(c.tokens)}});
  }
  const Roofline& roofline = report.roofline;
  const Json json = {{"schema_version", kProfileReportVersion},
                     {"created", report.created},
                     {"command", report.command},
                     {"environment", to_json(report.environment)},
                     {"protocol",
                      {{"kind", "profile"},
                       {"warmup", report.warmup},
                       {"repeats", report.repeats},
                       {"timer", report.timer},
                       {"cache", report.cache}}},
                     {"notes", report.notes},
                     {"roofline",
                      {{"product", roofline.product},
                       {"flops_per_second", roofline.flops_per_second},
                       {"copy", roofline.copy},
                       {"bytes_per_second", roofline.bytes_per_second}}},
                     {"measurements", measurements},
                     {"comparisons", comparisons},
                     {"crossovers", lengths}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string profile_table(const ProfileReport& report) {
  const Roofline& roofline = report.roofline;
  std::string text;
  text += "Roofline: " + fixed(roofline.flops_per_second / 1e12, 3) + " TFLOP/s (" +
          roofline.product + "), " + fixed(roofline.bytes_per_second / 1e9, 1) + " GB/s (" +
          roofline.copy + ")\n";
  Columns columns({"phase", "method", "implementation", "heads/kv/d", "tokens", "density", "ms",
                   "mad", "selection", "attention", "TFLOP/s", "of product", "GB/s", "of copy"},
                  4);
  const auto percent = [](std::optional<double> x) {
    return x ? fixed(100 * *x, 0) + "%" : std::string("-");
  };
  const auto part = [&](const Measurement& total, const std::string& name) {
    for (const Measurement& m : report.measurements) {
      if (m.part == name && m.phase == total.phase && m.implementation == total.implementation &&
          m.shape == total.shape && m.method == total.method && m.density == total.density &&
          !m.seconds.empty()) {
        return milliseconds(median(m.seconds));
      }
    }
    return std::string("-");
  };
  std::string skipped;
  for (const Measurement& m : report.measurements) {
    if (m.seconds.empty()) {
      skipped += "skipped: " + m.phase + " " + m.part + ", " + m.implementation + ", " +
                 std::to_string(m.shape.tokens) + " tokens: " + m.reason + "\n";
      continue;
    }
    if (m.part != "total") continue;
    const Timing time = timing(m.seconds);
    columns.add({m.phase, m.method, m.implementation, shape_key(m.shape),
                 std::to_string(m.shape.tokens), m.density ? format_double(*m.density) : "-",
                 milliseconds(time.median), milliseconds(time.mad), part(m, "selection"),
                 part(m, "attention"), m.flops > 0 ? fixed(m.flops / time.median / 1e12, 3) : "-",
                 percent(share(m.flops, time.median, roofline.flops_per_second)),
                 m.bytes > 0 ? fixed(m.bytes / time.median / 1e9, 1) : "-",
                 percent(share(m.bytes, time.median, roofline.bytes_per_second))});
  }
  text += columns.text() + skipped;

  Columns parts({"phase", "part", "method", "heads/kv/d", "tokens", "density", "ms", "TFLOP/s",
                 "of product", "GB/s", "of copy"},
                4);
  for (const Measurement& m : report.measurements) {
    if (m.part == "total" || m.peer || m.seconds.empty()) continue;
    const double time = median(m.seconds);
    if (time == 0.0) continue;  // no such stage in this method
    parts.add({m.phase, m.part, m.method, shape_key(m.shape), std::to_string(m.shape.tokens),
               m.density ? format_double(*m.density) : "-", milliseconds(time),
               m.flops > 0 ? fixed(m.flops / time / 1e12, 3) : "-",
               percent(share(m.flops, time, roofline.flops_per_second)),
               m.bytes > 0 ? fixed(m.bytes / time / 1e9, 1) : "-",
               percent(share(m.bytes, time, roofline.bytes_per_second))});
  }
  text += "\n" + parts.text();

  const std::vector<ProfileComparison> comparisons = compare_with_dense(report);
  if (!comparisons.empty()) {
    Columns ratios({"phase", "method", "heads/kv/d", "tokens", "density", "total ms",
                    "dense attention / total"},
                   3);
    for (const ProfileComparison& c : comparisons) {
      std::string against;
      for (const auto& ratio : c.dense) {
        against += (against.empty() ? "" : ", ") + ratio.implementation + " " +
                   fixed(ratio.times, 2) + "x";
      }
      ratios.add({c.phase, c.method, shape_key(c.shape), std::to_string(c.shape.tokens),
                  format_double(c.density), milliseconds(c.total.median),
                  against.empty() ? "-" : against});
    }
    text += "\n" + ratios.text();
  }
  for (const Crossover& c : crossovers(report)) {
    text += "crossover: " + c.phase + ", " + c.shape + ", " + c.method + " at " +
            format_double(c.density) + ": " +
            (c.tokens ? "quicker than dense from " + std::to_string(*c.tokens) + " tokens on"
                      : std::string("not quicker than dense at the longest length")) +
            "\n";
  }
  for (const std::string& note : report.notes) text += "note: " + note + "\n";
  return text;
}

}  // namespace sw
