#include "policy/query_window.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/parallel.hpp"

namespace sw {

QueryWindow::QueryWindow(const SketchParams& params, std::int64_t layer, std::int64_t heads,
                         std::int64_t kv_heads, std::int64_t dim, std::int64_t size)
    : params_(params),
      sketch_(params, layer, dim),
      scale_(sketch_.logit_scale() / params.temperature),
      size_(size),
      pools_per_block_(params.block / params.tokens_per_key()),
      keys_(kv_heads, dim, params.tokens_per_key()),
      finished_keys_(static_cast<std::size_t>(kv_heads)),
      queries_(static_cast<std::size_t>(heads)) {
  assert(size >= 1);
}

std::vector<double> QueryWindow::key_sketch(std::int64_t kv_head, std::int64_t pool) const {
  std::vector<double> mean(static_cast<std::size_t>(keys_.dim()));
  keys_.mean(kv_head, pool, params_.partial_mean, mean.data());
  std::vector<double> y(static_cast<std::size_t>(sketch_.dim()));
  sketch_.apply(mean.data(), y.data());
  return y;
}

double QueryWindow::logit(const Query& query, const double* key) const {
  double partial[8] = {};  // independent sums, for the compiler to vectorise
  const std::int64_t dim = sketch_.dim();
  std::int64_t i = 0;
  for (; i + 8 <= dim; i += 8) {
    for (int j = 0; j < 8; ++j) partial[j] += query.sketch[i + j] * key[i + j];
  }
  double sum = std::accumulate(std::begin(partial), std::end(partial), 0.0);
  for (; i < dim; ++i) sum += query.sketch[i] * key[i];
  return scale_ * sum;
}

void QueryWindow::add_logit(Query& query, std::int64_t block, double logit) {
  if (logit > query.largest) {
    const double shrink = std::exp(query.largest - logit);
    for (double& x : query.blocks) x *= shrink;
    query.total *= shrink;
    query.largest = logit;
  }
  if (std::ssize(query.blocks) <= block) query.blocks.resize(static_cast<std::size_t>(block + 1));
  const double value = std::exp(logit - query.largest);
  query.blocks[block] += value;
  query.total += value;
}

/// Takes the pools up to `end`, whose keys are complete, into the queries' sums.
void QueryWindow::finish_pools(std::int64_t end) {
  const std::int64_t dim = sketch_.dim();
  const std::int64_t group = std::ssize(queries_) / keys_.heads();
  parallel_for(keys_.heads(), [&](std::int64_t g, int) {
    std::vector<double>& stored = finished_keys_[g];
    stored.resize(static_cast<std::size_t>((end + kLanes - 1) / kLanes * kLanes * dim));
    for (std::int64_t pool = finished_; pool < end; ++pool) {
      const std::vector<double> y = key_sketch(g, pool);
      double* lane = stored.data() + pool / kLanes * dim * kLanes + pool % kLanes;
      for (std::int64_t i = 0; i < dim; ++i) lane[i * kLanes] = y[i];
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        for (Query& query : queries_[h]) {
          add_logit(query, pool / pools_per_block_, logit(query, y.data()));
        }
      }
    }
  });
  finished_ = end;
}

/// Fills a new query's sums from the finished pools.
void QueryWindow::score_finished(std::int64_t kv_head, Query& query) const {
  const std::int64_t dim = sketch_.dim();
  std::vector<double> logits(static_cast<std::size_t>((finished_ + kLanes - 1) / kLanes * kLanes));
  for (std::int64_t first = 0; first < finished_; first += kLanes) {
    const double* keys = finished_keys_[kv_head].data() + first * dim;
    double sum[kLanes] = {};
    for (std::int64_t i = 0; i < dim; ++i) {
      for (std::int64_t j = 0; j < kLanes; ++j) sum[j] += query.sketch[i] * keys[i * kLanes + j];
    }
    for (std::int64_t j = 0; j < kLanes; ++j) logits[first + j] = scale_ * sum[j];
  }
  logits.resize(static_cast<std::size_t>(finished_));
  query.largest = -std::numeric_limits<double>::infinity();
  for (const double x : logits) query.largest = std::max(query.largest, x);
  query.blocks.assign(
      static_cast<std::size_t>((finished_ + pools_per_block_ - 1) / pools_per_block_), 0.0);
  query.total = 0.0;
  for (std::int64_t u = 0; u < finished_; ++u) {
    const double value = std::exp(logits[u] - query.largest);
    query.blocks[u / pools_per_block_] += value;
    query.total += value;
  }
}

void QueryWindow::add_keys(const HeadsView& k) {
  keys_.append(k);
  if (finished_ + 1 < keys_.count()) finish_pools(keys_.count() - 1);
}

void QueryWindow::add_queries(const HeadsView& q) {
  const std::int64_t kept = std::min(size_, q.tokens);
  const std::int64_t group = q.heads / keys_.heads();
  parallel_for(q.heads, [&](std::int64_t h, int) {
    std::vector<Query>& window = queries_[h];
    std::vector<float> row(static_cast<std::size_t>(q.dim));
    for (std::int64_t i = 0; i < kept; ++i) {
      q.load_row(h, q.tokens - kept + i, row.data());
      const std::vector<double> x(row.begin(), row.end());
      const std::int64_t slot = (next_ + i) % size_;
      if (std::ssize(window) <= slot) window.emplace_back();
      Query& query = window[slot];
      query.sketch.resize(static_cast<std::size_t>(sketch_.dim()));
      sketch_.apply(x.data(), query.sketch.data());
      score_finished(h / group, query);
    }
  });
  next_ = (next_ + kept) % size_;
}

std::vector<double> QueryWindow::block_row() const {
  assert(keys_.count() > 0 && !queries_.front().empty());
  const std::int64_t newest = keys_.count() - 1;
  const std::int64_t block = newest / pools_per_block_;
  const std::int64_t group = std::ssize(queries_) / keys_.heads();
  std::vector<std::vector<double>> newest_keys;
  for (std::int64_t g = 0; g < keys_.heads(); ++g) newest_keys.push_back(key_sketch(g, newest));
  Matrix per_head(std::ssize(queries_), block + 1);
  parallel_for(std::ssize(queries_), [&](std::int64_t h, int) {
    const std::span<double> sum = per_head.row(h);
    for (const Query& query : queries_[h]) {
      const double x = logit(query, newest_keys[h / group].data());
      const double largest = std::max(query.largest, x);
      const double shrink = std::exp(query.largest - largest);
      const double value = std::exp(x - largest);
      const double total = shrink * query.total + value;
      const double factor = shrink / total;
      for (std::size_t j = 0; j < query.blocks.size(); ++j) sum[j] += factor * query.blocks[j];
      sum[block] += value / total;
    }
  });
  std::vector<double> row(static_cast<std::size_t>(block + 1), 0.0);
  for (std::int64_t h = 0; h < per_head.rows(); ++h) {
    for (std::int64_t j = 0; j <= block; ++j) row[j] += per_head(h, j);
  }
  const double total = std::accumulate(row.begin(), row.end(), 0.0);
  for (double& x : row) x /= total;
  return row;
}

}  // namespace sw
