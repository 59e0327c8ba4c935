#pragma once

#include <functional>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "eval/model_run.hpp"
#include "eval/sweep.hpp"

/// A sweep of a model over tasks. The unit is one sample or window with all arms, which share its
/// prompt and, where the prefill is dense, its prefill.
namespace sw {

class ModelSweep final : public Sweep {
 public:
  /// What is given has to outlive the sweep. `load` gives the model when the first unit is run; it
  /// is kept from then on. Throws Error(kUsage) and Error(kInput) as count_samples does.
  ModelSweep(std::function<std::unique_ptr<const Model>()> load, const Tokenizer& tokenizer,
             std::span<const Task> tasks, std::span<const Arm> arms, const Backend& backend,
             const ModelRunOptions& options);

  const std::vector<SweepUnit>& units() const override { return units_; }
  void note(const nlohmann::json& entry) override;
  bool finished(std::size_t unit) const override { return done_[unit].size() == arms_.size(); }
  double seconds(std::size_t unit) const override { return finished(unit) ? seconds_[unit] : 0.0; }
  void run(std::size_t unit, const Append& append, const Advance& advance) override;

  /// Samples or windows of each task.
  const std::vector<std::int64_t>& samples() const { return samples_; }

 private:
  struct Place {
    std::size_t task;
    std::int64_t sample;
  };

  std::vector<std::size_t> pending(std::size_t unit) const;

  std::function<std::unique_ptr<const Model>()> load_;
  const Tokenizer& tokenizer_;
  std::span<const Task> tasks_;
  std::span<const Arm> arms_;
  const Backend& backend_;
  const ModelRunOptions& options_;
  std::vector<std::int64_t> samples_;
  std::vector<std::size_t> first_unit_;  // by task
  std::vector<SweepUnit> units_;
  std::vector<Place> places_;                // by unit
  std::vector<std::set<std::size_t>> done_;  // arms, by unit
  std::vector<double> seconds_;              // by unit
  std::unique_ptr<const Model> model_;
  std::unique_ptr<ModelEvaluation> evaluation_;
};

}  // namespace sw
