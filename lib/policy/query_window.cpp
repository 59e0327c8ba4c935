#include "policy/query_window.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/parallel.hpp"

namespace sw {
namespace {

/// Signs and a permutation of all d' rows change no score (section 7), so that a full transform is
/// left out.
SketchParams without_full_transform(SketchParams params, std::int64_t layer, std::int64_t dim) {
  params.exact = Sketch(params, layer, dim).is_full();
  return params;
}

/// Tables have rows of a multiple of 8 and zeros after the last column in use, so that products
/// need no columns one by one.
std::int64_t round_up(std::int64_t count) { return (count + 7) / 8 * 8; }

/// Gives each of the rows [.., from] of x the length `to`, filled up with zeros.
void widen_rows(std::vector<float>& x, std::int64_t from, std::int64_t to) {
  const std::int64_t rows = std::ssize(x) / from;
  std::vector<float> wide(static_cast<std::size_t>(rows * to), 0.0f);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy_n(x.begin() + i * from, from, wide.begin() + i * to);
  }
  x = std::move(wide);
}

}  // namespace

QueryWindow::QueryWindow(const SketchParams& params, std::int64_t layer, std::int64_t heads,
                         std::int64_t kv_heads, std::int64_t dim, std::int64_t size)
    : params_(without_full_transform(params, layer, dim)),
      sketch_(params_, layer, dim),
      scale_(sketch_.logit_scale() / params.temperature),
      size_(size),
      pools_per_block_(params.block / params.tokens_per_key()),
      keys_(kv_heads, dim, params.tokens_per_key()),
      finished_keys_(static_cast<std::size_t>(kv_heads)),
      heads_(static_cast<std::size_t>(heads)) {
  assert(size >= 1);
  const auto sketch_dim = static_cast<std::size_t>(sketch_.dim());
  const auto queries = static_cast<std::size_t>(size);
  pool_capacity_ = block_capacity_ = 8;
  for (auto& keys : finished_keys_) keys.resize(sketch_dim * 8);
  for (Head& head : heads_) {
    head.sketches.resize(sketch_dim * queries);
    head.largest.resize(queries);
    head.total.resize(queries);
    head.blocks.resize(queries * 8);
  }
}

/// Makes room for `pools` finished pools and an eighth more: rows that are nearly full are read
/// faster.
void QueryWindow::reserve(std::int64_t pools) {
  if (pools > pool_capacity_) {
    const std::int64_t capacity = round_up(pools + pool_capacity_ / 8);
    for (auto& keys : finished_keys_) widen_rows(keys, pool_capacity_, capacity);
    pool_capacity_ = capacity;
  }
  const std::int64_t blocks = (pools + pools_per_block_ - 1) / pools_per_block_;
  if (blocks > block_capacity_) {
    const std::int64_t capacity = round_up(blocks + block_capacity_ / 8);
    for (Head& head : heads_) widen_rows(head.blocks, block_capacity_, capacity);
    block_capacity_ = capacity;
  }
}

std::vector<double> QueryWindow::key_sketch(std::int64_t kv_head, std::int64_t pool) const {
  std::vector<double> mean(static_cast<std::size_t>(keys_.dim()));
  keys_.mean(kv_head, pool, params_.partial_mean, mean.data());
  std::vector<double> y(static_cast<std::size_t>(sketch_.dim()));
  sketch_.apply(mean.data(), y.data());
  return y;
}

QueryWindow::Joined QueryWindow::join(const Head& head, const std::vector<double>& key,
                                      const Backend& backend) const {
  const auto count = static_cast<std::size_t>(queries_);
  Joined joined{std::vector<double>(count), std::vector<double>(count),
                std::vector<double>(count, 0.0)};
  backend.add_row_product(key, head.sketches.data(), size_, joined.value);
  for (std::size_t i = 0; i < count; ++i) {
    const double logit = scale_ * joined.value[i];
    joined.largest[i] = std::max(head.largest[i], logit);
    joined.shrink[i] = head.largest[i] - joined.largest[i];
    joined.value[i] = logit - joined.largest[i];
  }
  backend.exponentials(joined.shrink, 0.0);
  backend.exponentials(joined.value, 0.0);
  return joined;
}

/// Takes the pools up to `end`, whose keys are complete, into the queries' sums.
void QueryWindow::finish_pools(std::int64_t end, const Backend& backend) {
  const std::int64_t group = std::ssize(heads_) / keys_.heads();
  parallel_for(keys_.heads(), [&](std::int64_t g, int) {
    for (std::int64_t pool = finished_; pool < end; ++pool) {
      const std::vector<double> y = key_sketch(g, pool);
      for (std::size_t i = 0; i < y.size(); ++i) {
        finished_keys_[g][static_cast<std::int64_t>(i) * pool_capacity_ + pool] =
            static_cast<float>(y[i]);
      }
      const std::int64_t block = pool / pools_per_block_;
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h) {
        Head& head = heads_[h];
        const Joined joined = join(head, y, backend);
        for (std::int64_t i = 0; i < queries_; ++i) {
          float* blocks = head.blocks.data() + i * block_capacity_;
          if (joined.shrink[i] != 1.0) {
            for (std::int64_t j = 0; j <= block; ++j) {
              blocks[j] = static_cast<float>(joined.shrink[i] * blocks[j]);
            }
          }
          blocks[block] = static_cast<float>(blocks[block] + joined.value[i]);
          head.total[i] = head.total[i] * joined.shrink[i] + joined.value[i];
          head.largest[i] = joined.largest[i];
        }
      }
    }
  });
  finished_ = end;
}

/// Puts a query into a slot of the window, with its sums over the finished pools.
void QueryWindow::add_query(Head& head, std::int64_t slot, std::int64_t kv_head, const double* x,
                            const Backend& backend) const {
  std::vector<double> y(static_cast<std::size_t>(sketch_.dim()));
  sketch_.apply(x, y.data());
  for (std::size_t i = 0; i < y.size(); ++i) {
    head.sketches[static_cast<std::int64_t>(i) * size_ + slot] = static_cast<float>(y[i]);
    y[i] *= scale_;
  }
  std::vector<double> p(static_cast<std::size_t>(round_up(finished_)), 0.0);
  backend.add_row_product(y, finished_keys_[kv_head].data(), pool_capacity_, p);
  p.resize(static_cast<std::size_t>(finished_));
  double largest = -std::numeric_limits<double>::infinity();
  for (const double logit : p) largest = std::max(largest, logit);
  head.largest[slot] = largest;
  head.total[slot] = backend.exponentials(p, largest);
  float* blocks = head.blocks.data() + slot * block_capacity_;
  for (std::int64_t u = 0; u < finished_; u += pools_per_block_) {
    const std::int64_t end = std::min(u + pools_per_block_, finished_);
    *blocks++ = static_cast<float>(std::accumulate(p.begin() + u, p.begin() + end, 0.0));
  }
  std::fill(blocks, head.blocks.data() + (slot + 1) * block_capacity_, 0.0f);
}

void QueryWindow::add_keys(const HeadsView& k, const Backend& backend) {
  keys_.append(k);
  reserve(keys_.count());
  if (finished_ + 1 < keys_.count()) finish_pools(keys_.count() - 1, backend);
}

void QueryWindow::add_queries(const HeadsView& q, const Backend& backend) {
  const std::int64_t kept = std::min(size_, q.tokens);
  const std::int64_t group = q.heads / keys_.heads();
  parallel_for(q.heads, [&](std::int64_t h, int) {
    std::vector<float> row(static_cast<std::size_t>(q.dim));
    for (std::int64_t i = 0; i < kept; ++i) {
      q.load_row(h, q.tokens - kept + i, row.data());
      const std::vector<double> x(row.begin(), row.end());
      add_query(heads_[h], (next_ + i) % size_, h / group, x.data(), backend);
    }
  });
  next_ = (next_ + kept) % size_;
  queries_ = std::min(size_, queries_ + kept);
}

std::vector<double> QueryWindow::block_row(const Backend& backend) const {
  assert(keys_.count() > 0 && queries_ > 0);
  const std::int64_t newest = keys_.count() - 1;
  const std::int64_t block = newest / pools_per_block_;
  const std::int64_t finished = (finished_ + pools_per_block_ - 1) / pools_per_block_;
  const std::int64_t group = std::ssize(heads_) / keys_.heads();
  std::vector<std::vector<double>> newest_keys;
  for (std::int64_t g = 0; g < keys_.heads(); ++g) newest_keys.push_back(key_sketch(g, newest));
  Matrix per_head(std::ssize(heads_), round_up(block + 1));
  parallel_for(std::ssize(heads_), [&](std::int64_t h, int) {
    const Head& head = heads_[h];
    const std::span<double> sum = per_head.row(h);
    Joined joined = join(head, newest_keys[h / group], backend);
    double of_newest = 0.0;
    for (std::int64_t i = 0; i < queries_; ++i) {
      const double total = joined.shrink[i] * head.total[i] + joined.value[i];
      of_newest += joined.value[i] / total;
      joined.shrink[i] /= total;
    }
    backend.add_row_product(joined.shrink, head.blocks.data(), block_capacity_,
                            sum.first(static_cast<std::size_t>(round_up(finished))));
    sum[block] += of_newest;
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
