#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "eval/evaluate.hpp"
#include "eval/sweep.hpp"

/// A sweep of traces. The unit is one layer of one input for the cells of all methods and
/// densities, which share the layer, its dense attention and masses, and each method's scores.
namespace sw {

class TraceSweep final : public Sweep {
 public:
  /// What is given has to outlive the sweep. Throws Error(kUsage) as TraceEvaluation does.
  TraceSweep(std::span<const TraceReader> traces, std::span<const std::unique_ptr<Policy>> policies,
             const EvalOptions& options, const Backend& backend);

  const std::vector<SweepUnit>& units() const override { return units_; }
  void note(const nlohmann::json& entry) override;
  bool finished(std::size_t unit) const override { return seconds_[unit].has_value(); }
  double seconds(std::size_t unit) const override { return seconds_[unit].value_or(0.0); }
  void run(std::size_t unit, const Append& append, const Advance& advance) override;

  std::size_t num_cells() const { return num_cells_; }
  /// Bytes of all arrays of the report, which are in memory when it is written.
  double record_bytes() const { return record_bytes_; }
  /// Bytes that the largest unit needs beside them: a layer, its outputs and its block masses.
  double unit_bytes() const { return unit_bytes_; }
  /// Seconds for a unit of cost 1, from dense attention over at most `tokens` tokens of the first
  /// input. Throws what reading and computing it throw.
  double calibrate(std::int64_t tokens) const;

 private:
  struct Place {
    std::size_t input;
    std::int64_t layer;
  };

  TraceEvaluation evaluation(std::size_t input);
  void estimate_memory(std::size_t input, const TraceEvaluation& evaluation);

  std::span<const TraceReader> traces_;
  std::span<const std::unique_ptr<Policy>> policies_;
  const EvalOptions& options_;
  const Backend& backend_;
  std::vector<SweepUnit> units_;
  std::vector<Place> places_;                   // by unit
  std::vector<std::size_t> first_unit_;         // by input
  std::vector<std::int64_t> first_layer_;       // by input: of its first unit
  std::vector<std::optional<double>> seconds_;  // by unit
  std::size_t num_cells_ = 0;
  double record_bytes_ = 0.0;
  double unit_bytes_ = 0.0;
  std::size_t current_input_ = 0;
  std::optional<TraceEvaluation> current_;  // of current_input_
  TraceEvaluation::Advance advance_;
  double mark_ = 0.0;  // when the last unit ended
};

}  // namespace sw
