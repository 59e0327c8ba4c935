#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "eval/journal.hpp"
#include "eval/layer_entry.hpp"
#include "support/command.hpp"
#include "support/report_files.hpp"
#include "support/tiny_trace.hpp"

/// A folder with small traces and one sweep over them, for tests that run it in several processes.
namespace sw::testing {

class SweepFolder {
 public:
  /// Two traces of six layers each: twelve units, each of which takes a moment.
  SweepFolder() {
    TinyTrace trace;
    trace.layers = 6;
    trace.prefill = 1000;
    trace.write(folder_.file("a.h5"));
    trace.seed = 8;
    trace.first_layer = 0;
    trace.write(folder_.file("b.h5"));
  }

  static constexpr std::size_t kUnits = 12;
  /// Command and options of the sweep: methods that walk from layer to layer, and some that do not.
  static constexpr const char* kSweep =
      "trace a.h5 b.h5 --method sketchwalk sketchwalk:preset=preprint sink_window oracle "
      "--density 0.1:0.3:0.1 --block 16 --threads 1";

  std::string file(const std::string& name) const { return folder_.file(name); }
  const std::string& path() const { return folder_.path(); }

  /// Runs a shell command line in the folder, with the programs on PATH.
  CommandResult run(const std::string& line) const {
    return run_command("cd '" + path() + "' && export PATH='" SW_BIN_DIR "':\"$PATH\" && " + line);
  }

  /// Runs the sweep in one process into `out`, which is what all others have to equal.
  void run_alone(const std::string& out) const {
    const CommandResult result = run(std::string("sw-sweep ") + kSweep + " --quiet -o " + out);
    ASSERT_EQ(result.code, 0) << result.output;
  }

  /// The reports of two outputs are equal but for times and their own name.
  void expect_same(const std::string& a, const std::string& b) const {
    EXPECT_EQ(json_of(a), json_of(b));
    EXPECT_EQ(hdf5_contents(file(a + ".h5")), hdf5_contents(file(b + ".h5")));
  }

  /// The units that a journal holds, as (input, layer); a torn last line is none.
  using Unit = std::pair<std::size_t, std::int64_t>;
  std::vector<Unit> units(const std::string& journal) const {
    std::vector<Unit> found;
    if (!std::filesystem::exists(file(journal)) || std::filesystem::is_empty(file(journal))) {
      return found;
    }
    JournalReader(file(journal)).read([&](nlohmann::json&& entry) {
      if (is_layer_entry(entry)) found.push_back(layer_entry_unit(entry));
    });
    return found;
  }

  /// How often each unit stands in the journals whose names begin with `prefix`.
  std::map<Unit, int> count_units(const std::string& prefix) const {
    std::map<Unit, int> counts;
    for (const auto& entry : std::filesystem::directory_iterator(path())) {
      const std::string name = entry.path().filename().string();
      if (!name.starts_with(prefix) || !name.ends_with(".journal")) continue;
      for (const Unit& unit : units(name)) ++counts[unit];
    }
    return counts;
  }

 private:
  std::string json_of(const std::string& out) const {
    auto json = nlohmann::ordered_json::parse(without_times(file(out + ".json")));
    auto& command = json.at("command");
    const auto output = std::find(command.begin(), command.end(), "-o");
    if (output == command.end()) throw std::runtime_error("a command without output");
    *(output + 1) = "OUT";
    return json.dump(1);
  }

  TemporaryFolder folder_;
};

}  // namespace sw::testing
