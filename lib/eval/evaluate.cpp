#include "eval/evaluate.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.hpp"
#include "core/progress.hpp"
#include "core/text.hpp"
#include "eval/attribution.hpp"
#include "metric/answer_recall.hpp"
#include "metric/cosine.hpp"
#include "metric/density.hpp"
#include "metric/mass_recall.hpp"
#include "metric/oracle_gap.hpp"
#include "metric/output_error.hpp"
#include "metric/topk_recall.hpp"
#include "policy/list.hpp"

namespace sw {
namespace {

/// A policy with everything that changes while it runs over one trace.
struct Walker {
  const Policy* policy = nullptr;
  WalkState prefill;
  std::vector<WalkState> steps;  ///< one a decode step: the loop over layers is the outer one
  DecodeCache cache;             ///< of the current layer

  void prefill_scores(const ScoreContext& context, bool decode_follows, BlockScores& scores) {
    cache = DecodeCache();
    scores = policy->score_prefill(context, prefill, decode_follows ? &cache : nullptr);
  }
  void decode_scores(const ScoreContext& context, std::int64_t step, BlockScores& scores) {
    scores = policy->score_decode(context, steps[static_cast<std::size_t>(step)], cache);
  }
  /// Back to the state before the first layer.
  void forget() {
    prefill = WalkState();
    std::fill(steps.begin(), steps.end(), WalkState());
  }
};

/// What ranks the blocks of an attribution variant: the method itself, its budget over the dense
/// masses, or one of the variant policies.
constexpr std::size_t kOfMethod = kNumVariants;
constexpr std::size_t kOfMass = kNumVariants + 1;

struct Method {
  Walker main;
  std::vector<std::unique_ptr<Policy>> variant_policies;
  std::vector<Walker> variants;  ///< of the policies; variants of the same SPEC are one
  std::array<std::string, kNumVariants> variant_specs;
  std::array<std::size_t, kNumVariants> variant_source{};  ///< index in `variants`, or as above
  std::vector<std::optional<double>> densities;
  std::vector<std::size_t> prefill_cells;  ///< by density; empty when the phase is not evaluated
  std::vector<std::size_t> decode_cells;

  bool attributed() const { return !variant_specs.back().empty(); }
  bool sparse_at(std::int64_t layer) const { return layer >= main.policy->dense_layers(); }
};

/// Scores of a method and of its attribution variants for the same rows.
struct Scores {
  std::shared_ptr<BlockScores> main = std::make_shared<BlockScores>();
  std::vector<BlockScores> variants;
  StageTimes times;  ///< of the main scores
};

/// The attention problem under evaluation with its dense results, and where its values go.
struct Site {
  const AttentionProblem& problem;
  BlockGeometry geometry;
  const AttentionOutput& dense;
  const BlockMass& mass;
  AttentionOutput& scratch;  ///< for sparse outputs
  BlockMass& key_mass;       ///< decode: of single keys, empty until somebody asks
  std::int64_t column;       ///< first column in the records
  std::int64_t step;         ///< decode step or -1
};

/// Metrics that compare a selection with the best one of its size.
constexpr std::array kAgainstBest = {Metric::kOracleGap, Metric::kOracleGapSet,
                                     Metric::kTopkRecall};

/// Adds the time of its own lifetime to a number of seconds.
class AddSeconds {
 public:
  explicit AddSeconds(double& seconds) : seconds_(seconds) {}
  ~AddSeconds() { seconds_ += elapsed(); }
  AddSeconds(const AddSeconds&) = delete;
  AddSeconds& operator=(const AddSeconds&) = delete;
  double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

class TraceEvaluation::State {
 public:
  State(const TraceReader& trace, std::size_t input,
        std::span<const std::unique_ptr<Policy>> policies, const EvalOptions& options,
        const Backend& backend, Advance advance)
      : trace_(trace),
        info_(trace.info()),
        options_(options),
        backend_(backend),
        advance_(std::move(advance)),
        steps_(options.decode ? info_.total_tokens - info_.prefill_tokens : 0) {
    check_options();
    // Of outputs only their comparison is wanted.
    for (AttentionOutput* output : {&dense_, &sparse_, &step_dense_, &step_sparse_}) {
      output->keep = true;
    }
    for (const TokenSpan& span : info_.answer_spans) spans_.emplace_back(span.begin, span.end);
    for (std::int64_t layer = std::max(options.first_layer, info_.first_layer);
         layer < options.end_layer && layer <= info_.last_layer(); ++layer) {
      layers_.push_back(layer);
    }
    for (const auto& policy : policies) add_method(*policy, input);
  }

  const std::vector<std::int64_t>& layers() const { return layers_; }
  std::size_t num_cells() const { return heads_.size(); }

  std::int64_t layer_work() const {
    std::int64_t sum = kDenseWork;
    for (const Method& method : methods_) sum += work(method);
    return sum;
  }

  LayerPart evaluate(std::int64_t layer) {
    seconds_ = LayerSeconds();
    const auto found = std::find(layers_.begin(), layers_.end(), layer);
    if (found == layers_.end()) throw std::invalid_argument("a layer that is not evaluated");
    cells_ = heads_;
    {
      const AddSeconds timer(seconds_.total);
      walk_to(static_cast<std::size_t>(found - layers_.begin()));
      evaluate_here(layer);
    }
    ++next_;
    for (std::size_t c = 0; c < cells_.size(); ++c) {
      if (cells_[c].status != CellStatus::kOk) heads_[c] = cells_[c];
    }
    return {layer, std::move(cells_), seconds_};
  }

 private:
  void check_options() const {
    if (options_.block < 1) throw Error(ErrorKind::kUsage, "the block size must be at least 1");
    for (double density : options_.densities) {
      if (!(density > 0.0 && density <= 1.0)) {
        throw Error(ErrorKind::kUsage, "density " + format_double(density) + " is outside (0, 1]",
                    "0.2 keeps a fifth of the causal pairs");
      }
    }
    if (options_.decode && !options_.prefill && steps_ == 0) {
      throw Error(ErrorKind::kUsage, "'" + trace_.path() + "' has no decode steps",
                  "use --phase prefill, or capture a trace with decode steps");
    }
    if (options_.first_layer > info_.last_layer() || options_.end_layer <= info_.first_layer ||
        options_.first_layer >= options_.end_layer) {
      throw Error(ErrorKind::kUsage, "the layers asked for are not in '" + trace_.path() + "'",
                  "it holds layers " + std::to_string(info_.first_layer) + " to " +
                      std::to_string(info_.last_layer()));
    }
  }

  void add_method(const Policy& policy, std::size_t input) {
    Method method;
    method.main.policy = &policy;
    method.main.steps.resize(static_cast<std::size_t>(steps_));
    if (options_.attribution) add_variants(method);
    if (policy.takes_density()) {
      method.densities.assign(options_.densities.begin(), options_.densities.end());
    } else {
      method.densities = {std::nullopt};
    }
    for (const auto& density : method.densities) {
      if (options_.prefill) {
        method.prefill_cells.push_back(add_cell(policy, method, density, input, Phase::kPrefill));
      }
      if (steps_ > 0) {
        method.decode_cells.push_back(add_cell(policy, method, density, input, Phase::kDecode));
      }
    }
    methods_.push_back(std::move(method));
  }

  void add_variants(Method& method) const {
    const auto specs = attribution_specs(*method.main.policy, info_.head_dim);
    if (!specs) return;
    for (std::size_t v = 0; v < kNumVariants; ++v) {
      method.variant_source[v] = kOfMass;
      if ((*specs)[v].empty()) continue;
      auto policy = make_policy((*specs)[v], options_.seed);
      method.variant_specs[v] = policy->spec();
      method.variant_source[v] = kOfMethod;
      if (policy->spec() == method.main.policy->spec()) continue;
      const auto same = std::find_if(
          method.variants.begin(), method.variants.end(),
          [&](const Walker& walker) { return walker.policy->spec() == policy->spec(); });
      method.variant_source[v] =
          static_cast<std::size_t>(std::distance(method.variants.begin(), same));
      if (same != method.variants.end()) continue;
      method.variants.push_back({policy.get(), {}, method.main.steps, {}});
      method.variant_policies.push_back(std::move(policy));
    }
  }

  std::size_t add_cell(const Policy& policy, const Method& method, std::optional<double> density,
                       std::size_t input, Phase phase) {
    CellRecord cell;
    cell.method = policy.spec();
    cell.name = policy.name();
    cell.density = density;
    cell.input = input;
    cell.phase = phase;
    cell.block = options_.block;
    cell.shares_scores = method.densities.size() > 1 &&
                         (phase == Phase::kPrefill || !policy.decode_depends_on_density());
    cell.has_own_scores = !policy.needs_mass();
    if (method.attributed()) cell.attribution.emplace().specs = method.variant_specs;
    if (!method.sparse_at(layers_.back())) {
      cell.status = CellStatus::kSkipped;
      cell.reason = "all evaluated layers attend densely (dense_layers=" +
                    std::to_string(policy.dense_layers()) +
                    "); set dense_layers=0 or evaluate later layers";
    }
    heads_.push_back(std::move(cell));
    return heads_.size() - 1;
  }

  /// Values of a dense layer by identity; a sparse layer overwrites them.
  void allocate(CellRecord& cell, std::int64_t layer, bool sparse) const {
    const bool prefill = cell.phase == Phase::kPrefill;
    const std::int64_t columns =
        prefill ? BlockGeometry{options_.block, 0, info_.prefill_tokens}.rows() : steps_;
    for (const MetricInfo& metric : list_metrics()) {
      // The number of row sets is known with the first selection.
      if (metric.per_set || (metric.from_output && !options_.output_error)) continue;
      cell.metric(metric.metric) = MetricArray(1, info_.num_heads, columns, metric.dense_value);
    }
    cell.density_rows = MetricArray(1, info_.num_heads, columns, 1.0f);
    const std::int64_t context = prefill ? info_.prefill_tokens : info_.total_tokens;
    if (answer_recall(BlockSelection::dense({options_.block, context - 1, context}), spans_)) {
      cell.answer_recall = MetricArray(1, 1, prefill ? 1 : steps_, 1.0f);
    }
    if (cell.attribution) {
      cell.attribution->recall.fill(MetricArray(1, info_.num_heads, columns, 1.0f));
    }
    LayerRecord record;
    record.layer = layer;
    record.sparse = sparse;
    cell.layers.push_back(record);
  }

  static void fail(CellRecord& cell, const Error& error, std::int64_t layer) {
    if (cell.status != CellStatus::kOk) return;
    CellRecord failed;
    failed.method = cell.method;
    failed.name = cell.name;
    failed.density = cell.density;
    failed.input = cell.input;
    failed.phase = cell.phase;
    failed.block = cell.block;
    failed.status = CellStatus::kFailed;
    failed.reason = "layer " + std::to_string(layer) + ": " + error.what();
    if (!error.hint().empty()) failed.reason += " (" + error.hint() + ")";
    cell = std::move(failed);
  }

  void fail_method(Method& method, const Error& error, std::int64_t layer) {
    for (std::size_t c : method.prefill_cells) fail(cells_[c], error, layer);
    for (std::size_t c : method.decode_cells) fail(cells_[c], error, layer);
  }

  bool alive(const Method& method) const {
    const auto ok = [&](std::size_t c) { return cells_[c].status == CellStatus::kOk; };
    return std::any_of(method.prefill_cells.begin(), method.prefill_cells.end(), ok) ||
           std::any_of(method.decode_cells.begin(), method.decode_cells.end(), ok);
  }

  /// Work in hundredths of a dense attention.
  std::int64_t work(const std::optional<double>& density) const {
    return options_.output_error ? 5 + std::llround(95.0 * density.value_or(1.0)) : 5;
  }
  std::int64_t work(const Method& method) const {
    std::int64_t sum = 0;
    for (const auto& density : method.densities) sum += work(density);
    return sum;
  }

  static bool ok(const CellRecord& cell) { return cell.status == CellStatus::kOk; }
  std::int64_t count_ok(const std::vector<std::size_t>& cells) const {
    return std::count_if(cells.begin(), cells.end(), [&](std::size_t c) { return ok(cells_[c]); });
  }

  /// Brings the walks to where layer `index` needs them.
  void walk_to(std::size_t index) {
    if (index < next_) {
      for (Method& method : methods_) method.main.forget();
      next_ = 0;
    }
    const AddSeconds timer(seconds_.rebuild);
    for (; next_ < index; ++next_) {
      const std::int64_t layer = layers_[next_];
      try {
        pass(layer);
      } catch (const Error& error) {
        for (CellRecord& cell : cells_) fail(cell, error, layer);
      }
      advance_(0, "walking through layer " + std::to_string(layer));
    }
  }

  /// The scores of a layer, for what they leave to the next one.
  void pass(std::int64_t layer) {
    const auto walks = [&](const Method& method) {
      return method.main.policy->carries_walk() && method.sparse_at(layer) && alive(method);
    };
    if (std::none_of(methods_.begin(), methods_.end(), walks)) return;
    const HeadsTensor q = trace_.read(layer, TraceTensor::kQ, 0, info_.total_tokens);
    const HeadsTensor k = trace_.read(layer, TraceTensor::kK, 0, info_.total_tokens);
    const auto context = [&](std::int64_t begin, std::int64_t end) {
      const HeadsView keys = k.view().tokens_slice(0, end);
      // Scores do not read v; k has its shape.
      return AttentionProblem{q.view().tokens_slice(begin, end), keys, keys, layer};
    };
    for (Method& method : methods_) {
      if (!walks(method)) continue;
      try {
        const AttentionProblem prompt = context(0, info_.prefill_tokens);
        prompt.validate();
        require_supported(backend_, prompt);
        BlockScores ignored;
        method.main.prefill_scores({prompt, backend_, prompt.geometry(options_.block)}, steps_ > 0,
                                   ignored);
        for (std::int64_t step = 0; step < steps_; ++step) {
          const std::int64_t position = info_.prefill_tokens + step;
          const AttentionProblem problem = context(position, position + 1);
          method.main.decode_scores({problem, backend_, problem.geometry(options_.block)}, step,
                                    ignored);
        }
      } catch (const Error& error) {
        fail_method(method, error, layer);
      }
    }
  }

  void evaluate_here(std::int64_t layer) {
    if (std::none_of(cells_.begin(), cells_.end(), ok)) return;
    for (const Method& method : methods_) {
      for (const auto* cells : {&method.prefill_cells, &method.decode_cells}) {
        for (std::size_t c : *cells) {
          if (ok(cells_[c])) allocate(cells_[c], layer, method.sparse_at(layer));
        }
      }
    }
    try {
      const TraceLayer data = read(layer);
      evaluate_layer(data);
    } catch (const Error& error) {
      for (CellRecord& cell : cells_) fail(cell, error, layer);
    }
  }

  TraceLayer read(std::int64_t layer) {
    const AddSeconds timer(seconds_.read);
    TraceLayer data = trace_.layer(layer);
    seconds_.separate +=
        timer.elapsed() * static_cast<double>(std::count_if(cells_.begin(), cells_.end(), ok));
    return data;
  }

  /// Dense attention that cells of one phase share.
  void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                    AttentionOutput& output, BlockMass& mass, bool decode) {
    const AddSeconds timer(seconds_.dense);
    backend_.attend_dense(problem, geometry, output, mass);
    std::int64_t cells = 0;
    for (const Method& method : methods_) {
      cells += count_ok(decode ? method.decode_cells : method.prefill_cells);
    }
    seconds_.separate += timer.elapsed() * static_cast<double>(cells);
  }

  /// Memory for sparse outputs, which no time is to contain, unless the backend has its own.
  static void reserve(const AttentionProblem& problem, const AttentionOutput& dense,
                      AttentionOutput& sparse) {
    if (!dense.kept) sparse.reserve(problem);
  }

  void evaluate_layer(const TraceLayer& data) {
    const std::int64_t prefill = info_.prefill_tokens;
    const AttentionProblem problem{data.q.view().tokens_slice(0, prefill),
                                   data.k.view().tokens_slice(0, prefill),
                                   data.v.view().tokens_slice(0, prefill), data.layer};
    problem.validate();
    require_supported(backend_, problem);
    const BlockGeometry geometry = problem.geometry(options_.block);
    const std::string label = "layer " + std::to_string(data.layer);
    if (options_.prefill) {
      attend_dense(problem, geometry, dense_, mass_, false);
      reserve(problem, dense_, sparse_);
    }
    advance_(kDenseWork, label);
    const Site site{problem, geometry, dense_, mass_, sparse_, step_key_mass_, 0, -1};
    for (Method& method : methods_) {
      if (alive(method)) prefill_method(site, method);
      advance_(work(method), label);
    }
    for (std::int64_t step = 0; step < steps_; ++step) {
      decode_step(data, step);
      advance_(0, label);
    }
  }

  void prefill_method(const Site& site, Method& method) {
    const std::int64_t layer = site.problem.layer;
    Scores scores;
    if (method.sparse_at(layer) && (options_.prefill || !method.main.policy->needs_mass())) {
      try {
        const AddSeconds timer(seconds_.scores);
        score(site, method, scores,
              [&](Walker& walker, const ScoreContext& context, BlockScores& out) {
                walker.prefill_scores(context, steps_ > 0, out);
              });
        // Decode needs what the prefill leaves.
        seconds_.separate += timer.elapsed() * static_cast<double>(count_ok(method.prefill_cells) +
                                                                   count_ok(method.decode_cells));
      } catch (const Error& error) {
        fail_method(method, error, layer);
        return;
      }
    }
    for (std::size_t d = 0; d < method.prefill_cells.size(); ++d) {
      evaluate_cell(site, method, scores, method.densities[d], cells_[method.prefill_cells[d]]);
      advance_(0, method.main.policy->name());  // whoever wants to stop need not wait for all
    }
  }

  void decode_step(const TraceLayer& data, std::int64_t step) {
    const std::int64_t position = info_.prefill_tokens + step;
    const AttentionProblem problem{data.q.view().tokens_slice(position, position + 1),
                                   data.k.view().tokens_slice(0, position + 1),
                                   data.v.view().tokens_slice(0, position + 1), data.layer};
    const BlockGeometry geometry = problem.geometry(options_.block);
    attend_dense(problem, geometry, step_dense_, step_mass_, true);
    reserve(problem, step_dense_, step_sparse_);
    step_key_mass_ = BlockMass();
    const Site site{problem,      geometry,       step_dense_, step_mass_,
                    step_sparse_, step_key_mass_, step,        step};
    for (Method& method : methods_) {
      if (!alive(method)) continue;
      Scores scores;
      for (std::size_t d = 0; d < method.decode_cells.size(); ++d) {
        if (d == 0 || method.main.policy->decode_depends_on_density()) {
          scores = Scores();
          try {
            if (method.sparse_at(data.layer)) {
              const AddSeconds timer(seconds_.scores);
              score_step(site, method, scores, method.densities[d].value_or(1.0));
              const std::int64_t sharers = method.main.policy->decode_depends_on_density()
                                               ? 1
                                               : count_ok(method.decode_cells);
              seconds_.separate += timer.elapsed() * static_cast<double>(sharers);
            }
          } catch (const Error& error) {
            fail_method(method, error, data.layer);
            break;
          }
        }
        evaluate_cell(site, method, scores, method.densities[d], cells_[method.decode_cells[d]]);
      }
    }
  }

  void score_step(const Site& site, Method& method, Scores& scores, double density) const {
    score(
        site, method, scores,
        [&](Walker& walker, const ScoreContext& context, BlockScores& out) {
          walker.decode_scores(context, site.step, out);
        },
        density);
  }

  /// Runs `body` for the method (timed) and its attribution variants (not timed).
  template <class Body>
  void score(const Site& site, Method& method, Scores& scores, Body body,
             double density = 1.0) const {
    ScoreContext context{site.problem, backend_, site.geometry, nullptr, nullptr, density};
    if (method.main.policy->needs_mass()) context.mass = &site.mass;
    scores.variants.resize(method.variants.size());
    for (std::size_t v = 0; v < method.variants.size(); ++v) {
      body(method.variants[v], context, scores.variants[v]);
    }
    context.times = &scores.times;
    body(method.main, context, *scores.main);
  }

  BlockSelection select(const Site& site, const Policy& policy, const BlockScores& scores,
                        const std::optional<double>& density) const {
    return select_blocks(scores, site.geometry, policy.budget(), density.value_or(1.0),
                         site.step < 0 ? Phase::kPrefill : Phase::kDecode);
  }

  /// Recall of any selection; runs attention where block masses do not give it.
  BlockGrid recall(const Site& site, const BlockSelection& selection) const {
    if (selection.only_blocks()) return mass_recall(site.mass, selection);
    backend_.attend(site.problem, selection, site.scratch);
    return mass_recall(site.dense.lse, site.scratch.lse, site.geometry);
  }

  void evaluate_cell(const Site& site, const Method& method, const Scores& scores,
                     const std::optional<double>& density, CellRecord& cell) {
    if (cell.status != CellStatus::kOk) return;
    const AddSeconds own(seconds_.separate);
    try {
      LayerRecord& layer = cell.layers.front();
      if (!layer.sparse) {
        count(site, BlockSelection::dense(site.geometry), layer);
        return;
      }
      TimeSample sample{layer.layer, site.step, scores.times, false};
      BlockSelection selection;
      {
        const AddSeconds timer(seconds_.attention);
        {
          const StageTimer stage(&sample.times, Stage::kSelect);
          selection = select(site, *method.main.policy, *scores.main, density);
        }
        sample.attended = options_.output_error || !selection.only_blocks();
      }
      {
        const AddSeconds timer(seconds_.metrics);
        if (cell.attribution) {
          attribute(site, method, scores, density, selection, *cell.attribution);
        }
      }
      if (sample.attended) {
        const AddSeconds timer(seconds_.attention);
        const StageTimer stage(&sample.times, Stage::kAttention);
        backend_.attend(site.problem, selection, site.scratch);
      }
      cell.times.push_back(sample);
      const AddSeconds timer(seconds_.metrics);
      count(site, selection, layer);
      measure(site, selection, cell);
      if (options_.save_selection) save(site, std::move(selection), scores, cell);
    } catch (const Error& error) {
      fail(cell, error, site.problem.layer);
    }
  }

  void attribute(const Site& site, const Method& method, const Scores& scores,
                 const std::optional<double>& density, const BlockSelection& selection,
                 AttributionRecord& record) const {
    const auto set = [&](std::size_t variant, const BlockGrid& grid) {
      record.recall[variant].set(0, site.column, grid);
    };
    // One recall for each set of scores, however many variants it serves.
    std::array<std::optional<BlockGrid>, kNumVariants + 2> recalls;
    for (std::size_t v = 0; v < kNumVariants; ++v) {
      if (static_cast<Variant>(v) == Variant::kBestPerHead) {
        set(v, recall_best_per_head(site.mass, selection));
        continue;
      }
      const std::size_t source = method.variant_source[v];
      std::optional<BlockGrid>& found = recalls[source];
      if (!found && source == kOfMethod) found = recall(site, selection);
      if (!found && source == kOfMass) {
        found = recall(site, select(site, *method.main.policy,
                                    scores_of_mass(site.mass, selection.groups()), density));
      }
      if (!found) {
        found = recall(
            site, select(site, *method.variants[source].policy, scores.variants[source], density));
      }
      set(v, *found);
    }
  }

  void count(const Site& site, const BlockSelection& selection, LayerRecord& layer) const {
    layer.pairs = add(layer.pairs, count_per_head(selection, info_.num_heads));
    if (const auto share = selection.calibrated_share()) layer.calibrated_shares.push_back(*share);
    if (site.step < 0) return;
    for (std::int64_t read : kv_tokens_read(selection, info_.num_heads, info_.num_kv_heads)) {
      layer.kv_tokens_read += read;
      layer.kv_tokens_context += site.geometry.tokens;
    }
  }

  /// Fills the columns of this site; the scratch output holds the sparse attention if it was run.
  void measure(const Site& site, const BlockSelection& selection, CellRecord& cell) const {
    const std::int64_t groups = selection.groups();
    if (cell.metric(Metric::kOracleGapSet).empty()) {
      cell.row_sets = groups;
      for (const MetricInfo& metric : list_metrics()) {
        if (!metric.per_set) continue;
        cell.metric(metric.metric) = MetricArray(1, groups, cell.columns(), metric.dense_value);
      }
    }
    const auto set = [&](Metric metric, const BlockGrid& grid) {
      cell.metric(metric).set(0, site.column, grid);
    };
    const BlockGrid recalled = selection.only_blocks()
                                   ? mass_recall(site.mass, selection)
                                   : mass_recall(site.dense.lse, site.scratch.lse, site.geometry);
    set(Metric::kMassRecall, recalled);
    const auto against_best = [&](const BlockMass& mass, const BlockSelection& own) {
      const BlockSelection best = best_selection(mass, own);
      const BlockGrid gap = oracle_gap(mass, best, recalled);
      set(Metric::kOracleGap, gap);
      set(Metric::kOracleGapSet, oracle_gap_of_sets(gap, groups));
      set(Metric::kTopkRecall, topk_recall(own, best));
    };
    if (!selection.has_tokens() && !cell.selects_keys) {
      against_best(site.mass, selection);
    } else if (site.step >= 0) {
      against_best(masses_of_keys(site), selection.in_keys());
    } else {
      // The best mix of blocks and single keys needs the mass of every (row, key) pair.
      for (const Metric metric : kAgainstBest) cell.metric(metric) = MetricArray();
    }
    cell.selects_keys = cell.selects_keys || selection.has_tokens();
    if (options_.output_error) {
      const OutputComparison outputs = backend_.compare(site.dense, site.scratch, site.geometry);
      set(Metric::kOutputError, output_error(outputs));
      set(Metric::kCosine, output_cosine(outputs));
    }
    cell.density_rows.set(0, site.column, row_density(selection, info_.num_heads));
    if (!cell.answer_recall.empty()) {
      const auto value = answer_recall(selection, spans_);
      cell.answer_recall(0, 0, std::max<std::int64_t>(site.step, 0)) =
          static_cast<float>(value.value_or(1.0));
    }
  }

  /// Dense probability of every key of a decode step.
  const BlockMass& masses_of_keys(const Site& site) const {
    if (site.key_mass.values.empty()) {
      AttentionOutput output;
      backend_.attend_dense(site.problem, site.problem.geometry(1), output, site.key_mass);
    }
    return site.key_mass;
  }

  void save(const Site& site, BlockSelection selection, const Scores& scores,
            CellRecord& cell) const {
    if (cell.saved.empty() || cell.saved.back().layer != site.problem.layer) {
      cell.saved.push_back({site.problem.layer, {}, nullptr});
      if (site.step < 0 && !scores.main->values.empty()) cell.saved.back().scores = scores.main;
    }
    cell.saved.back().selections.push_back(std::move(selection));
  }

  static constexpr std::int64_t kDenseWork = 150;

  const TraceReader& trace_;
  const TraceInfo& info_;
  const EvalOptions& options_;
  const Backend& backend_;
  Advance advance_;
  std::int64_t steps_;
  std::vector<std::pair<std::int64_t, std::int64_t>> spans_;
  std::vector<std::int64_t> layers_;
  std::vector<Method> methods_;
  std::vector<CellRecord> heads_;  ///< what each cell is, and how it ended if it has
  std::vector<CellRecord> cells_;  ///< of the current layer
  LayerSeconds seconds_;           ///< of the current layer
  std::size_t next_ = 0;           ///< the walks stand before this layer
  AttentionOutput dense_;
  AttentionOutput sparse_;
  BlockMass mass_;
  AttentionOutput step_dense_;
  AttentionOutput step_sparse_;
  BlockMass step_mass_;
  BlockMass step_key_mass_;
};

LayerSeconds operator+(const LayerSeconds& a, const LayerSeconds& b) {
  return {a.read + b.read,     a.rebuild + b.rebuild,     a.dense + b.dense,
          a.scores + b.scores, a.attention + b.attention, a.metrics + b.metrics,
          a.total + b.total,   a.separate + b.separate};
}

TraceEvaluation::TraceEvaluation(const TraceReader& trace, std::size_t input,
                                 std::span<const std::unique_ptr<Policy>> policies,
                                 const EvalOptions& options, const Backend& backend,
                                 Advance advance)
    : state_(
          std::make_unique<State>(trace, input, policies, options, backend, std::move(advance))) {}
TraceEvaluation::~TraceEvaluation() = default;
TraceEvaluation::TraceEvaluation(TraceEvaluation&&) noexcept = default;

const std::vector<std::int64_t>& TraceEvaluation::layers() const { return state_->layers(); }
std::int64_t TraceEvaluation::layer_work() const { return state_->layer_work(); }
std::size_t TraceEvaluation::num_cells() const { return state_->num_cells(); }
LayerPart TraceEvaluation::evaluate(std::int64_t layer) { return state_->evaluate(layer); }

namespace {

[[noreturn]] void mismatch(std::int64_t layer, const std::string& what) {
  throw Error(ErrorKind::kInput,
              "layer " + std::to_string(layer) + " cannot be joined to the layers before: " + what,
              "its part is of another run; run the sweep again with another -o");
}

void join_array(MetricArray& array, const MetricArray& part, std::int64_t layer) {
  if (part.units != array.units || part.columns != array.columns) {
    mismatch(layer, "an array has another shape");
  }
  array.layers += part.layers;
  array.values.insert(array.values.end(), part.values.begin(), part.values.end());
}

/// Arrays over row sets exist from the first sparse layer on; layers before it have their values by
/// identity.
void join_sets(CellRecord& cell, CellRecord& part, std::int64_t layer) {
  for (const MetricInfo& metric : list_metrics()) {
    if (!metric.per_set) continue;
    MetricArray& array = cell.metric(metric.metric);
    MetricArray& added = part.metric(metric.metric);
    if (array.empty() && added.empty()) continue;
    const MetricArray& shape = array.empty() ? added : array;
    const auto dense = [&](std::int64_t layers) {
      return MetricArray(layers, shape.units, shape.columns, metric.dense_value);
    };
    if (added.empty()) added = dense(std::ssize(part.layers));
    if (array.empty()) {
      array = dense(std::ssize(cell.layers));
    }
    join_array(array, added, layer);
  }
}

void join_cell(CellRecord& cell, CellRecord&& part, std::int64_t layer) {
  if (cell.method != part.method || cell.density != part.density || cell.phase != part.phase) {
    mismatch(layer, "it has other cells");
  }
  if (cell.status != CellStatus::kOk) return;
  if (part.status != CellStatus::kOk) {
    cell = std::move(part);
    return;
  }
  if (cell.attribution.has_value() != part.attribution.has_value()) {
    mismatch(layer, "it has other arrays");
  }
  cell.row_sets = std::max(cell.row_sets, part.row_sets);  // a dense layer has one
  cell.selects_keys = cell.selects_keys || part.selects_keys;
  if (cell.selects_keys && cell.phase == Phase::kPrefill) {  // in no layer, then
    for (const Metric metric : kAgainstBest) {
      cell.metric(metric) = MetricArray();
      part.metric(metric) = MetricArray();
    }
  }
  join_sets(cell, part, layer);
  for (const MetricInfo& metric : list_metrics()) {
    if (metric.per_set) continue;
    join_array(cell.metric(metric.metric), part.metric(metric.metric), layer);
  }
  join_array(cell.density_rows, part.density_rows, layer);
  join_array(cell.answer_recall, part.answer_recall, layer);
  if (cell.attribution) {
    for (std::size_t v = 0; v < kNumVariants; ++v) {
      join_array(cell.attribution->recall[v], part.attribution->recall[v], layer);
    }
  }
  const auto append = [](auto& to, auto&& from) {
    std::move(from.begin(), from.end(), std::back_inserter(to));
  };
  append(cell.layers, part.layers);
  append(cell.times, part.times);
  append(cell.saved, part.saved);
}

}  // namespace

std::vector<CellRecord> join_layers(std::vector<LayerPart> parts) {
  if (parts.empty()) throw Error(ErrorKind::kInput, "there are no layers to join");
  std::vector<CellRecord> cells = std::move(parts.front().cells);
  for (LayerPart& part : std::span(parts).subspan(1)) {
    if (part.cells.size() != cells.size()) mismatch(part.layer, "it has other cells");
    for (std::size_t c = 0; c < cells.size(); ++c) {
      join_cell(cells[c], std::move(part.cells[c]), part.layer);
    }
    part.cells = {};
  }
  return cells;
}

std::vector<CellRecord> evaluate_trace(const TraceReader& trace, std::size_t input,
                                       std::span<const std::unique_ptr<Policy>> policies,
                                       const EvalOptions& options, const Backend& backend,
                                       bool quiet) {
  std::optional<Progress> progress;
  TraceEvaluation evaluation(
      trace, input, policies, options, backend,
      [&](std::int64_t work, const std::string& where) { progress->advance(work, where); });
  progress.emplace("evaluating", evaluation.layer_work() * std::ssize(evaluation.layers()), quiet);
  std::vector<LayerPart> parts;
  for (std::int64_t layer : evaluation.layers()) parts.push_back(evaluation.evaluate(layer));
  return join_layers(std::move(parts));
}

}  // namespace sw
