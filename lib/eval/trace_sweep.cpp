#include "eval/trace_sweep.hpp"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "eval/layer_entry.hpp"

namespace sw {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Multiplications of one dense causal attention, in millions.
double dense_cost(std::int64_t heads, std::int64_t dim, std::int64_t tokens) {
  return static_cast<double>(heads * dim) * static_cast<double>(tokens) *
         static_cast<double>(tokens) / 1e6;
}

double dense_cost(const TraceInfo& info, const EvalOptions& options) {
  const double prefill =
      options.prefill ? dense_cost(info.num_heads, info.head_dim, info.prefill_tokens) : 0.0;
  const std::int64_t steps = options.decode ? info.total_tokens - info.prefill_tokens : 0;
  const double step = static_cast<double>(info.num_heads * info.head_dim * info.total_tokens) / 1e6;
  return prefill + static_cast<double>(steps) * step;
}

}  // namespace

TraceSweep::TraceSweep(std::span<const TraceReader> traces,
                       std::span<const std::unique_ptr<Policy>> policies,
                       const EvalOptions& options, const Backend& backend)
    : traces_(traces), policies_(policies), options_(options), backend_(backend), mark_(now()) {
  for (std::size_t i = 0; i < traces.size(); ++i) {
    const TraceEvaluation planned = evaluation(i);
    const double cost =
        dense_cost(traces[i].info(), options) * static_cast<double>(planned.layer_work()) / 100.0;
    const std::string file = std::filesystem::path(traces[i].path()).filename().string();
    first_unit_.push_back(units_.size());
    first_layer_.push_back(planned.layers().front());
    for (std::int64_t layer : planned.layers()) {
      units_.push_back({"layer " + std::to_string(layer) + " of " + file, cost});
      places_.push_back({i, layer});
    }
    num_cells_ += planned.num_cells();
    estimate_memory(i, planned);
  }
  seconds_.resize(units_.size());
}

TraceEvaluation TraceSweep::evaluation(std::size_t input) {
  return TraceEvaluation(
      traces_[input], input, policies_, options_, backend_,
      [this](std::int64_t work, const std::string& where) { advance_(work, where); });
}

void TraceSweep::estimate_memory(std::size_t input, const TraceEvaluation& planned) {
  const TraceInfo& info = traces_[input].info();
  const auto blocks =
      static_cast<double>(BlockGeometry{options_.block, 0, info.prefill_tokens}.rows());
  const auto heads = static_cast<double>(info.num_heads);
  // Five arrays over heads and two over row sets; those of the attribution, where there are any.
  record_bytes_ +=
      static_cast<double>(planned.num_cells()) * static_cast<double>(planned.layers().size()) *
      (options_.attribution ? 7.0 + kNumVariants : 7.0) * heads * blocks * sizeof(float);
  const double tokens = static_cast<double>(info.total_tokens) * static_cast<double>(info.head_dim);
  const double layer = tokens * (heads + 2.0 * static_cast<double>(info.num_kv_heads)) *
                       static_cast<double>(dtype_size(info.dtype));
  const double outputs =
      2.0 * heads *
      (tokens * sizeof(float) + static_cast<double>(info.total_tokens) * sizeof(double));
  const double masses = heads * blocks * blocks * sizeof(float);
  // Scores and walk states of every method are matrices of doubles.
  const double scores =
      3.0 * static_cast<double>(policies_.size()) * blocks * blocks * sizeof(double);
  unit_bytes_ = std::max(unit_bytes_, layer + outputs + masses + scores);
}

void TraceSweep::note(const nlohmann::json& entry) {
  if (!is_layer_entry(entry)) return;
  const auto [input, layer] = layer_entry_unit(entry);
  const std::size_t unit =
      input < traces_.size()
          ? first_unit_[input] + static_cast<std::size_t>(layer - first_layer_[input])
          : units_.size();
  if (unit >= units_.size() || places_[unit].input != input || places_[unit].layer != layer) {
    throw Error(ErrorKind::kInput,
                "the journal holds layer " + std::to_string(layer) + " of input " +
                    std::to_string(input) + ", which this sweep has not",
                "delete the journal, or choose another -o");
  }
  seconds_[unit] = layer_entry_seconds(entry);
}

void TraceSweep::run(std::size_t unit, const Append& append, const Advance& advance) {
  const std::size_t input = places_[unit].input;
  if (!current_ || current_input_ != input) {
    current_.reset();
    current_.emplace(evaluation(input));
    current_input_ = input;
  }
  const auto all = static_cast<double>(current_->layer_work());
  advance_ = [&](std::int64_t work, const std::string& where) {
    advance(static_cast<double>(work) / all, traces_[input].path() + ", " + where);
  };
  LayerEntry entry{input, current_->evaluate(places_[unit].layer)};
  const double end = now();
  entry.part.seconds.total = end - mark_;
  mark_ = end;
  append(to_json(entry));
}

double TraceSweep::calibrate(std::int64_t tokens) const {
  const TraceReader& trace = traces_.front();
  const TraceInfo& info = trace.info();
  const std::int64_t n = std::min(tokens, info.prefill_tokens);
  const auto read = [&](TraceTensor tensor) { return trace.read(info.first_layer, tensor, 0, n); };
  const HeadsTensor q = read(TraceTensor::kQ);
  const HeadsTensor k = read(TraceTensor::kK);
  const HeadsTensor v = read(TraceTensor::kV);
  const AttentionProblem problem{q.view(), k.view(), v.view(), info.first_layer};
  require_supported(backend_, problem);
  AttentionOutput output;
  BlockMass mass;
  double best = 0.0;
  for (int run = 0; run < 3; ++run) {  // the first one warms up
    const double start = now();
    backend_.attend_dense(problem, problem.geometry(options_.block), output, mass);
    const double seconds = now() - start;
    best = run == 0 ? seconds : std::min(best, seconds);
  }
  return best / dense_cost(info.num_heads, info.head_dim, n);
}

}  // namespace sw
