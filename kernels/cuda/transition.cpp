#include "kernels/cuda/transition.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "attention/pooled.hpp"
#include "core/error.hpp"
#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/device_tensor.hpp"
#include "kernels/cuda/sm80/block_scores.hpp"

namespace sw::cuda {
namespace {

/// Largest device copy of logits; more block rows than fit are computed in several turns.
constexpr std::int64_t kLogitBytes = std::int64_t{256} << 20;

PooledVectors pool(const HeadsPointer& data, const HeadsView& shape, std::int64_t size,
                   bool partial_mean) {
  PooledVectors pooled{shape.heads, (shape.tokens + size - 1) / size, shape.dim, {}};
  DeviceBuffer<double> means(static_cast<std::size_t>(pooled.heads * pooled.count * pooled.dim));
  sm80::TokenPooling pooling;
  pooling.x = data;
  pooling.element = element_of(shape.dtype);
  pooling.heads = static_cast<int>(shape.heads);
  pooling.head_dim = static_cast<int>(shape.dim);
  pooling.tokens = shape.tokens;
  pooling.pool = size;
  pooling.partial_mean = partial_mean;
  pooling.means = means.data();
  sm80::pool_tokens(pooling, nullptr);
  pooled.values = means.download();
  return pooled;
}

/// Sum over heads and pooled queries of the softmax rows, by key block: [b, b].
Matrix block_probabilities(const PooledVectors& q, const PooledVectors& k, double scale,
                           const SketchParams& params, std::int64_t b) {
  const std::int64_t queries_per_block = params.block / params.tokens_per_query();
  const std::int64_t keys_per_block = params.block / params.tokens_per_key();
  const DeviceBuffer<double> queries{std::span<const double>(q.values)};
  const DeviceBuffer<double> keys{std::span<const double>(k.values)};
  const std::int64_t row_bytes = queries_per_block * k.count * std::int64_t{sizeof(double)};
  const std::int64_t turn_rows = std::clamp<std::int64_t>(kLogitBytes / row_bytes, 1, b);
  const DeviceBuffer<double> logits(
      static_cast<std::size_t>(turn_rows * queries_per_block * k.count));
  const DeviceBuffer<double> sum(static_cast<std::size_t>(b * b));
  check(cudaMemset(sum.data(), 0, sum.bytes()), "clearing of block scores");
  for (std::int64_t h = 0; h < q.heads; ++h) {
    for (std::int64_t row = 0; row < b; row += turn_rows) {
      const std::int64_t begin = row * queries_per_block;
      const std::int64_t end = std::min(begin + turn_rows * queries_per_block, q.count);
      sm80::DoubleProduct scores;
      scores.m = end - begin;
      scores.n = k.count;
      scores.k = q.dim;
      scores.a = queries.data() + (h * q.count + begin) * q.dim;
      scores.b = keys.data() + h * k.heads / q.heads * k.count * k.dim;
      scores.b_transposed = true;
      scores.alpha = scale;
      scores.c = logits.data();
      sm80::multiply(scores, nullptr);
      sm80::BlockProbabilities rows;
      rows.logits = logits.data();
      rows.queries = end - begin;
      rows.keys = k.count;
      rows.queries_per_block = queries_per_block;
      rows.keys_per_block = keys_per_block;
      rows.first_row = row;
      rows.blocks = b;
      rows.causal = params.causal;
      rows.sum = sum.data();
      sm80::add_block_probabilities(rows, nullptr);
    }
  }
  synchronize(nullptr, "block scores");
  Matrix a(b, b);
  check(cudaMemcpy(a.row(0).data(), sum.data(), sum.bytes(), cudaMemcpyDeviceToHost),
        "copy of block scores from the GPU");
  return a;
}

}  // namespace

Matrix transition(const AttentionProblem& problem, const HeadsPointer& q_data,
                  const HeadsPointer& k_data, const SketchParams& params, StageTimes* times) {
  if (params.split_heads > 0.0) {
    throw Error(ErrorKind::kUnsupported, "the GPU pools the queries of a block in one part",
                "use split_heads=0, or --backend cpu");
  }
  PooledVectors q;
  PooledVectors k;
  {
    const StageTimer timer(times, Stage::kPool);
    q = pool(q_data, problem.q, params.tokens_per_query(), params.partial_mean);
    k = pool(k_data, problem.k, params.tokens_per_key(), params.partial_mean);
    if (params.aggregation == SketchParams::Aggregation::kHeadMean) {
      q = mean_over_heads(q);
      k = mean_over_heads(k);
    }
  }
  const StageTimer timer(times, Stage::kSketch);
  // Signs and a permutation of all d' rows change no score (section 7), so a full transform is
  // scored without one.
  SketchParams effective = params;
  effective.exact = Sketch(params, problem.layer, problem.head_dim()).is_full();
  const Sketch sketch(effective, problem.layer, problem.head_dim());
  if (!effective.exact) {
    q = transform(q, sketch);
    k = transform(k, sketch);
  }
  const std::int64_t b = problem.geometry(params.block).key_blocks();
  Matrix a = block_probabilities(q, k, sketch.logit_scale() / params.temperature, params, b);
  finish_transition(a, params, q.heads, q.count);
  return a;
}

Matrix walk(const Matrix& a, const Matrix& start, double alpha, double beta, std::int64_t degree) {
  const DeviceBuffer<double> step{a.values()};
  DeviceBuffer<double> state{start.values()};
  DeviceBuffer<double> next(state.size());
  for (std::int64_t i = 0; i < degree; ++i) {
    sm80::DoubleProduct product;
    product.m = product.n = product.k = a.rows();
    product.a = state.data();
    product.b = step.data();
    product.alpha = alpha;
    product.beta = beta;
    product.d = step.data();
    product.c = next.data();
    sm80::multiply(product, nullptr);
    std::swap(state, next);
  }
  synchronize(nullptr, "walk");
  Matrix result(a.rows(), a.cols());
  check(cudaMemcpy(result.row(0).data(), state.data(), state.bytes(), cudaMemcpyDeviceToHost),
        "copy of the walk from the GPU");
  return result;
}

}  // namespace sw::cuda
