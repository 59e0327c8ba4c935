#include "kernels/reference/backend.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"

namespace sw {
namespace {

std::vector<double> load(const HeadsView& x, std::int64_t head, std::int64_t token) {
  std::vector<float> row(static_cast<std::size_t>(x.dim));
  x.load_row(head, token, row.data());
  return {row.begin(), row.end()};
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// Turns logits into probabilities in place and returns their log-sum-exp; -infinity is masked.
double softmax(std::vector<double>& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  if (largest == -std::numeric_limits<double>::infinity()) {
    std::fill(x.begin(), x.end(), 0.0);
    return largest;
  }
  double total = 0.0;
  for (double& value : x) total += value = std::exp(value - largest);
  for (double& value : x) value /= total;
  return largest + std::log(total);
}

class ReferenceBackend final : public Backend {
 public:
  std::string name() const override { return "reference"; }
  std::string detail() const override { return "scalar, fp64"; }
  std::optional<std::string> unsupported(const AttentionProblem&) const override { return {}; }

  void attend(const AttentionProblem& problem, const BlockSelection& selection,
              AttentionOutput& output) const override {
    const BlockGeometry& g = selection.geometry();
    attend_visible(
        problem, output, nullptr, g, [&](std::int64_t h, std::int64_t p, std::int64_t t) {
          const std::int64_t group = selection.group_of_head(h, problem.num_heads());
          const std::int64_t row = p / g.block - g.first_row();
          const auto kept = selection.blocks(group, row);
          const auto singles = selection.tokens(group, row);
          return std::binary_search(kept.begin(), kept.end(),
                                    static_cast<std::int32_t>(t / g.block)) ||
                 std::binary_search(singles.begin(), singles.end(), static_cast<std::int32_t>(t)) ||
                 selection.token_visible(p, t);
        });
  }

  void attend_dense(const AttentionProblem& problem, const BlockGeometry& geometry,
                    AttentionOutput& output, BlockMass& mass) const override {
    mass.reserve(problem.num_heads(), geometry);
    attend_visible(problem, output, &mass, geometry, [](auto, auto, auto) { return true; });
  }

  Matrix transition(const AttentionProblem& problem, const SketchParams& params,
                    StageTimes* times) const override;

 private:
  using Visible = std::function<bool(std::int64_t, std::int64_t, std::int64_t)>;

  static void attend_visible(const AttentionProblem& problem, AttentionOutput& output,
                             BlockMass* mass, const BlockGeometry& geometry,
                             const Visible& visible) {
    problem.validate();
    output.reserve(problem);
    parallel_for(problem.num_heads(), [&](std::int64_t h, int) {
      const std::int64_t kv = h / problem.group();
      Matrix sums(geometry.rows(), geometry.key_blocks());
      for (std::int64_t i = 0; i < problem.queries(); ++i) {
        const std::int64_t p = problem.query_begin() + i;
        const std::vector<double> q = load(problem.q, h, i);
        std::vector<double> s(static_cast<std::size_t>(p + 1));
        for (std::int64_t t = 0; t <= p; ++t) {
          s[t] = visible(h, p, t) ? problem.scale() * dot(q, load(problem.k, kv, t))
                                  : -std::numeric_limits<double>::infinity();
        }
        output.lse[h * problem.queries() + i] = softmax(s);
        std::vector<double> out(static_cast<std::size_t>(problem.head_dim()), 0.0);
        for (std::int64_t t = 0; t <= p; ++t) {
          if (s[t] == 0.0) continue;
          const std::vector<double> v = load(problem.v, kv, t);
          for (std::size_t j = 0; j < out.size(); ++j) out[j] += s[t] * v[j];
        }
        std::copy(out.begin(), out.end(), output.out.row<float>(h, i));
        const std::int64_t row = p / geometry.block - geometry.first_row();
        for (std::int64_t t = 0; t <= p; ++t) sums(row, t / geometry.block) += s[t];
      }
      if (mass == nullptr) return;
      for (std::int64_t r = 0; r < geometry.rows(); ++r) {
        const auto queries = static_cast<double>(geometry.row_end(r) - geometry.row_begin(r));
        for (std::int64_t j = 0; j < geometry.key_blocks(); ++j) {
          mass->row(h, r)[j] = static_cast<float>(sums(r, j) / queries);
        }
      }
    });
  }
};

/// Means of `pool` consecutive tokens of every head: [heads][pools][dim].
std::vector<std::vector<std::vector<double>>> pool_tokens(const HeadsView& x, std::int64_t pool,
                                                          bool partial_mean) {
  std::vector<std::vector<std::vector<double>>> pooled(static_cast<std::size_t>(x.heads));
  for (std::int64_t h = 0; h < x.heads; ++h) {
    for (std::int64_t begin = 0; begin < x.tokens; begin += pool) {
      const std::int64_t end = std::min(begin + pool, x.tokens);
      std::vector<double> mean(static_cast<std::size_t>(x.dim), 0.0);
      for (std::int64_t t = begin; t < end; ++t) {
        const std::vector<double> row = load(x, h, t);
        for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += row[j];
      }
      for (double& m : mean) m /= static_cast<double>(partial_mean ? end - begin : pool);
      pooled[h].push_back(std::move(mean));
    }
  }
  return pooled;
}

/// Mean over heads of [heads][pools][dim], as a single head.
std::vector<std::vector<std::vector<double>>> mean_over_heads(
    const std::vector<std::vector<std::vector<double>>>& x) {
  auto mean = x[0];
  for (std::size_t u = 0; u < mean.size(); ++u) {
    for (std::size_t j = 0; j < mean[u].size(); ++j) {
      for (std::size_t h = 1; h < x.size(); ++h) mean[u][j] += x[h][u][j];
      mean[u][j] /= static_cast<double>(x.size());
    }
  }
  return {mean};
}

/// A pooled query with its share of the queries of a block.
struct QueryPart {
  std::vector<double> mean;
  double share = 1.0;
};

/// The queries [begin, end) of a head in two parts (SketchParams), the one along the spread first;
/// a part may be empty, with share 0.
std::array<QueryPart, 2> split_queries(const HeadsView& q, std::int64_t h, std::int64_t begin,
                                       std::int64_t end) {
  const auto count = static_cast<double>(end - begin);
  std::vector<std::vector<double>> x;
  std::vector<double> mean(static_cast<std::size_t>(q.dim), 0.0);
  for (std::int64_t t = begin; t < end; ++t) {
    x.push_back(load(q, h, t));
    for (std::size_t j = 0; j < mean.size(); ++j) mean[j] += x.back()[j] / count;
  }
  std::size_t farthest = 0;
  for (std::size_t t = 0; t < x.size(); ++t) {
    for (std::size_t j = 0; j < mean.size(); ++j) x[t][j] -= mean[j];
    if (dot(x[t], x[t]) > dot(x[farthest], x[farthest])) farthest = t;
  }
  std::vector<double> direction(mean.size(), 0.0);
  for (const auto& row : x) {
    const double along = dot(row, x[farthest]);
    for (std::size_t j = 0; j < mean.size(); ++j) direction[j] += along * row[j];
  }
  std::array<QueryPart, 2> parts = {QueryPart{mean, 0.0}, QueryPart{mean, 0.0}};
  std::array<std::vector<double>, 2> sums = {std::vector<double>(mean.size(), 0.0),
                                             std::vector<double>(mean.size(), 0.0)};
  for (const auto& row : x) {
    const std::size_t part = dot(row, direction) > 0.0 ? 0 : 1;
    parts[part].share += 1.0 / count;
    for (std::size_t j = 0; j < mean.size(); ++j) sums[part][j] += row[j] / count;
  }
  for (std::size_t part = 0; part < 2; ++part) {
    if (parts[part].share == 0.0) continue;
    for (std::size_t j = 0; j < mean.size(); ++j) {
      parts[part].mean[j] += sums[part][j] / parts[part].share;
    }
  }
  return parts;
}

double variance(const std::vector<double>& x) {
  double mean = 0.0;
  double sum = 0.0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  for (const double value : x) sum += (value - mean) * (value - mean);
  return sum / static_cast<double>(x.size());
}

/// The pooled queries of block row `i` by head: one, or two for the heads that gain most.
std::vector<std::vector<QueryPart>> split_row(
    const AttentionProblem& problem, const SketchParams& params,
    const std::vector<std::vector<std::vector<double>>>& pooled,
    const std::vector<std::vector<std::vector<double>>>& key_means, std::int64_t i) {
  const std::int64_t heads = problem.num_heads();
  std::vector<std::vector<QueryPart>> row(static_cast<std::size_t>(heads));
  std::vector<std::pair<double, std::int64_t>> order;
  std::vector<std::array<QueryPart, 2>> parts;
  for (std::int64_t h = 0; h < heads; ++h) {
    parts.push_back(split_queries(problem.q, h, i * params.block,
                                  std::min((i + 1) * params.block, problem.tokens())));
    std::vector<double> difference = parts.back()[0].mean;
    for (std::size_t j = 0; j < difference.size(); ++j) difference[j] -= parts.back()[1].mean[j];
    const auto& keys = key_means[static_cast<std::size_t>(h / problem.group())];
    std::vector<double> logits;
    for (std::size_t j = 0; j < keys.size(); ++j) {
      if (!params.causal || static_cast<std::int64_t>(j) <= i) {
        logits.push_back(dot(difference, keys[j]));
      }
    }
    order.emplace_back(-parts.back()[0].share * parts.back()[1].share * variance(logits), h);
    row[static_cast<std::size_t>(h)] = {{pooled[h][i], 1.0}};
  }
  std::sort(order.begin(), order.end());
  for (std::int64_t s = 0; s < params.splits(heads); ++s) {
    const auto h = static_cast<std::size_t>(order[static_cast<std::size_t>(s)].second);
    row[h] = {parts[h].begin(), parts[h].end()};
  }
  return row;
}

Matrix ReferenceBackend::transition(const AttentionProblem& problem, const SketchParams& params,
                                    StageTimes* times) const {
  problem.validate();
  if (problem.query_begin() != 0) {
    throw Error(ErrorKind::kUnsupported,
                "block scores of a prefill need the queries of all tokens");
  }
  std::vector<std::vector<std::vector<double>>> q;
  std::vector<std::vector<std::vector<double>>> k;
  {
    const StageTimer timer(times, Stage::kPool);
    q = pool_tokens(problem.q, params.tokens_per_query(), params.partial_mean);
    k = pool_tokens(problem.k, params.tokens_per_key(), params.partial_mean);
  }
  const StageTimer timer(times, Stage::kSketch);
  if (params.aggregation == SketchParams::Aggregation::kHeadMean) {
    q = mean_over_heads(q);
    k = mean_over_heads(k);
  }
  const Sketch sketch(params, problem.layer, problem.head_dim());
  for (auto* side : {&q, &k}) {
    for (auto& head : *side) {
      for (auto& x : head) {
        std::vector<double> y(static_cast<std::size_t>(sketch.dim()));
        sketch.apply(x.data(), y.data());
        x = std::move(y);
      }
    }
  }
  const std::int64_t b = problem.geometry(params.block).key_blocks();
  const std::int64_t queries_per_block = params.block / params.tokens_per_query();
  const std::int64_t keys_per_block = params.block / params.tokens_per_key();
  const double scale = sketch.logit_scale() / params.temperature;
  const bool split = params.splits(problem.num_heads()) > 0;
  std::vector<std::vector<std::vector<double>>> key_means;
  if (split) key_means = pool_tokens(problem.k, params.block, true);
  Matrix a(b, b);
  parallel_for(b, [&](std::int64_t i, int) {
    std::vector<std::vector<QueryPart>> parts;
    if (split) parts = split_row(problem, params, q, key_means, i);
    const auto pools = static_cast<std::int64_t>(q[0].size());
    const std::int64_t begin = i * queries_per_block;
    const std::int64_t end = std::min(begin + queries_per_block, pools);
    for (std::size_t h = 0; h < q.size(); ++h) {
      const auto& keys = k[h * k.size() / q.size()];
      std::vector<QueryPart> queries;
      for (std::int64_t u = begin; u < end; ++u) queries.push_back({q[h][u], 1.0});
      if (split) queries = parts[h];
      for (const QueryPart& query : queries) {
        std::vector<double> p(keys.size());
        for (std::size_t v = 0; v < keys.size(); ++v) {
          const bool masked = params.causal && static_cast<std::int64_t>(v) / keys_per_block > i;
          p[v] =
              masked ? -std::numeric_limits<double>::infinity() : scale * dot(query.mean, keys[v]);
        }
        softmax(p);
        for (std::size_t v = 0; v < keys.size(); ++v) {
          a(i, static_cast<std::int64_t>(v) / keys_per_block) += query.share * p[v];
        }
      }
    }
    const auto terms = static_cast<double>(static_cast<std::int64_t>(q.size()) * (end - begin));
    double total = 0.0;
    for (double& x : a.row(i)) total += x = std::pow(x / terms, params.sharpness);
    if (params.normalize) {
      for (double& x : a.row(i)) x /= total;
    }
  });
  return a;
}

}  // namespace

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace sw
