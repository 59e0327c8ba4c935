#include "kernels/cpu/transition.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention/pooled.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "kernels/cpu/row_attention.hpp"

namespace sw::cpu {
namespace {

/// Means of pools of `size` tokens, summed in fp64, or in f32 if they are to be rounded to bf16.
PooledVectors pool(const HeadsView& x, std::int64_t size, bool partial_mean, bool for_bf16,
                   const ScoreKernel& kernel) {
  PooledVectors pooled{x.heads, (x.tokens + size - 1) / size, x.dim, {}};
  pooled.values.assign(static_cast<std::size_t>(pooled.heads * pooled.count * pooled.dim), 0.0);
  parallel_for(pooled.heads * pooled.count, [&](std::int64_t index, int) {
    const std::int64_t h = index / pooled.count;
    const std::int64_t begin = index % pooled.count * size;
    const std::int64_t end = std::min(begin + size, x.tokens);
    double* mean = pooled.row(h, index % pooled.count);
    const TokenRows rows = {x.row(h, begin), x.dtype, x.token_stride,
                            static_cast<std::int32_t>(end - begin),
                            static_cast<std::int32_t>(x.dim)};
    if (for_bf16) {
      std::vector<float> sum(static_cast<std::size_t>(x.dim), 0.0f);
      kernel.add_rows_f32(rows, sum.data());
      std::copy(sum.begin(), sum.end(), mean);
    } else {
      kernel.add_rows(rows, mean);
    }
    const auto divisor = static_cast<double>(partial_mean ? end - begin : size);
    for (std::int64_t j = 0; j < x.dim; ++j) mean[j] /= divisor;
  });
  return pooled;
}

/// [dim, count] for each head, so that the scores of a query run along contiguous memory.
PooledVectors transpose(const PooledVectors& x) {
  PooledVectors y{x.heads, x.dim, x.count, {}};
  y.values.resize(x.values.size());
  parallel_for(x.heads, [&](std::int64_t h, int) {
    for (std::int64_t u = 0; u < x.count; ++u) {
      for (std::int64_t j = 0; j < x.dim; ++j) y.row(h, j)[u] = x.row(h, u)[j];
    }
  });
  return y;
}

/// Sum over heads and pooled queries of the softmax rows, one key for each block.
Matrix block_probabilities(PooledVectors& q, const PooledVectors& k, double scale, bool causal,
                           std::int64_t queries_per_block, std::int64_t b,
                           const ScoreKernel& kernel) {
  constexpr std::int64_t kBlockRows = 16;  // of one thread at a time
  for (double& x : q.values) x *= scale;
  const PooledVectors kt = transpose(k);
  Matrix sum(b, b);
  const std::int64_t chunks = (b + kBlockRows - 1) / kBlockRows;
  // Later rows are the longer ones when the sketch is causal.
  parallel_for(chunks, [&](std::int64_t index, int) {
    const std::int64_t begin = (chunks - 1 - index) * kBlockRows;
    const std::int64_t end = std::min(begin + kBlockRows, b);
    const std::int64_t first = begin * queries_per_block;
    const std::int64_t count = std::min(end * queries_per_block, q.count) - first;
    const std::int64_t cols = causal ? end : b;
    std::vector<double> p(static_cast<std::size_t>(count * cols));
    for (std::int64_t h = 0; h < q.heads; ++h) {
      const std::int64_t g = h * k.heads / q.heads;
      kernel.multiply({q.row(h, first), q.dim}, {kt.row(g, 0), kt.dim}, count, q.dim, cols,
                      p.data(), cols);
      for (std::int64_t u = 0; u < count; ++u) {
        const std::int64_t i = (first + u) / queries_per_block;
        const std::int64_t visible = causal ? i + 1 : b;
        double* row = p.data() + u * cols;
        const double total =
            kernel.exponentials(row, visible, *std::max_element(row, row + visible));
        double* to = sum.row(i).data();
        for (std::int64_t v = 0; v < visible; ++v) to[v] += row[v] / total;
      }
    }
  });
  return sum;
}

/// Queries of block rows in two parts (SketchParams), [heads][block rows].
struct QuerySplits {
  PooledVectors first, second;  ///< means of the parts
  std::vector<double> share;    ///< of the first part
  std::vector<char> chosen;     ///< whether the head is split in that row

  std::size_t at(std::int64_t head, std::int64_t row) const {
    return static_cast<std::size_t>(head * first.count + row);
  }
};

QuerySplits split(const AttentionProblem& problem, const SketchParams& params,
                  const ScoreKernel& kernel) {
  const HeadsView& q = problem.q;
  const PooledVectors means = pool(q, params.block, true, true, kernel);
  const PooledVectors keys = transpose(pool(problem.k, params.block, true, true, kernel));
  const std::int64_t b = means.count;
  QuerySplits splits{means, means, {}, {}};
  splits.share.resize(static_cast<std::size_t>(q.heads * b));
  splits.chosen.resize(splits.share.size());
  Matrix gain(q.heads, b);
  parallel_for(q.heads, [&](std::int64_t h, int) {
    std::vector<float> mean(static_cast<std::size_t>(q.dim));
    std::vector<float> sums(static_cast<std::size_t>(2 * q.dim));
    std::vector<float> scratch(static_cast<std::size_t>((params.block + 1) * q.dim));
    std::vector<double> difference(static_cast<std::size_t>(b * q.dim));
    std::vector<double> logits(static_cast<std::size_t>(b * b));
    for (std::int64_t i = 0; i < b; ++i) {
      const std::int64_t begin = i * params.block;
      const std::int64_t count = std::min(begin + params.block, q.tokens) - begin;
      std::copy(means.row(h, i), means.row(h, i) + q.dim, mean.begin());
      const std::int64_t along =
          kernel.split_rows({q.row(h, begin), q.dtype, q.token_stride,
                             static_cast<std::int32_t>(count), static_cast<std::int32_t>(q.dim)},
                            mean.data(), scratch.data(), sums.data());
      splits.share[splits.at(h, i)] = static_cast<double>(along) / static_cast<double>(count);
      if (along == 0 || along == count) continue;
      for (std::int64_t j = 0; j < q.dim; ++j) {
        const double first = sums[static_cast<std::size_t>(j)] / static_cast<double>(along);
        const double second =
            sums[static_cast<std::size_t>(q.dim + j)] / static_cast<double>(count - along);
        splits.first.row(h, i)[j] += first;
        splits.second.row(h, i)[j] += second;
        difference[static_cast<std::size_t>(i * q.dim + j)] = first - second;
      }
    }
    kernel.multiply({difference.data(), q.dim}, {keys.row(h / problem.group(), 0), keys.dim}, b,
                    q.dim, b, logits.data(), b);
    for (std::int64_t i = 0; i < b; ++i) {
      const double* row = logits.data() + i * b;
      const std::int64_t seen = params.causal ? i + 1 : b;
      const double mean_logit = std::accumulate(row, row + seen, 0.0) / static_cast<double>(seen);
      double sum = 0.0;
      for (std::int64_t j = 0; j < seen; ++j) sum += (row[j] - mean_logit) * (row[j] - mean_logit);
      const double p = splits.share[splits.at(h, i)];
      gain(h, i) = p * (1.0 - p) * sum / static_cast<double>(seen);
    }
  });
  for (std::int64_t i = 0; i < b; ++i) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(q.heads));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t x, std::int64_t y) { return gain(x, i) > gain(y, i); });
    for (std::int64_t s = 0; s < params.splits(q.heads); ++s) {
      splits.chosen[splits.at(order[static_cast<std::size_t>(s)], i)] = 1;
    }
  }
  return splits;
}

/// Pooled queries as tiles take them: the vectors of the heads that share a KV head beside each
/// other for each pool or, with splits, for each block row, where a split head has two.
struct TileQueries {
  HeadsTensor vectors;  ///< [KV heads, most vectors, dim]
  /// Vectors of block row i of KV head g: [begin[g][i], begin[g][i + 1]).
  std::vector<std::vector<std::int64_t>> begin;
  std::vector<std::vector<double>> weight;  ///< of each vector; empty: all 1

  std::int64_t most_in_a_row() const {
    std::int64_t most = 1;
    for (const auto& of_head : begin) {
      for (std::size_t i = 0; i + 1 < of_head.size(); ++i) {
        most = std::max(most, of_head[i + 1] - of_head[i]);
      }
    }
    return most;
  }
};

/// Pooled vectors as tiles take them: [heads / group, count * group, dim], the heads that share a
/// KV head beside each other for each pool.
template <class T>
HeadsTensor beside(const PooledVectors& x, std::int64_t group) {
  constexpr DType kType = std::is_same_v<T, float> ? DType::kF32 : DType::kBf16;
  HeadsTensor y(kType, x.heads / group, x.count * group, x.dim);
  parallel_for(x.heads, [&](std::int64_t h, int) {
    for (std::int64_t u = 0; u < x.count; ++u) {
      std::transform(x.row(h, u), x.row(h, u) + x.dim, y.row<T>(h / group, u * group + h % group),
                     [](double value) { return from_float<T>(static_cast<float>(value)); });
    }
  });
  return y;
}

template <class T>
TileQueries tile_queries(const PooledVectors& x, std::int64_t group, std::int64_t queries_per_block,
                         std::int64_t b) {
  TileQueries queries{beside<T>(x, group), {}, {}};
  std::vector<std::int64_t> begin;
  for (std::int64_t i = 0; i <= b; ++i) {
    begin.push_back(group * std::min(i * queries_per_block, x.count));
  }
  queries.begin.assign(static_cast<std::size_t>(x.heads / group), begin);
  return queries;
}

template <class T>
TileQueries tile_queries(const PooledVectors& x, const QuerySplits& splits, std::int64_t group) {
  const std::int64_t kv_heads = x.heads / group;
  TileQueries queries;
  queries.begin.resize(static_cast<std::size_t>(kv_heads));
  queries.weight.resize(static_cast<std::size_t>(kv_heads));
  std::vector<std::vector<const double*>> from(static_cast<std::size_t>(kv_heads));
  std::size_t most = 0;
  for (std::int64_t g = 0; g < kv_heads; ++g) {
    auto& vectors = from[static_cast<std::size_t>(g)];
    auto& weight = queries.weight[static_cast<std::size_t>(g)];
    auto& begin = queries.begin[static_cast<std::size_t>(g)];
    for (std::int64_t i = 0; i < x.count; ++i) {
      begin.push_back(std::ssize(vectors));
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        if (splits.chosen[splits.at(h, i)] == 0) {
          vectors.push_back(x.row(h, i));
          weight.push_back(1.0);
          continue;
        }
        const double share = splits.share[splits.at(h, i)];
        for (const auto& [part, its_share] :
             {std::pair{&splits.first, share}, std::pair{&splits.second, 1.0 - share}}) {
          if (its_share == 0.0) continue;
          vectors.push_back(part->row(h, i));
          weight.push_back(its_share);
        }
      }
    }
    begin.push_back(std::ssize(vectors));
    most = std::max(most, vectors.size());
  }
  constexpr DType kType = std::is_same_v<T, float> ? DType::kF32 : DType::kBf16;
  queries.vectors = HeadsTensor(kType, kv_heads, static_cast<std::int64_t>(most), x.dim);
  for (std::int64_t g = 0; g < kv_heads; ++g) {
    const auto& vectors = from[static_cast<std::size_t>(g)];
    for (std::size_t v = 0; v < vectors.size(); ++v) {
      std::transform(vectors[v], vectors[v] + x.dim,
                     queries.vectors.row<T>(g, static_cast<std::int64_t>(v)),
                     [](double value) { return from_float<T>(static_cast<float>(value)); });
    }
  }
  return queries;
}

/// Sum over heads and pooled queries of the softmax rows, several pooled keys a block: masses of an
/// attention without values.
Matrix pool_masses(const TileQueries& queries, const HeadsView& k, double scale, bool causal,
                   std::int64_t keys_per_block, std::int64_t b, const Isa& isa) {
  Matrix sum(b, b);
  const HeadsView q = queries.vectors.view();
  // So many block rows together as fill the lanes of a tile.
  const std::int64_t block_rows = std::max<std::int64_t>(1, kLanes / queries.most_in_a_row());
  const std::int64_t chunks = (b + block_rows - 1) / block_rows;
  const auto workspaces = make_row_attention(
      isa, k.dtype == DType::kBf16 && q.dtype == DType::kBf16, k, {}, num_threads());
  // Later rows are the longer ones when the sketch is causal.
  parallel_for(chunks, [&](std::int64_t index, int thread) {
    const std::int64_t begin = (chunks - 1 - index) * block_rows;
    const std::int64_t end = std::min(begin + block_rows, b);
    RowAttention& rows = *workspaces[static_cast<std::size_t>(thread)];
    for (std::int64_t g = 0; g < k.heads; ++g) {
      const auto first_of = [&](std::int64_t i) {
        return queries.begin[static_cast<std::size_t>(g)][static_cast<std::size_t>(i)];
      };
      const std::int64_t first = first_of(begin);
      rows.begin(1, first_of(end) - first, q.dim, scale);
      rows.want_masses();
      rows.set_queries(0, q, g, first, 0);
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t u = first_of(i); u < first_of(i + 1); ++u) {
          // The last pooled key that the block row sees.
          rows.set_position(u - first, (i + 1) * keys_per_block - 1);
        }
      }
      for (std::int64_t j = 0; j < (causal ? end : b); ++j) {
        rows.visit(g, {j, j * keys_per_block, std::min((j + 1) * keys_per_block, k.tokens),
                       causal && j > begin ? Mask::kCausal : Mask::kNone});
      }
      rows.end();
      for (std::int64_t i = begin; i < end; ++i) {
        std::span<const double> weights;
        if (!queries.weight.empty()) {
          weights = std::span(queries.weight[static_cast<std::size_t>(g)])
                        .subspan(static_cast<std::size_t>(first_of(i)));
        }
        rows.add_masses(0, first_of(i) - first, first_of(i + 1) - first, sum.row(i), weights);
      }
    }
  });
  return sum;
}

}  // namespace

Matrix transition(const AttentionProblem& problem, const SketchParams& params, StageTimes* times,
                  const Isa& isa) {
  problem.validate();
  if (problem.query_begin() != 0) {
    throw Error(ErrorKind::kUnsupported,
                "block scores of a prefill need the queries of all tokens");
  }
  const bool mean = params.aggregation == SketchParams::Aggregation::kHeadMean;
  const std::int64_t queries_per_block = params.block / params.tokens_per_query();
  const std::int64_t keys_per_block = params.block / params.tokens_per_key();
  const std::int64_t b = problem.geometry(params.block).key_blocks();
  // Signs and a permutation of all d' rows change no score (section 7), so a full transform is
  // scored without one.
  SketchParams effective = params;
  effective.exact = Sketch(params, problem.layer, problem.head_dim()).is_full();
  const Sketch sketch(effective, problem.layer, problem.head_dim());
  const double scale = sketch.logit_scale() / params.temperature;
  const bool keys_as_they_are = params.tokens_per_key() == 1 && effective.exact && !mean;
  // Keys in bf16 are taken as attention takes them, with the mean queries rounded to their type.
  const bool bf16 =
      keys_as_they_are && keys_per_block > 1 && problem.k.dtype == DType::kBf16 && isa.has_bf16();

  if (params.splits(problem.num_heads()) > 0 &&
      (mean || queries_per_block != 1 || keys_per_block == 1 || !effective.exact)) {
    throw std::logic_error("transition: these scores cannot split the queries of a block");
  }
  PooledVectors q;
  PooledVectors k;
  std::optional<QuerySplits> splits;
  {
    const StageTimer timer(times, Stage::kPool);
    q = pool(problem.q, params.tokens_per_query(), params.partial_mean, bf16, *isa.scores);
    if (!keys_as_they_are) {
      k = pool(problem.k, params.tokens_per_key(), params.partial_mean, false, *isa.scores);
    }
    if (params.splits(problem.num_heads()) > 0) splits = split(problem, params, *isa.scores);
    if (mean) {
      q = mean_over_heads(q);
      k = mean_over_heads(k);
    }
  }
  const StageTimer timer(times, Stage::kSketch);
  if (!effective.exact) {
    q = transform(q, sketch);
    k = transform(k, sketch);
  }
  Matrix a;
  if (keys_per_block == 1) {
    a = block_probabilities(q, k, scale, params.causal, queries_per_block, b, *isa.scores);
  } else {
    const std::int64_t group = mean ? 1 : problem.group();
    const auto queries_as = [&]<class T>(T) {
      return splits ? tile_queries<T>(q, *splits, group)
                    : tile_queries<T>(q, group, queries_per_block, b);
    };
    const TileQueries queries = bf16 ? queries_as(Bf16{}) : queries_as(float{});
    const HeadsTensor pooled_k = keys_as_they_are ? HeadsTensor() : beside<float>(k, 1);
    a = pool_masses(queries, keys_as_they_are ? problem.k : pooled_k.view(), scale, params.causal,
                    keys_per_block, b, isa);
  }
  finish_transition(a, params, q.heads, q.count);
  return a;
}

}  // namespace sw::cpu
