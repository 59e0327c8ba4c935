#include "sweep_job.hpp"

#include <chrono>
#include <functional>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/backend_choice.hpp"
#include "common/evaluation.hpp"
#include "core/progress.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/model_sweep.hpp"
#include "eval/trace_sweep.hpp"
#include "report/sweep_head.hpp"

namespace sw {
namespace {

/// The command that runs the whole sweep, whatever part of it this process was told to run, and
/// from a file or not.
std::vector<std::string> canonical_command(const Experiment& experiment,
                                           const CommonOptions& common, const ReportPaths& paths) {
  std::vector<std::string> command = {"sw-sweep"};
  const std::vector<std::string> arguments = to_arguments(experiment);
  command.insert(command.end(), arguments.begin(), arguments.end());
  const CommonOptions usual;
  if (common.backend != usual.backend) command.insert(command.end(), {"--backend", common.backend});
  if (common.cpu_isa != usual.cpu_isa) command.insert(command.end(), {"--cpu-isa", common.cpu_isa});
  if (common.seed != usual.seed) {
    command.insert(command.end(), {"--seed", std::to_string(common.seed)});
  }
  command.insert(command.end(), {"-o", paths.json.substr(0, paths.json.size() - 5)});
  return command;
}

std::string program_hash() { return sha256_of_file("/proc/self/exe"); }

void print_units(std::ostream& out, const Sweep& sweep, const Shard& shard,
                 double seconds_of_cost) {
  const std::vector<std::size_t> units = shard_units(sweep.units(), shard);
  double cost = 0.0;
  for (std::size_t unit : units) cost += sweep.units()[unit].cost;
  out << "Units of work: " << sweep.units().size();
  if (!shard.whole()) {
    out << ", " << units.size() << " of them in shard " << shard.text();
    if (!units.empty()) {
      out << " (" << sweep.units()[units.front()].name << " to " << sweep.units()[units.back()].name
          << ")";
    }
  }
  out << "\nTime: about " << format_duration(cost * seconds_of_cost)
      << " on this machine as it is now\n";
}

class TraceJob final : public SweepJob {
 public:
  TraceJob(const TraceExperiment& experiment, const CommonOptions& common, const ReportPaths& paths)
      : options_(eval_options(experiment, common.seed)),
        policies_(make_policies(experiment.methods, common.seed)),
        backend_(make_backend(common.backend, common.cpu_isa)) {
    for (const std::string& file : experiment.files) traces_.emplace_back(file);
    head_.created = utc_now();
    head_.command = canonical_command(experiment, common, paths);
    head_.environment = describe_environment(*backend_);
    head_.protocol = trace_protocol(experiment, options_, policies_);
    sweep_.emplace(traces_, policies_, options_, *backend_);
  }

  Sweep& sweep() override { return *sweep_; }
  nlohmann::json identity(const Shard& shard) override {
    return sweep_identity(head(), program_hash(), shard);
  }
  nlohmann::json begin() override { return begin_entry(head()); }

  void print_plan(std::ostream& out, const Shard& shard) override {
    constexpr std::int64_t kCalibrationTokens = 2048;
    out << "Traces: " << traces_.size() << "\n";
    for (const TraceReader& trace : traces_) {
      const TraceInfo& info = trace.info();
      out << "  " << trace.path() << ": layers " << info.first_layer << " to " << info.last_layer()
          << ", " << info.num_heads << "/" << info.num_kv_heads << " heads of " << info.head_dim
          << ", " << info.prefill_tokens << " tokens, " << info.total_tokens - info.prefill_tokens
          << " decode steps\n";
    }
    out << "Methods: " << policies_.size() << "\n";
    for (const auto& policy : policies_) out << "  " << policy->spec() << "\n";
    out << "Densities: " << options_.densities.size() << " (";
    for (std::size_t i = 0; i < options_.densities.size(); ++i) {
      out << (i > 0 ? " " : "") << format_double(options_.densities[i]);
    }
    out << ")\nCells: " << sweep_->num_cells() << "\n";
    print_units(out, *sweep_, shard, sweep_->calibrate(kCalibrationTokens));
    const auto bytes = [](double value) { return format_bytes(static_cast<std::uint64_t>(value)); };
    out << "Memory: about " << bytes(sweep_->unit_bytes()) << " for the largest unit, "
        << bytes(2.0 * sweep_->record_bytes()) << " when the report is written\n"
        << "Journal: about " << bytes(sweep_->record_bytes() * 4.0 / 3.0) << "\n";
  }

 private:
  const Report& head() {
    if (head_.inputs.empty()) {
      for (const TraceReader& trace : traces_) head_.inputs.push_back(describe(trace));
    }
    return head_;
  }

  EvalOptions options_;
  std::vector<std::unique_ptr<Policy>> policies_;
  std::unique_ptr<Backend> backend_;
  std::vector<TraceReader> traces_;
  Report head_;
  std::optional<TraceSweep> sweep_;
};

class ModelJob final : public SweepJob {
 public:
  ModelJob(const ModelExperiment& experiment, const CommonOptions& common, const ReportPaths& paths)
      : backend_(make_backend(common.backend, common.cpu_isa)),
        setup_(open_model(experiment, common.seed, *backend_)) {
    setup_.head.command = canonical_command(experiment, common, paths);
    sweep_.emplace([this] { return load(); }, *setup_.tokenizer, setup_.tasks, setup_.arms,
                   *backend_, setup_.run);
  }

  Sweep& sweep() override { return *sweep_; }
  nlohmann::json identity(const Shard& shard) override {
    return sweep_identity(setup_.head, task_specs(setup_.tasks), program_hash(), shard);
  }
  nlohmann::json begin() override { return begin_entry(setup_.head, sweep_->samples()); }

  void print_plan(std::ostream& out, const Shard& shard) override {
    const ModelConfig& config = setup_.checkpoint->config();
    out << "Model: " << config.name << ", " << config.layers << " layers, " << config.heads << "/"
        << config.kv_heads << " heads of " << config.head_dim << "; context " << setup_.run.context
        << "\nTasks: " << setup_.tasks.size() << "\n";
    for (std::size_t t = 0; t < setup_.tasks.size(); ++t) {
      out << "  " << setup_.tasks[t].name() << ": " << sweep_->samples()[t]
          << (setup_.tasks[t].scorer() == nullptr ? " windows\n" : " samples\n");
    }
    out << "Arms: " << setup_.arms.size() << "\n";
    for (const Arm& arm : setup_.arms) out << "  " << arm.label() << "\n";
    out << "Cells: " << setup_.tasks.size() * setup_.arms.size() << "\n";
    print_units(out, *sweep_, shard, calibrate());
    out << "Memory: about "
        << format_bytes(estimated_weight_bytes(config, setup_.compute) +
                        kv_cache_bytes(config, setup_.compute, setup_.run.context))
        << " for weights and KV cache\n";
  }

 private:
  std::unique_ptr<const Model> load() const {
    return std::make_unique<Model>(setup_.checkpoint, setup_.compute);
  }

  /// Seconds of a token in a short dense prefill; costs of units are counted in tokens.
  double calibrate() const {
    constexpr std::int64_t kTokens = 256;
    const auto model = load();
    ArmAttention attention(setup_.arms.front(), *backend_, setup_.run.block,
                           model->config().layers);
    SessionOptions options;
    options.capacity = kTokens;
    Session session(*model, std::ref(attention), options);
    const std::vector<std::int32_t> ids(kTokens, 0);
    double best = std::numeric_limits<double>::infinity();
    for (int run = 0; run < 2; ++run) {  // the first one warms up
      attention.begin();
      session.rewind(0);
      const auto start = std::chrono::steady_clock::now();
      session.run(ids);
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      best = std::min(best, elapsed.count());
    }
    return best / static_cast<double>(kTokens);
  }

  std::unique_ptr<Backend> backend_;
  ModelSetup setup_;
  std::optional<ModelSweep> sweep_;
};

}  // namespace

std::unique_ptr<SweepJob> open_job(const Experiment& experiment, const CommonOptions& common,
                                   const ReportPaths& paths) {
  if (const auto* trace = std::get_if<TraceExperiment>(&experiment)) {
    return std::make_unique<TraceJob>(*trace, common, paths);
  }
  return std::make_unique<ModelJob>(std::get<ModelExperiment>(experiment), common, paths);
}

}  // namespace sw
