#include "eval/sweep.hpp"

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "core/error.hpp"
#include "core/progress.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

double total_cost(std::span<const SweepUnit> units) {
  return std::accumulate(units.begin(), units.end(), 0.0,
                         [](double sum, const SweepUnit& unit) { return sum + unit.cost; });
}

/// Progress in millionths of the whole, as units of very different costs are done.
class SweepProgress {
 public:
  SweepProgress(double total, bool quiet) : total_(total), progress_("sweep", kParts, quiet) {}

  void skip(double cost) {
    done_ += cost;
    const std::int64_t parts = reach();
    progress_.skip(parts);
  }
  void advance(double cost, const std::string& where) {
    done_ += cost;
    progress_.advance(reach(), where);
  }
  double done() const { return done_; }

 private:
  static constexpr std::int64_t kParts = 1000000;

  /// Parts that `done_` is ahead of what was shown.
  std::int64_t reach() {
    if (total_ == 0.0) return 0;
    const auto now =
        std::min<std::int64_t>(kParts, std::llround(done_ / total_ * static_cast<double>(kParts)));
    const std::int64_t parts = now - shown_;
    shown_ = now;
    return parts;
  }

  double total_;
  double done_ = 0.0;
  std::int64_t shown_ = 0;
  Progress progress_;
};

/// Seconds that `unit` will take, judged by the finished ones; nothing when there are none.
std::optional<double> expected_seconds(const Sweep& sweep, std::size_t unit) {
  double cost = 0.0;
  double seconds = 0.0;
  for (std::size_t u = 0; u < sweep.units().size(); ++u) {
    if (!sweep.finished(u)) continue;
    cost += sweep.units()[u].cost;
    seconds += sweep.seconds(u);
  }
  if (cost == 0.0) return std::nullopt;
  return seconds / cost * sweep.units()[unit].cost;
}

}  // namespace

Shard Shard::parse(std::string_view text) {
  constexpr std::int64_t kMost = 100000;
  const std::vector<std::string> parts = split(text, '/');
  if (parts.size() == 2) {
    const Shard shard{parse_int(parts[0], "--shard"), parse_int(parts[1], "--shard")};
    if (1 <= shard.index && shard.index <= shard.count && shard.count <= kMost) return shard;
  }
  throw Error(ErrorKind::kUsage, "--shard '" + std::string(text) + "' is no part of a whole",
              "write 2/4 for the second of four parts");
}

std::string Shard::text() const { return std::to_string(index) + "/" + std::to_string(count); }

std::vector<std::size_t> shard_units(std::span<const SweepUnit> units, const Shard& shard) {
  const double total = total_cost(units);
  std::vector<std::size_t> chosen;
  double before = 0.0;
  for (std::size_t u = 0; u < units.size(); ++u) {
    // The shard in whose share the middle of the unit lies.
    const double middle = (before + units[u].cost / 2.0) / total;
    const auto owner = static_cast<std::int64_t>(middle * static_cast<double>(shard.count));
    if (std::min(owner, shard.count - 1) == shard.index - 1) chosen.push_back(u);
    before += units[u].cost;
  }
  return chosen;
}

SweepEnd run_sweep(Sweep& sweep, UnitSource& source, Journal& journal,
                   const SweepRunOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto cost = [&](std::size_t u) { return sweep.units()[u].cost; };
  const std::span<const std::size_t> known = source.known();
  double total = 0.0;
  for (std::size_t u : known) total += cost(u);
  SweepProgress progress(total, options.quiet);
  for (std::size_t u : known) {
    if (sweep.finished(u)) progress.skip(cost(u));
  }
  auto passed = known.begin();
  while (const std::optional<std::size_t> next = source.next()) {
    const std::size_t u = *next;
    for (; passed != known.end() && *passed < u; ++passed) {
      // Units before this one that did not come here are another process's.
      if (!sweep.finished(*passed)) progress.advance(cost(*passed), sweep.units()[*passed].name);
    }
    if (sweep.finished(u)) continue;
    if (options.stop && options.stop()) return SweepEnd::kStopped;
    // A tenth more than expected: a unit that ends after the limit is a limit that was not kept.
    const double expected = 1.1 * expected_seconds(sweep, u).value_or(0.0);
    if (elapsed() + expected > options.max_seconds) return SweepEnd::kOutOfTime;
    const SweepUnit& unit = sweep.units()[u];
    const double before = progress.done();
    try {
      sweep.run(
          u, [&](nlohmann::json&& entry) { journal.append(entry); },
          [&](double share, const std::string& where) {
            progress.advance(share * unit.cost, where);
            if (options.stop && options.stop()) throw Abandoned();
          });
    } catch (const Abandoned&) {
      return SweepEnd::kStopped;
    }
    progress.advance(before + unit.cost - progress.done(), unit.name);
  }
  return SweepEnd::kDone;
}

SweepEnd run_sweep(Sweep& sweep, std::span<const std::size_t> units, Journal& journal,
                   const SweepRunOptions& options) {
  UnitList source({units.begin(), units.end()});
  return run_sweep(sweep, source, journal, options);
}

}  // namespace sw
