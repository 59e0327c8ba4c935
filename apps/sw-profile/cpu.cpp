#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "core/text.hpp"
#include "cpu_roofline.hpp"
#include "policy/list.hpp"
#include "policy/sketchwalk.hpp"
#include "report/report.hpp"
#include "shared.hpp"

namespace sw {
namespace {

using Clock = std::chrono::steady_clock;

/// Index of the first layer that is timed; the walk state comes from the layer before.
constexpr std::int64_t kLayer = 2;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Pushes everything else out of the caches before a run.
class CacheFlush {
 public:
  CacheFlush() : buffer_(std::size_t{128} << 20, 1) {}
  void operator()() {
    constexpr std::int64_t kPart = std::int64_t{1} << 20;
    parallel_for(std::ssize(buffer_) / kPart, [&](std::int64_t i, int) {
      for (std::int64_t at = i * kPart; at < (i + 1) * kPart; at += 64) ++buffer_[at];
    });
  }

 private:
  std::vector<unsigned char> buffer_;
};

/// One density of one shape: indices of its measurements.
struct Arm {
  double density = 0.0;
  std::size_t first = 0;  ///< kStageNames in order, then selection, then total
};

class CpuProfile {
 public:
  CpuProfile(const ProfileOptions& options, const CommonOptions& common, ProfileReport& report)
      : options_(options),
        seed_(common.seed),
        report_(report),
        backend_(make_backend(common.backend, common.cpu_isa)),
        policy_(make_policy(options.method, common.seed)) {
    output_.out_only = true;
  }

  const Backend& backend() const { return *backend_; }

  void run(std::int64_t tokens) {
    const DType dtype = parse_dtype(options_.dtype);
    const std::int64_t steps =
        options_.has_phase("decode") ? options_.warmup + options_.repeats : 0;
    const auto make = [&](std::int64_t heads, std::uint64_t seed) {
      return random_heads(dtype, heads, tokens + steps, options_.head_dim, seed_ + seed);
    };
    q_ = make(options_.num_heads, 1);
    k_ = make(options_.num_kv_heads, 2);
    v_ = make(options_.num_kv_heads, 3);
    shape_ = {tokens, options_.num_heads, options_.num_kv_heads, options_.head_dim, options_.block,
              1,      options_.dtype};
    if (options_.has_phase("prefill")) prefill();
    if (options_.has_phase("decode")) decode();
  }

 private:
  AttentionProblem problem(std::int64_t queries, std::int64_t context, std::int64_t layer) const {
    return {q_.view().tokens_slice(context - queries, context), k_.view().tokens_slice(0, context),
            v_.view().tokens_slice(0, context), layer};
  }

  /// Dense attention that gives block masses too, with the costs of dense attention.
  void add_masses(std::vector<Piece>& pieces, const AttentionProblem& whole,
                  const BlockGeometry& geometry, const Measurement& dense) {
    const std::size_t index = add("prefill", "masses", {});
    report_.measurements[index].flops = dense.flops;
    report_.measurements[index].bytes = dense.bytes;
    pieces.emplace_back([this, &whole, &geometry, index](std::int64_t, bool timed) {
      flush_();
      const auto start = Clock::now();
      backend_->attend_dense(whole, geometry, output_, masses_);
      if (timed) report_.measurements[index].seconds.push_back(since(start));
    });
  }

  std::size_t add(const std::string& phase, const std::string& part,
                  std::optional<double> density) {
    Measurement m;
    m.phase = phase;
    m.part = part;
    m.implementation = backend_->name() == "cpu" ? backend_->detail() : backend_->name();
    m.shape = shape_;
    m.method = density ? policy_->spec() : "dense";
    m.density = density;
    report_.measurements.push_back(std::move(m));
    return report_.measurements.size() - 1;
  }

  /// What attention over `pairs` must do: 4 d operations a pair and head, and q, k, v and the
  /// output once.
  void state_cost(Measurement& m, double pairs, double queries, double keys) const {
    const auto d = static_cast<double>(shape_.head_dim);
    const auto heads = static_cast<double>(shape_.num_heads);
    const auto size = static_cast<double>(dtype_size(parse_dtype(shape_.dtype)));
    m.flops = 4.0 * d * heads * pairs;
    m.bytes = d * (heads * queries * (size + 4.0) +
                   2.0 * static_cast<double>(shape_.num_kv_heads) * keys * size);
  }

  Arm add_arm(const std::string& phase, double density) {
    Arm arm{density, report_.measurements.size()};
    for (const char* stage : kStageNames) add(phase, stage, density);
    add(phase, "selection", density);
    add(phase, "total", density);
    return arm;
  }

  void keep(const Arm& arm, const StageTimes& times, double total) {
    double selection = 0.0;
    for (std::size_t i = 0; i < kNumStages; ++i) {
      report_.measurements[arm.first + i].seconds.push_back(times.seconds[i]);
      if (i != static_cast<std::size_t>(Stage::kAttention)) selection += times.seconds[i];
    }
    report_.measurements[arm.first + kNumStages].seconds.push_back(selection);
    report_.measurements[arm.first + kNumStages + 1].seconds.push_back(total);
  }

  Measurement& stage_of(const Arm& arm, Stage stage) {
    return report_.measurements[arm.first + static_cast<std::size_t>(stage)];
  }

  /// The method as sketchwalk with one selection for the layer, the form whose stages have stated
  /// costs; or nothing.
  std::optional<SketchWalkForm> stated_form() const {
    auto form = sketchwalk_form(options_.method, seed_);
    if (!form || form->granularity != Granularity::kLayer) return std::nullopt;
    form->sketch.block = shape_.block;
    return form;
  }

  /// What the stages of sketchwalk's selection for a prefill must do: read q and k once; score
  /// pooled queries and keys; multiply block matrices, lower triangular ones where the scores are
  /// causal.
  void state_prefill_cost(const Arm& arm) {
    const std::optional<SketchWalkForm> form = stated_form();
    if (!form) return;
    const auto of = [&](Stage stage) -> Measurement& { return stage_of(arm, stage); };
    const SketchParams& sketch = form->sketch;
    const auto tokens = static_cast<double>(shape_.tokens);
    const auto heads = static_cast<double>(shape_.num_heads);
    const auto size = static_cast<double>(dtype_size(parse_dtype(shape_.dtype)));
    of(Stage::kPool).bytes = static_cast<double>(shape_.head_dim) * tokens * size *
                             (heads + static_cast<double>(shape_.num_kv_heads));
    const double pairs = tokens / static_cast<double>(sketch.tokens_per_query()) * tokens /
                         static_cast<double>(sketch.tokens_per_key());
    const bool mean = sketch.aggregation == SketchParams::Aggregation::kHeadMean;
    of(Stage::kSketch).flops = 2.0 *
                               static_cast<double>(Sketch(sketch, kLayer, shape_.head_dim).dim()) *
                               pairs * (mean ? 1.0 : heads) / (sketch.causal ? 2.0 : 1.0);
    const double blocks = std::ceil(tokens / static_cast<double>(shape_.block));
    const double product = 2.0 * blocks * blocks * blocks / (sketch.causal ? 3.0 : 1.0);
    of(Stage::kWalk).flops = form->walk == SketchWalkForm::Walk::kNone ? 0.0
                             : form->walk == SketchWalkForm::Walk::kProduct
                                 ? product
                                 : static_cast<double>(form->degree) * product;
  }

  /// What they must do in a decode step over `tokens`. The query, where it joins the window, meets
  /// the pooled keys before the newest; all queries of the window meet the newest and a pool that
  /// ends, and are summed up over blocks: all from tables in f32, as the walk's matrix is. With
  /// head means one pooled query and one key meet all others, and the matrix is made of all logits,
  /// in f64. Joins and ends that come once in many steps are left out.
  void state_step_cost(const Arm& arm, std::int64_t tokens) {
    const std::optional<SketchWalkForm> form = stated_form();
    if (!form) return;
    const SketchParams& sketch = form->sketch;
    const auto ceil_div = [](std::int64_t a, std::int64_t b) {
      return static_cast<double>((a + b - 1) / b);
    };
    const auto heads = static_cast<double>(shape_.num_heads);
    const auto kv_heads = static_cast<double>(shape_.num_kv_heads);
    const auto dim = static_cast<double>(Sketch(sketch, kLayer, shape_.head_dim).dim());
    const double keys = ceil_div(tokens, sketch.tokens_per_key());
    const double blocks = ceil_div(tokens, shape_.block);
    const bool mean = sketch.aggregation == SketchParams::Aggregation::kHeadMean;
    Measurement& pool = stage_of(arm, Stage::kPool);
    Measurement& score = stage_of(arm, Stage::kSketch);
    const double joins = mean || form->query_stride == 1 ? 1.0 : 0.0;  // most steps have none
    pool.bytes = static_cast<double>(shape_.head_dim) *
                 static_cast<double>(dtype_size(parse_dtype(shape_.dtype))) *
                 (joins * heads + kv_heads);
    if (mean) {
      const double queries = ceil_div(tokens, sketch.tokens_per_query());
      score.flops = 2.0 * dim * (queries + keys);
      score.bytes = 8.0 * (queries * keys + blocks * blocks);
    } else {
      const auto window = static_cast<double>(std::min(form->query_window, tokens));
      const double ends = sketch.tokens_per_key() == 1 ? 1.0 : 0.0;
      pool.flops = 2.0 * dim * heads * (joins * (keys - 1.0) + ends * window);
      pool.bytes += 4.0 * dim * (joins * kv_heads * (keys - 1.0) + ends * heads * window);
      score.flops = 2.0 * heads * window * (dim + blocks);
      score.bytes = 4.0 * heads * window * (dim + blocks);
    }
    if (form->walk == SketchWalkForm::Walk::kNone) return;
    const bool damped = form->walk == SketchWalkForm::Walk::kDamped;
    Measurement& walk = stage_of(arm, Stage::kWalk);
    walk.flops = 2.0 * blocks * blocks * (damped ? static_cast<double>(form->degree) : 1.0);
    if (!mean) walk.bytes = 4.0 * blocks * blocks;  // the other one was made in this step
  }

  /// Selecting reads the score of every candidate and writes what is kept, with its parts. The
  /// stages add up to the selection where all of them are stated.
  void state_selection_cost(const Arm& arm, const BlockScores& scores,
                            const BlockSelection& selection) {
    const BlockGeometry& g = selection.geometry();
    double candidates = static_cast<double>(scores.keys.rows() * scores.keys.cols());
    if (!scores.values.empty()) {
      for (std::int64_t r = 0; r < g.rows(); ++r) {
        candidates += static_cast<double>(scores.groups * (g.first_row() + r + 1));
      }
    }
    double kept = static_cast<double>(selection.all_blocks().size());
    for (std::int64_t set = 0; selection.has_tokens() && set < selection.groups(); ++set) {
      for (std::int64_t r = 0; r < g.rows(); ++r) {
        kept += static_cast<double>(selection.tokens(set, r).size());
      }
    }
    stage_of(arm, Stage::kSelect).bytes =
        candidates * sizeof(double) + kept * (sizeof(std::int32_t) + sizeof(Part));
    if (!stated_form()) return;
    Measurement& sum = report_.measurements[arm.first + kNumStages];
    for (const Stage stage : {Stage::kPool, Stage::kSketch, Stage::kWalk, Stage::kSelect}) {
      sum.flops += stage_of(arm, stage).flops;
      sum.bytes += stage_of(arm, stage).bytes;
    }
  }

  void state_arm_cost(const Arm& arm, const BlockSelection& selection, double queries) {
    const DensityCount count = selection.count();
    double keys = 0.0;  // decode: tokens of the blocks that are read; prefill: all are
    const BlockGeometry& g = selection.geometry();
    if (g.rows() == 1) {
      for (const std::int32_t j : selection.touched_blocks(0, 0)) {
        keys += static_cast<double>(g.block_tokens(j));
      }
    } else {
      keys = static_cast<double>(g.tokens);
    }
    const double pairs =
        static_cast<double>(count.kept_total()) / static_cast<double>(selection.groups());
    for (const std::size_t i :
         {arm.first + static_cast<std::size_t>(Stage::kAttention), arm.first + kNumStages + 1}) {
      state_cost(report_.measurements[i], pairs, queries, keys);
    }
    for (std::size_t i = 0; i <= kNumStages + 1; ++i) {
      report_.measurements[arm.first + i].realised_density = count.density();
    }
  }

  void prefill() {
    const AttentionProblem whole = problem(shape_.tokens, shape_.tokens, kLayer + 1);
    require_supported(*backend_, whole);
    const BlockGeometry geometry = whole.geometry(shape_.block);
    WalkState previous;
    policy_->score_prefill({problem(shape_.tokens, shape_.tokens, kLayer), *backend_, geometry},
                           previous, nullptr);

    std::vector<Piece> pieces;
    const BlockSelection all = BlockSelection::dense(geometry);
    const std::size_t dense = add("prefill", "total", {});
    state_cost(report_.measurements[dense], static_cast<double>(all.count().causal),
               static_cast<double>(shape_.tokens), static_cast<double>(shape_.tokens));
    pieces.emplace_back([&, dense](std::int64_t, bool timed) {
      flush_();
      const auto start = Clock::now();
      backend_->attend(whole, all, output_);
      if (timed) report_.measurements[dense].seconds.push_back(since(start));
    });
    const Measurement dense_cost = report_.measurements[dense];
    add_masses(pieces, whole, geometry, dense_cost);
    for (const double density : options_.densities) {
      const Arm arm = add_arm("prefill", density);
      state_prefill_cost(arm);
      pieces.emplace_back([&, arm](std::int64_t, bool timed) {
        flush_();
        StageTimes times;
        WalkState walk = previous;
        const auto start = Clock::now();
        const BlockScores scores =
            policy_->score_prefill({whole, *backend_, geometry, nullptr, &times}, walk, nullptr);
        const BlockSelection selection =
            select(scores, geometry, arm.density, Phase::kPrefill, times);
        attend(whole, selection, times);
        if (timed) keep(arm, times, since(start));
        if (!report_.measurements[arm.first].realised_density) {
          state_selection_cost(arm, scores, selection);
          state_arm_cost(arm, selection, static_cast<double>(shape_.tokens));
        }
      });
    }
    run_rounds(pieces, options_);
  }

  /// Each round is one step further in the context.
  void decode() {
    const AttentionProblem prompt = problem(shape_.tokens, shape_.tokens, kLayer);
    std::vector<Piece> pieces;
    const std::size_t dense = add("decode", "total", {});
    state_cost(report_.measurements[dense], static_cast<double>(shape_.tokens), 1.0,
               static_cast<double>(shape_.tokens));
    pieces.emplace_back([&, dense](std::int64_t round, bool timed) {
      const AttentionProblem step = problem(1, shape_.tokens + round + 1, kLayer);
      const BlockSelection all = BlockSelection::dense(step.geometry(shape_.block));
      flush_();
      const auto start = Clock::now();
      backend_->attend(step, all, output_);
      if (timed) report_.measurements[dense].seconds.push_back(since(start));
    });
    std::vector<DecodeCache> caches(options_.densities.size());
    for (std::size_t i = 0; i < options_.densities.size(); ++i) {
      WalkState walk;
      policy_->score_prefill({prompt, *backend_, prompt.geometry(shape_.block)}, walk, &caches[i]);
      const Arm arm = add_arm("decode", options_.densities[i]);
      pieces.emplace_back([&, arm, cache = &caches[i]](std::int64_t round, bool timed) {
        const AttentionProblem step = problem(1, shape_.tokens + round + 1, kLayer);
        const BlockGeometry geometry = step.geometry(shape_.block);
        flush_();
        StageTimes times;
        WalkState none;
        const auto start = Clock::now();
        const BlockScores scores =
            policy_->score_decode({step, *backend_, geometry, nullptr, &times}, none, *cache);
        const BlockSelection selection =
            select(scores, geometry, arm.density, Phase::kDecode, times);
        attend(step, selection, times);
        if (timed) keep(arm, times, since(start));
        if (!report_.measurements[arm.first].realised_density) {
          state_step_cost(arm, step.tokens());
          state_selection_cost(arm, scores, selection);
          state_arm_cost(arm, selection, 1.0);
        }
      });
    }
    run_rounds(pieces, options_);
  }

  BlockSelection select(const BlockScores& scores, const BlockGeometry& geometry, double density,
                        Phase phase, StageTimes& times) const {
    const StageTimer timer(&times, Stage::kSelect);
    return select_blocks(scores, geometry, policy_->budget(), density, phase);
  }

  void attend(const AttentionProblem& p, const BlockSelection& selection, StageTimes& times) {
    const StageTimer timer(&times, Stage::kAttention);
    backend_->attend(p, selection, output_);
  }

  const ProfileOptions& options_;
  std::uint64_t seed_;
  ProfileReport& report_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Policy> policy_;
  CacheFlush flush_;
  HeadsTensor q_, k_, v_;
  ProfileShape shape_;
  AttentionOutput output_;
  BlockMass masses_;
};

int run_cpu(const ProfileOptions& options, const CommonOptions& common,
            const std::vector<std::string>& argv) {
  check_profile_options(options, common.force);
  if (common.backend == "cuda") {
    throw Error(ErrorKind::kUsage, "sw-profile cpu times CPU kernels, not --backend cuda",
                "use --backend cpu or reference");
  }
  ProfileReport report;
  report.created = utc_now();
  report.command = argv;
  report.warmup = options.warmup;
  report.repeats = options.repeats;
  report.timer = "steady clock";
  report.cache = "128 MiB of other memory touched before each run";
  CpuProfile profile(options, common, report);
  report.environment = current_environment();
  report.environment.backend = profile.backend().name();
  report.environment.backend_detail = profile.backend().detail();
  report.environment.libraries.emplace_back("CLI11", CLI11_VERSION);

  Progress progress("timing", std::ssize(options.tokens) + 2, common.quiet);
  report.roofline = measure_cpu_roofline(parse_dtype(options.dtype));
  progress.advance(1, "roofline");
  for (const std::int64_t tokens : options.tokens) {
    profile.run(tokens);
    progress.advance(1, std::to_string(tokens) + " tokens");
  }
  add_peers(options, report);
  progress.advance(1, "peers");
  finish_report(options, common, report);
  return 0;
}

}  // namespace

void setup_cpu(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<ProfileOptions>();
  options->tokens = {2048, 4096, 8192};
  options->num_heads = 9;
  options->num_kv_heads = 3;
  options->head_dim = 64;
  CLI::App& command = program.add_command(
      "cpu", "Time dense and sparse attention, selection and its stages on this CPU",
      {"sw-profile cpu -o profile",
       "sw-profile cpu --tokens 8192 16384 --heads 14 --kv-heads 2 --density 0.1 0.2 0.3 -o qwen",
       "sw-profile cpu --phase decode --tokens 32768 --repeat 20 -o decode",
       "sw-profile cpu --peer \"python3 tests/bench/sdpa_peer.py --device cpu\" -o against-torch"},
      [options, argv](const CommonOptions& common) { return run_cpu(*options, common, argv); });
  add_profile_options(command, *options);
  command.add_option("--dtype", options->dtype, "Type of q, k and v")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
}

}  // namespace sw
