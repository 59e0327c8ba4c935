#include "kernels/cpu/row_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "kernels/cpu/gather.hpp"

namespace sw::cpu {
namespace {

TokenRows rows_of(const HeadsView& x, std::int64_t head, std::int64_t begin, std::int64_t count) {
  return {x.row(head, begin), x.dtype, x.token_stride, static_cast<std::int32_t>(count),
          static_cast<std::int32_t>(x.dim)};
}

}  // namespace

void RowAttention::begin(std::int64_t heads, std::int64_t queries, std::int64_t dim, double scale) {
  element_bytes_ = dtype_size(kernel_->element);
  heads_ = heads;
  queries_ = queries;
  dim_ = dim;
  padded_dim_ = (dim + kernel_->dim_step - 1) / kernel_->dim_step * kernel_->dim_step;
  packs_ = (heads * queries + kLanes - 1) / kLanes;
  token_window_ = token_sink_ = 0;
  masses_ = normalized_ = false;
  scale_ = static_cast<float>(scale * std::numbers::log2e);
  const auto lanes = static_cast<std::size_t>(packs_ * kLanes);
  const std::size_t tile_bytes =
      std::size_t{kTileKeys} * static_cast<std::size_t>(padded_dim_) * element_bytes_;
  qt_.assign(lanes * static_cast<std::size_t>(padded_dim_) * element_bytes_, std::byte{0});
  k_.resize(tile_bytes);
  v_.resize(tile_bytes);
  ot_.assign(lanes * static_cast<std::size_t>(padded_dim_), 0.0f);
  m_.assign(lanes, -std::numeric_limits<float>::infinity());
  l_.assign(lanes, 0.0f);
  s_.resize(std::size_t{kTileKeys} * kLanes);
  position_.assign(lanes, -1);
  tile_block_.clear();
  tile_sum_.clear();
  tile_max_.clear();
}

template <class F>
void RowAttention::for_packs(std::int64_t head, F&& f) const {
  for (std::int64_t query = 0; query < queries_;) {
    const std::int64_t lane = lane_of(head, query);
    const std::int64_t count = std::min(queries_ - query, kLanes - lane % kLanes);
    f(lane / kLanes, static_cast<std::int32_t>(lane % kLanes), query, count);
    query += count;
  }
}

void RowAttention::set_queries(std::int64_t head, const HeadsView& q, std::int64_t q_head,
                               std::int64_t first, std::int64_t position) {
  for_packs(head,
            [&](std::int64_t pack, std::int32_t lane, std::int64_t query, std::int64_t count) {
              kernel_->pack_queries(rows_of(q, q_head, first + query, count), lane, qt(pack));
              std::int32_t* positions = position_.data() + pack * kLanes + lane;
              for (std::int64_t i = 0; i < count; ++i) {
                positions[i] = static_cast<std::int32_t>(position + query + i);
              }
            });
}

void RowAttention::set_position(std::int64_t query, std::int64_t position) {
  for (std::int64_t h = 0; h < heads_; ++h) {
    position_[static_cast<std::size_t>(lane_of(h, query))] = static_cast<std::int32_t>(position);
  }
}

void RowAttention::set_token_parts(std::int64_t window, std::int64_t sink) {
  token_window_ = window;
  token_sink_ = sink;
}

void RowAttention::visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head,
                         const KeyRange& keys) {
  const bool output = v.heads > 0;
  // Rows that already lie as Tile::k wants them stay where they are.
  const bool in_place = k.dtype == kernel_->element && k.token_stride == dim_ && dim_ == padded_dim_;
  for (std::int64_t begin = keys.begin; begin < keys.end; begin += kTileKeys) {
    const std::int64_t end = std::min(begin + kTileKeys, keys.end);
    const TokenRows key_rows = rows_of(k, kv_head, begin, end - begin);
    if (!in_place) kernel_->pack_keys(key_rows, k_.data());
    if (output) kernel_->pack_values(rows_of(v, kv_head, begin, end - begin), v_.data());
    const std::size_t tile_offset = tile_sum_.size();
    if (masses_) {
      tile_block_.push_back(keys.block);
      tile_sum_.resize(tile_offset + static_cast<std::size_t>(packs_ * kLanes));
      tile_max_.resize(tile_sum_.size());
    }
    for (std::int64_t pack = 0; pack < packs_; ++pack) {
      const std::int64_t used = std::min<std::int64_t>(heads_ * queries_ - pack * kLanes, kLanes);
      const std::int64_t width = kernel_->vector_lanes;
      Tile tile{};
      tile.qt = qt(pack);
      tile.k = in_place ? key_rows.data : k_.data();
      tile.v = output ? v_.data() : nullptr;
      tile.position = position_.data() + pack * kLanes;
      tile.scale = scale_;
      tile.dim = static_cast<std::int32_t>(dim_);
      tile.lanes = static_cast<std::int32_t>((used + width - 1) / width * width);
      tile.keys = static_cast<std::int32_t>(end - begin);
      tile.key_begin = static_cast<std::int32_t>(begin);
      tile.mask = keys.mask;
      tile.token_window = static_cast<std::int32_t>(token_window_);
      tile.token_sink = static_cast<std::int32_t>(token_sink_);
      tile.s = s_.data();
      tile.m = m_.data() + pack * kLanes;
      tile.l = l_.data() + pack * kLanes;
      tile.ot = ot_.data() + pack * padded_dim_ * kLanes;
      if (masses_) {
        tile.tile_sum = tile_sum_.data() + tile_offset + pack * kLanes;
        tile.tile_max = tile_max_.data() + tile_offset + pack * kLanes;
      }
      kernel_->run(tile);
    }
  }
}

void RowAttention::visit_singles(const HeadsView& k, const HeadsView& v, std::int64_t kv_head,
                                 std::span<const std::int32_t> tokens) {
  const auto count = std::ssize(tokens);
  for (std::int64_t begin = 0; begin < count; begin += kTileKeys) {
    const auto some =
        tokens.subspan(static_cast<std::size_t>(begin),
                       static_cast<std::size_t>(std::min<std::int64_t>(count - begin, kTileKeys)));
    visit(gather_rows(k, kv_head, some, gathered_k_), gather_rows(v, kv_head, some, gathered_v_), 0,
          {0, 0, std::ssize(some), Mask::kNone});
  }
}

void RowAttention::finish(std::int64_t head, float* out, double* lse) const {
  for_packs(head, [&](std::int64_t pack, std::int32_t lane, std::int64_t query,
                      std::int64_t count) {
    const float* m = m_.data() + pack * kLanes + lane;
    const float* l = l_.data() + pack * kLanes + lane;
    kernel_->finish(ot_.data() + pack * padded_dim_ * kLanes, l_.data() + pack * kLanes, lane,
                    static_cast<std::int32_t>(count), static_cast<std::int32_t>(dim_),
                    out + query * dim_);
    for (std::int64_t i = 0; i < count; ++i) {
      lse[query + i] = l[i] == 0.0f ? -std::numeric_limits<double>::infinity()
                                    : (double{m[i]} + std::log2(double{l[i]})) * std::numbers::ln2;
    }
  });
}

void RowAttention::add_masses(std::int64_t head, std::int64_t begin, std::int64_t end,
                              std::span<double> sum) {
  const std::int64_t lanes = packs_ * kLanes;
  for (std::size_t i = 0; i < tile_block_.size(); ++i) {
    float* tile_sum = tile_sum_.data() + static_cast<std::int64_t>(i) * lanes;
    if (!normalized_) {
      const float* tile_max = tile_max_.data() + static_cast<std::int64_t>(i) * lanes;
      kernel_->normalize(tile_sum, tile_max, m_.data(), l_.data(), lanes);
    }
    double total = 0.0;
    for (std::int64_t q = begin; q < end; ++q) total += tile_sum[lane_of(head, q)];
    sum[static_cast<std::size_t>(tile_block_[i])] += total;
  }
  normalized_ = true;
}

}  // namespace sw::cpu
