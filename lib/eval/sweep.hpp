#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/journal.hpp"
#include "eval/unit_source.hpp"

/// Long evaluations cut into units of work, each of which ends in entries of a journal. Who runs
/// which unit, in which order and in how many processes, changes nothing in the result: a report is
/// a function of the entries.
namespace sw {

struct SweepUnit {
  std::string name;   ///< "layer 3 of llama.h5"
  double cost = 0.0;  ///< > 0, proportional to its time; the same on every machine
};

/// Thrown through a unit of work that is given up; never an Error. The sweep cannot be used any
/// more then, and the unit is to be done again.
struct Abandoned {};

class Sweep {
 public:
  using Append = std::function<void(nlohmann::json&& entry)>;
  /// Told the share of the unit that was done since the last call, and where. May throw Abandoned.
  using Advance = std::function<void(double share, const std::string& where)>;

  Sweep() = default;
  virtual ~Sweep() = default;
  Sweep(const Sweep&) = delete;
  Sweep& operator=(const Sweep&) = delete;

  /// All units, the same in every process that was given the same inputs and options.
  virtual const std::vector<SweepUnit>& units() const = 0;

  /// Takes note of an entry of the journal: what it finishes needs not be run. Entries of other
  /// kinds are ignored. Throws Error(kInput) for one that is damaged.
  virtual void note(const nlohmann::json& entry) = 0;
  virtual bool finished(std::size_t unit) const = 0;
  /// Seconds that a finished unit took, 0 when it is not finished.
  virtual double seconds(std::size_t unit) const = 0;

  /// Runs one unit and gives its entries to `append`, which is to end in `note`. What cannot be
  /// computed is an entry with the reason; only errors of the machine and of the journal are
  /// thrown. Units that follow one another in the list are run fastest in that order.
  virtual void run(std::size_t unit, const Append& append, const Advance& advance) = 0;
};

/// Part `index` of `count`, counted from 1.
struct Shard {
  std::int64_t index = 1;
  std::int64_t count = 1;

  /// Reads "2/4". Throws Error(kUsage) unless 1 <= index <= count <= 100,000.
  static Shard parse(std::string_view text);
  std::string text() const;
  bool whole() const { return count == 1; }
};

/// The units of one shard, ascending: neighbours, because they share work, and as balanced in cost
/// as that allows. Every unit is in exactly one shard.
std::vector<std::size_t> shard_units(std::span<const SweepUnit> units, const Shard& shard);

enum class SweepEnd {
  kDone,       ///< all units are finished
  kStopped,    ///< `stop` said so; the unit that ran was given up
  kOutOfTime,  ///< the next unit would not have fitted
};

struct SweepRunOptions {
  double max_seconds = std::numeric_limits<double>::infinity();  ///< from the call on
  std::function<bool()> stop;  ///< asked often, also within a unit; may be empty
  bool quiet = false;
};

/// Runs the units that `source` hands out and that are not finished. The journal was opened with a
/// visitor that hands its entries to sweep.note(). A unit that was taken and not run, because of
/// the time or a stop, is left for the next run. Throws what the journal and the machine throw.
SweepEnd run_sweep(Sweep& sweep, UnitSource& source, Journal& journal,
                   const SweepRunOptions& options);
/// The same for units that are known from the start.
SweepEnd run_sweep(Sweep& sweep, std::span<const std::size_t> units, Journal& journal,
                   const SweepRunOptions& options);

}  // namespace sw
