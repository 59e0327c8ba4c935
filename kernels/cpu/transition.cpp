#include "kernels/cpu/transition.hpp"

#include <algorithm>
#include <type_traits>
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

/// The same for several pooled keys a block: masses of an attention without values. `q` has the
/// `group` query heads of a KV head beside each other.
Matrix pool_masses(const HeadsView& q, const HeadsView& k, std::int64_t group, double scale,
                   bool causal, std::int64_t queries_per_block, std::int64_t keys_per_block,
                   std::int64_t b, const Isa& isa) {
  Matrix sum(b, b);
  const std::int64_t per_block = group * queries_per_block;
  // So many block rows together as fill the lanes of a tile.
  const std::int64_t block_rows = std::max<std::int64_t>(1, kLanes / per_block);
  const std::int64_t chunks = (b + block_rows - 1) / block_rows;
  const auto workspaces = make_row_attention(
      isa, k.dtype == DType::kBf16 && q.dtype == DType::kBf16, k, {}, num_threads());
  // Later rows are the longer ones when the sketch is causal.
  parallel_for(chunks, [&](std::int64_t index, int thread) {
    const std::int64_t begin = (chunks - 1 - index) * block_rows;
    const std::int64_t end = std::min(begin + block_rows, b);
    const std::int64_t first = begin * per_block;
    const std::int64_t count = std::min(end * per_block, q.tokens) - first;
    RowAttention& rows = *workspaces[static_cast<std::size_t>(thread)];
    for (std::int64_t g = 0; g < k.heads; ++g) {
      rows.begin(1, count, q.dim, scale);
      rows.want_masses();
      rows.set_queries(0, q, g, first, 0);
      for (std::int64_t u = 0; u < count; ++u) {
        // The last pooled key that the block row sees.
        rows.set_position(u, (begin + u / per_block + 1) * keys_per_block - 1);
      }
      for (std::int64_t j = 0; j < (causal ? end : b); ++j) {
        rows.visit(g, {j, j * keys_per_block, std::min((j + 1) * keys_per_block, k.tokens),
                       causal && j > begin ? Mask::kCausal : Mask::kNone});
      }
      rows.end();
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t from = i * per_block - first;
        rows.add_masses(0, from, std::min(from + per_block, count), sum.row(i));
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

  PooledVectors q;
  PooledVectors k;
  {
    const StageTimer timer(times, Stage::kPool);
    q = pool(problem.q, params.tokens_per_query(), params.partial_mean, bf16, *isa.scores);
    if (!keys_as_they_are) {
      k = pool(problem.k, params.tokens_per_key(), params.partial_mean, false, *isa.scores);
    }
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
    const HeadsTensor pooled_q = bf16 ? beside<Bf16>(q, group) : beside<float>(q, group);
    const HeadsTensor pooled_k = keys_as_they_are ? HeadsTensor() : beside<float>(k, 1);
    a = pool_masses(pooled_q.view(), keys_as_they_are ? problem.k : pooled_k.view(), group, scale,
                    params.causal, queries_per_block, keys_per_block, b, isa);
  }
  finish_transition(a, params, q.heads, q.count);
  return a;
}

}  // namespace sw::cpu
