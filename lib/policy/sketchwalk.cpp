// Sketch&Walk (Le et al., arXiv 2602.07397), with the forms of the preprint and of the authors'
// release as presets of one policy (sketchwalk.md sections 1 to 5 and 9), and with a form of this
// project, `tuned`: mean queries meet every key instead of block means of keys, at a little less
// than the scale of attention and behind a mask, without transform and walk, and of the forced
// blocks only the own and the first remain. Cost: one query a block and head against all keys, b n
// d / 2 multiply-adds a head, 1/128 of dense attention's; in decode one query of 64 is scored
// against all keys. `split_heads` (0 in all presets) scores two mean queries a block for that share
// of the heads, and adds 5 n d + b^2 d multiply-adds a head to find them.
#include "policy/sketchwalk.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "policy/query_window.hpp"
#include "policy/registry.hpp"

namespace sw {
namespace {

enum class Preset { kRelease, kPreprint, kTuned };
using Walk = SketchWalkForm::Walk;
using Aggregation = SketchParams::Aggregation;

struct SketchWalkOptions {
  Preset preset = Preset::kRelease;
  SketchParams sketch;
  Walk walk = Walk::kDamped;
  double damping = 0.25;
  std::int64_t degree = 3;
  Budget budget;
  Granularity granularity = Granularity::kLayer;
  std::int64_t dense_layers = 2;
  std::int64_t query_window = 32;
  std::int64_t query_stride = 1;

  explicit SketchWalkOptions(Preset form) : preset(form) {
    sketch.sketch_dim = 128;
    if (form == Preset::kRelease) return;
    sketch.unbiased = true;
    sketch.temperature = 1.0;
    if (form == Preset::kTuned) {
      sketch.exact = true;
      // Mean queries are surer of single keys than the queries of a block are.
      sketch.temperature = 1.2;
      sketch.causal = true;
      sketch.partial_mean = true;
      sketch.key_pool = 1;
      walk = Walk::kNone;
      budget.forced = Budget::Forced::kSinkBlock;
      query_window = 16;
      query_stride = 64;
      return;
    }
    sketch.aggregation = Aggregation::kHeadMean;
    sketch.sharpness = 8.0;
    sketch.normalize = false;
    walk = Walk::kProduct;
  }

  OptionSet bind() {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    OptionSet set;
    set.add<Preset>(
        "preset", preset,
        {{"release", Preset::kRelease}, {"preprint", Preset::kPreprint}, {"tuned", Preset::kTuned}},
        "form whose defaults the other options take: two published ones, and one of "
        "this project");
    set.add<Granularity>("granularity", granularity,
                         {{"layer", Granularity::kLayer},
                          {"kv_head", Granularity::kKvHead},
                          {"head", Granularity::kHead}},
                         "what shares one selection, and a walk: each set of heads by itself");
    set.add("dense_layers", dense_layers, 0, kNoLimit, "layers below this index attend densely");
    set.add<bool>("sketch", sketch.exact, {{"srht", false}, {"exact", true}},
                  "Hadamard transform of the pooled vectors, or the vectors themselves");
    set.add("sketch_dim", sketch.sketch_dim, 0, kNoLimit,
            "sketch dimension r; 0 or more than the padded head dimension means all of it");
    set.add<bool>("hadamard", sketch.unbiased, {{"unnormalized", false}, {"unbiased", true}},
                  "scale of the transform: as released, or an unbiased estimate of q.k");
    set.add("temperature", sketch.temperature, 0.0, kInf, true, "logits are divided by it");
    set.add("causal_sketch", sketch.causal, "mask later blocks before the softmax");
    set.add("partial_mean", sketch.partial_mean,
            "divide a last, shorter pool by its own tokens instead of the pool size");
    set.add<Aggregation>(
        "aggregation", sketch.aggregation,
        {{"per_head", Aggregation::kPerHead}, {"head_mean", Aggregation::kHeadMean}},
        "softmax a head and sum, or the mean over heads first");
    set.add("sharpness", sketch.sharpness, 0.0, kInf, true, "power of each softmax entry");
    set.add("normalize_walk", sketch.normalize,
            "divide each row of the transition matrix by its sum");
    set.add<Walk>("walk", walk,
                  {{"damped", Walk::kDamped}, {"product", Walk::kProduct}, {"none", Walk::kNone}},
                  "how scores pass from layer to layer");
    set.add("damping", damping, 0.0, 1.0, false, "beta of the damped walk");
    set.add("degree", degree, 0, 64, "steps of the damped walk");
    set.add<Budget::Kind>("budget", budget.kind,
                          {{"matched", Budget::Kind::kMatched},
                           {"fixed", Budget::Kind::kFixed},
                           {"release", Budget::Kind::kRelease}},
                          "blocks of a row: by density, a fixed count, or the release's quantile");
    set.add<Budget::Forced>("forced", budget.forced,
                            {{"sink_window", Budget::Forced::kSinkAndWindow},
                             {"sink_block", Budget::Forced::kSinkBlock},
                             {"diagonal", Budget::Forced::kDiagonal}},
                            "budget=matched: what a row keeps beside its own block: sink and "
                            "window, the first block, or nothing");
    add_matched(set, budget);
    set.add("tau", budget.tau, 0, kNoLimit,
            "blocks of a row for budget=fixed; 0 means density times the number of blocks");
    set.add("window_frac", budget.window_frac, 0.0, 1.0, false,
            "budget=release: window tokens / n");
    set.add("sink_frac", budget.sink_frac, 0.0, 1.0, false, "budget=release: sink tokens / n");
    set.add("kfrac", budget.kfrac, 0.0, 1.0, false,
            "budget=release: share of the other blocks above the threshold");
    set.add("release_sink_bug", budget.release_sink_bug,
            "budget=release: use the window length as sink length, as the release does");
    set.add("query_window", query_window, 1, kNoLimit, "decode: queries that score together");
    set.add("query_stride", query_stride, 1, kNoLimit,
            "decode: only queries at multiples of this position join the window");
    set.add("query_pool", sketch.query_pool, 0, kNoLimit,
            "tokens of a pooled query, a divisor of the block size; 0 means the block");
    set.add("key_pool", sketch.key_pool, 0, kNoLimit,
            "tokens of a pooled key, a divisor of the block size; 0 means the block");
    set.add("split_heads", sketch.split_heads, 0.0, 1.0, false,
            "prefill: share of the heads that pool their queries of a block in two parts, on "
            "either side of their mean; in each block row those that gain most");
    return set;
  }
};

/// A transition matrix of which a decode step changes one row and one column. Rows are scaled when
/// they are read, so that normalising them after a change of the column does not touch them.
/// Reading them takes most of a step, so they are stored in f32 (relative error 2^-24).
class StepMatrix {
 public:
  explicit StepMatrix(const Matrix& values) {
    resize(values.rows());
    for (std::int64_t i = 0; i < rows_; ++i) {
      std::copy(values.row(i).begin(), values.row(i).end(), row(i));
      sum_[i] = stored_sum(i);
    }
  }

  /// Step 3 of section 5: mixes `a` into row and column c = a.size() - 1 by the share alpha, after
  /// new blocks, whose rows start as `a`.
  void mix(const std::vector<double>& a, double alpha) {
    if (rows_ < std::ssize(a)) grow(a);
    const std::int64_t c = rows_ - 1;
    float* last = row(c);
    for (std::int64_t j = 0; j < rows_; ++j) {
      last[j] = static_cast<float>((1.0 - alpha) * scale_[c] * last[j] + alpha * a[j]);
    }
    normalize(c);
    for (std::int64_t i = 0; i < rows_; ++i) {
      float& entry = row(i)[c];
      const double old = scale_[i] * entry;
      entry = static_cast<float>(((1.0 - alpha) * old + alpha * a[i]) / scale_[i]);
      const double total = sum_[i] - old + scale_[i] * entry;
      if (total < 0.5 * sum_[i]) {
        normalize(i);  // the difference would lose too many digits
      } else {
        scale_[i] /= total;
        sum_[i] = 1.0;
      }
    }
  }

  /// x times the matrix.
  std::vector<double> times(const std::vector<double>& x, const Backend& backend) const {
    constexpr std::int64_t kColumns = 256;  // of one thread at a time
    std::vector<double> factors(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) factors[i] = x[i] * scale_[i];
    std::vector<double> product(static_cast<std::size_t>(stride_), 0.0);
    parallel_for((stride_ + kColumns - 1) / kColumns, [&](std::int64_t tile, int) {
      const std::int64_t begin = tile * kColumns;
      const auto count = static_cast<std::size_t>(std::min(kColumns, stride_ - begin));
      backend.add_row_product(factors, values_.data() + begin, stride_,
                              {product.data() + begin, count});
    });
    product.resize(x.size());
    return product;
  }

 private:
  float* row(std::int64_t i) { return values_.data() + i * stride_; }
  double stored_sum(std::int64_t i) { return std::accumulate(row(i), row(i) + rows_, 0.0); }
  void normalize(std::int64_t i) {
    scale_[i] = 1.0 / stored_sum(i);
    sum_[i] = 1.0;
  }
  void resize(std::int64_t rows) {
    rows_ = rows;
    stride_ = (rows + 15) / 16 * 16;  // a cache line
    values_.assign(static_cast<std::size_t>(rows * stride_), 0.0f);
    scale_.resize(static_cast<std::size_t>(rows), 1.0);
    sum_.resize(static_cast<std::size_t>(rows));
  }
  void grow(const std::vector<double>& a) {
    const std::vector<float> old = std::move(values_);
    const std::int64_t old_rows = rows_;
    const std::int64_t old_stride = stride_;
    resize(std::ssize(a));
    for (std::int64_t i = 0; i < rows_; ++i) {
      if (i < old_rows) {
        std::copy_n(old.begin() + i * old_stride, old_rows, row(i));
      } else {
        std::copy(a.begin(), a.end(), row(i));
        sum_[i] = stored_sum(i);
      }
    }
  }

  std::int64_t rows_ = 0;
  std::int64_t stride_ = 0;
  std::vector<float> values_;
  std::vector<double> scale_;  // of each row
  std::vector<double> sum_;    // of each row when it is read
};

/// Decode cache for aggregation=per_head (section 5, release).
struct QueryWindowCache {
  StepMatrix transition;
  QueryWindow window;
};

/// Decode cache for aggregation=head_mean (section 5, preprint).
struct BlockMeanCache {
  TokenPools queries;
  TokenPools keys;
  Matrix logits;  ///< pooled queries x pooled keys, before the temperature
};

/// Head mean of pool u, transformed.
std::vector<double> sketched_mean(const TokenPools& pools, std::int64_t u, const Sketch& sketch,
                                  bool partial_mean) {
  std::vector<double> sum(static_cast<std::size_t>(pools.dim()), 0.0);
  std::vector<double> mean(sum.size());
  for (std::int64_t h = 0; h < pools.heads(); ++h) {
    pools.mean(h, u, partial_mean, mean.data());
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += mean[j];
  }
  for (double& x : sum) x /= static_cast<double>(pools.heads());
  std::vector<double> y(static_cast<std::size_t>(sketch.dim()));
  sketch.apply(sum.data(), y.data());
  return y;
}

class SketchWalkPolicy final : public Policy {
 public:
  SketchWalkPolicy(const SketchWalkOptions& options, std::uint64_t seed) : options_(options) {
    options_.sketch.seed = seed;
  }

  std::string name() const override { return "sketchwalk"; }
  std::string spec() const override {
    SketchWalkOptions actual = options_;
    SketchWalkOptions defaults(actual.preset);
    return canonical_spec(name(), actual.bind(), defaults.bind(), {"preset"});
  }
  std::int64_t dense_layers() const override { return options_.dense_layers; }
  bool takes_density() const override {
    return options_.budget.kind == Budget::Kind::kMatched ||
           (options_.budget.kind == Budget::Kind::kFixed && options_.budget.tau == 0);
  }
  bool carries_walk() const override { return options_.walk != Walk::kNone; }
  Budget budget() const override { return options_.budget; }

  BlockScores score_prefill(const ScoreContext& context, WalkState& walk,
                            DecodeCache* cache) const override {
    auto caches = std::make_shared<std::vector<DecodeCache>>(sets_of(context.problem));
    BlockScores scores = score_sets(context, walk, [&](const auto& set, auto& state, auto g) {
      return score_set_prefill(set, state, cache != nullptr ? &(*caches)[g] : nullptr);
    });
    if (cache != nullptr) cache->value = std::move(caches);
    return scores;
  }
  BlockScores score_decode(const ScoreContext& context, WalkState& walk,
                           DecodeCache& cache) const override {
    const auto caches = std::any_cast<std::shared_ptr<std::vector<DecodeCache>>>(cache.value);
    return score_sets(context, walk, [&](const auto& set, auto& state, auto g) {
      return score_set_decode(set, state, (*caches)[g]);
    });
  }

 private:
  std::size_t sets_of(const AttentionProblem& problem) const {
    return static_cast<std::size_t>(row_sets(options_.granularity, problem));
  }
  /// score(context, walk, g) for the heads of each row set g, as if the layer had no others.
  template <class Score>
  BlockScores score_sets(const ScoreContext& context, WalkState& walk, const Score& score) const;
  Matrix score_set_prefill(const ScoreContext& context, WalkState& walk, DecodeCache* cache) const;
  Matrix score_set_decode(const ScoreContext& context, WalkState& walk, DecodeCache& cache) const;
  SketchParams params_for(const BlockGeometry& geometry) const;
  /// Row c of the transition matrix for the newest query; updates the matrix with it.
  std::vector<double> update_query_window(const ScoreContext& context, const SketchParams& params,
                                          QueryWindowCache& cache) const;
  Matrix update_block_means(const ScoreContext& context, const SketchParams& params,
                            BlockMeanCache& cache) const;
  /// Score of row c; times(x) is x times the transition matrix.
  template <class Times>
  std::vector<double> walk_row(const std::vector<double>& row, const Times& times,
                               WalkState& walk) const;

  SketchWalkOptions options_;
};

SketchParams SketchWalkPolicy::params_for(const BlockGeometry& geometry) const {
  SketchParams params = options_.sketch;
  params.block = geometry.block;
  for (const auto& [name, pool] :
       {std::pair{"query_pool", params.query_pool}, std::pair{"key_pool", params.key_pool}}) {
    if (pool > 0 && params.block % pool != 0) {
      throw Error(ErrorKind::kUsage, "option '" + std::string(name) + "': " + std::to_string(pool) +
                                         " does not divide the block size " +
                                         std::to_string(params.block));
    }
  }
  if (params.split_heads > 0.0 &&
      (!params.exact || params.aggregation != Aggregation::kPerHead ||
       params.tokens_per_query() != params.block || params.tokens_per_key() == params.block)) {
    throw Error(ErrorKind::kUsage,
                "option 'split_heads' needs sketch=exact, aggregation=per_head, queries pooled by "
                "blocks and a key_pool below the block size",
                "preset=tuned has these");
  }
  return params;
}

/// Rows [begin, end).
Matrix rows_of(const Matrix& x, std::int64_t begin, std::int64_t end) {
  Matrix part(end - begin, x.cols());
  for (std::int64_t i = begin; i < end; ++i) {
    std::copy(x.row(i).begin(), x.row(i).end(), part.row(i - begin).begin());
  }
  return part;
}

/// One below the other; all have as many rows and columns.
Matrix stack(const std::vector<Matrix>& parts) {
  const std::int64_t rows = parts.front().rows();
  Matrix all(rows * std::ssize(parts), parts.front().cols());
  for (std::int64_t i = 0; i < all.rows(); ++i) {
    const auto from = parts[static_cast<std::size_t>(i / rows)].row(i % rows);
    std::copy(from.begin(), from.end(), all.row(i).begin());
  }
  return all;
}

template <class Score>
BlockScores SketchWalkPolicy::score_sets(const ScoreContext& context, WalkState& walk,
                                         const Score& score) const {
  const AttentionProblem& problem = context.problem;
  const std::size_t sets = sets_of(problem);
  if (sets == 1) return {1, score(context, walk, std::size_t{0})};
  const auto count = static_cast<std::int64_t>(sets);
  const std::int64_t heads = problem.num_heads() / count;
  std::vector<Matrix> scores;
  std::vector<Matrix> matrices;
  std::vector<double> rows;
  for (std::int64_t g = 0; g < count; ++g) {
    const std::int64_t first = g * heads / problem.group();
    const std::int64_t last = ((g + 1) * heads - 1) / problem.group() + 1;
    AttentionProblem part = problem;
    part.q = problem.q.heads_slice(g * heads, (g + 1) * heads);
    part.k = problem.k.heads_slice(first, last);
    part.v = problem.v.heads_slice(first, last);
    WalkState state;
    if (!walk.matrix.empty()) {
      const std::int64_t b = walk.matrix.rows() / count;
      state.matrix = rows_of(walk.matrix, g * b, (g + 1) * b);
    }
    const auto row = static_cast<std::ptrdiff_t>(walk.row.size() / sets);
    state.row.assign(walk.row.begin() + g * row, walk.row.begin() + (g + 1) * row);
    const ScoreContext set{part, context.backend, context.geometry, nullptr, context.times};
    scores.push_back(score(set, state, static_cast<std::size_t>(g)));
    if (!state.matrix.empty()) matrices.push_back(std::move(state.matrix));
    rows.insert(rows.end(), state.row.begin(), state.row.end());
  }
  if (!matrices.empty()) walk.matrix = stack(matrices);
  walk.row = std::move(rows);
  return {count, stack(scores)};
}

Matrix SketchWalkPolicy::score_set_prefill(const ScoreContext& context, WalkState& walk,
                                           DecodeCache* cache) const {
  const SketchParams params = params_for(context.geometry);
  const AttentionProblem& problem = context.problem;
  Matrix a = context.backend.transition(problem, params, context.times);
  Matrix scores;
  {
    const StageTimer timer(context.times, Stage::kWalk);
    const Matrix* previous = walk.matrix.empty() ? nullptr : &walk.matrix;
    switch (options_.walk) {
      case Walk::kDamped:
        scores = context.backend.damped_walk(a, previous, options_.damping, options_.degree);
        break;
      case Walk::kProduct:
        scores = context.backend.product_walk(a, previous);
        break;
      case Walk::kNone:
        scores = a;
        break;
    }
    if (options_.walk != Walk::kNone) walk.matrix = scores;
  }
  if (cache == nullptr) return scores;
  if (params.aggregation == Aggregation::kPerHead) {
    QueryWindow window(params, problem.layer, problem.num_heads(), problem.num_kv_heads(),
                       problem.head_dim(), options_.query_window);
    window.add_keys(problem.k, context.backend);
    window.add_queries(problem.q, context.backend);
    cache->value =
        std::make_shared<QueryWindowCache>(QueryWindowCache{StepMatrix(a), std::move(window)});
    return scores;
  }
  TokenPools keys(problem.num_kv_heads(), problem.head_dim(), params.tokens_per_key());
  keys.append(problem.k);
  TokenPools queries(problem.num_heads(), problem.head_dim(), params.tokens_per_query());
  queries.append(problem.q);
  const Sketch sketch(params, problem.layer, problem.head_dim());
  Matrix logits(queries.count(), keys.count());
  std::vector<std::vector<double>> yk;
  for (std::int64_t v = 0; v < keys.count(); ++v) {
    yk.push_back(sketched_mean(keys, v, sketch, params.partial_mean));
  }
  parallel_for(queries.count(), [&](std::int64_t u, int) {
    const std::vector<double> yq = sketched_mean(queries, u, sketch, params.partial_mean);
    for (std::int64_t v = 0; v < keys.count(); ++v) {
      logits(u, v) =
          sketch.logit_scale() * std::inner_product(yq.begin(), yq.end(), yk[v].begin(), 0.0);
    }
  });
  cache->value = std::make_shared<BlockMeanCache>(
      BlockMeanCache{std::move(queries), std::move(keys), std::move(logits)});
  return scores;
}

Matrix SketchWalkPolicy::score_set_decode(const ScoreContext& context, WalkState& walk,
                                          DecodeCache& cache) const {
  const SketchParams params = params_for(context.geometry);
  const std::int64_t c = context.geometry.key_blocks() - 1;
  std::vector<double> score;
  if (params.aggregation == Aggregation::kPerHead) {
    auto& state = *std::any_cast<std::shared_ptr<QueryWindowCache>&>(cache.value);
    const std::vector<double> row = update_query_window(context, params, state);
    const StageTimer timer(context.times, Stage::kWalk);
    const auto times = [&](const std::vector<double>& x) {
      return state.transition.times(x, context.backend);
    };
    score = walk_row(row, times, walk);
  } else {
    auto& state = *std::any_cast<std::shared_ptr<BlockMeanCache>&>(cache.value);
    const Matrix w = update_block_means(context, params, state);
    const StageTimer timer(context.times, Stage::kWalk);
    const auto times = [&](const std::vector<double>& x) {
      std::vector<double> product(x.size(), 0.0);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const std::span<const double> from = w.row(static_cast<std::int64_t>(i));
        for (std::size_t j = 0; j < x.size(); ++j) product[j] += x[i] * from[j];
      }
      return product;
    };
    score = walk_row({w.row(c).begin(), w.row(c).end()}, times, walk);
  }
  Matrix scores(1, c + 1);
  std::copy(score.begin(), score.end(), scores.row(0).begin());
  return scores;
}

std::vector<double> SketchWalkPolicy::update_query_window(const ScoreContext& context,
                                                          const SketchParams& params,
                                                          QueryWindowCache& cache) const {
  const AttentionProblem& problem = context.problem;
  {
    const StageTimer timer(context.times, Stage::kPool);
    cache.window.add_keys(problem.k.tokens_slice(cache.window.tokens(), problem.tokens()),
                          context.backend);
    if ((problem.tokens() - 1) % options_.query_stride == 0) {
      cache.window.add_queries(problem.q, context.backend);
    }
  }
  const StageTimer timer(context.times, Stage::kSketch);
  std::vector<double> row = cache.window.block_row(context.backend);
  if (options_.walk == Walk::kNone) return row;
  const std::int64_t step = (problem.tokens() - 1) % params.block;
  cache.transition.mix(row, 1.0 / static_cast<double>(step + 1));
  return row;
}

Matrix SketchWalkPolicy::update_block_means(const ScoreContext& context, const SketchParams& params,
                                            BlockMeanCache& cache) const {
  const AttentionProblem& problem = context.problem;
  {
    const StageTimer timer(context.times, Stage::kPool);
    cache.queries.append(problem.q);
    cache.keys.append(problem.k.tokens_slice(cache.keys.tokens(), problem.tokens()));
  }
  const StageTimer timer(context.times, Stage::kSketch);
  const Sketch sketch(params, problem.layer, problem.head_dim());
  const std::int64_t rows = cache.queries.count();
  const std::int64_t cols = cache.keys.count();
  if (cache.logits.rows() < rows || cache.logits.cols() < cols) {
    Matrix grown(rows, cols);
    for (std::int64_t i = 0; i < cache.logits.rows(); ++i) {
      std::copy(cache.logits.row(i).begin(), cache.logits.row(i).end(), grown.row(i).begin());
    }
    cache.logits = std::move(grown);
  }
  const auto set_logit = [&](std::int64_t u, std::int64_t v, const std::vector<double>& yq,
                             const std::vector<double>& yk) {
    cache.logits(u, v) =
        sketch.logit_scale() * std::inner_product(yq.begin(), yq.end(), yk.begin(), 0.0);
  };
  const auto last_q = sketched_mean(cache.queries, rows - 1, sketch, params.partial_mean);
  const auto last_k = sketched_mean(cache.keys, cols - 1, sketch, params.partial_mean);
  for (std::int64_t v = 0; v < cols; ++v) {
    set_logit(rows - 1, v, last_q, sketched_mean(cache.keys, v, sketch, params.partial_mean));
  }
  for (std::int64_t u = 0; u < rows; ++u) {
    set_logit(u, cols - 1, sketched_mean(cache.queries, u, sketch, params.partial_mean), last_k);
  }

  const std::int64_t b = context.geometry.key_blocks();
  const std::int64_t queries_per_block = params.block / params.tokens_per_query();
  const std::int64_t keys_per_block = params.block / params.tokens_per_key();
  Matrix w(b, b);
  for (std::int64_t i = 0; i < b; ++i) {
    const std::int64_t begin = i * queries_per_block;
    const std::int64_t end = std::min(begin + queries_per_block, rows);
    const std::int64_t visible = params.causal ? std::min((i + 1) * keys_per_block, cols) : cols;
    for (std::int64_t u = begin; u < end; ++u) {
      const auto logits = cache.logits.row(u).first(static_cast<std::size_t>(visible));
      std::vector<double> p(logits.begin(), logits.end());
      const double largest = *std::max_element(p.begin(), p.end());
      double total = 0.0;
      for (double& x : p) total += x = std::exp((x - largest) / params.temperature);
      for (std::int64_t v = 0; v < visible; ++v) w(i, v / keys_per_block) += p[v] / total;
    }
    double total = 0.0;
    for (double& x : w.row(i)) {
      total += x = std::pow(x / static_cast<double>(end - begin), params.sharpness);
    }
    if (params.normalize) {
      for (double& x : w.row(i)) x /= total;
    }
  }
  return w;
}

template <class Times>
std::vector<double> SketchWalkPolicy::walk_row(const std::vector<double>& row, const Times& times,
                                               WalkState& walk) const {
  if (options_.walk == Walk::kDamped) {
    std::vector<double> state = row;
    if (options_.damping == 0.0) return state;
    for (std::int64_t step = 0; step < options_.degree; ++step) {
      state = times(state);
      for (std::size_t j = 0; j < row.size(); ++j) {
        state[j] = (1.0 - options_.damping) * row[j] + options_.damping * state[j];
      }
    }
    return state;
  }
  if (options_.walk == Walk::kNone) return row;
  walk.row = walk.row.empty() ? row : times(walk.row);
  const double total = std::accumulate(walk.row.begin(), walk.row.end(), 0.0);
  if (total > 0.0) {
    for (double& x : walk.row) x /= total;  // only the order matters; keeps deep models in range
  }
  return walk.row;
}

/// The preset comes first, wherever it stands: it sets the other options' defaults.
SketchWalkOptions parse_form(const MethodSpec& spec) {
  SketchWalkOptions preset(Preset::kRelease);
  OptionSet preset_set = preset.bind();
  for (const auto& [name, value] : spec.options) {
    if (name == "preset") apply_options({spec.name, {{name, value}}}, preset_set);
  }
  SketchWalkOptions options(preset.preset);
  OptionSet set = options.bind();
  apply_options(spec, set);
  settle_budget(spec, options.budget, false);
  return options;
}

}  // namespace

PolicyEntry sketchwalk_entry() {
  return {[] {
            SketchWalkOptions defaults(Preset::kRelease);
            return MethodInfo{"sketchwalk",
                              "Sketch&Walk; preset=preprint changes the defaults of hadamard, "
                              "temperature, aggregation, sharpness, normalize_walk and walk to "
                              "unbiased, 1, head_mean, 8, false and product; preset=tuned those "
                              "of sketch, hadamard, temperature, causal_sketch, partial_mean, "
                              "key_pool, walk, forced, query_window and query_stride to exact, "
                              "unbiased, 1.2, true, true, 1, none, sink_block, 16 and 64",
                              "Le et al., arXiv 2602.07397, and the authors' release",
                              "layer, KV head or head", defaults.bind().list()};
          },
          [](const MethodSpec& spec, std::uint64_t seed) -> std::unique_ptr<Policy> {
            return std::make_unique<SketchWalkPolicy>(parse_form(spec), seed);
          }};
}

std::optional<SketchWalkForm> sketchwalk_form(const std::string& text, std::uint64_t seed) {
  const MethodSpec spec = MethodSpec::parse(text);
  if (spec.name != "sketchwalk") return std::nullopt;
  SketchWalkOptions options = parse_form(spec);
  options.sketch.seed = seed;
  return SketchWalkForm{options.sketch,       options.walk,       options.damping,
                        options.degree,       options.budget,     options.query_window,
                        options.query_stride, options.granularity};
}

}  // namespace sw
