#include "kernels/cpu/row_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace sw::cpu {

void RowAttention::begin(std::int64_t heads, std::int64_t queries, std::int64_t dim, double scale) {
  heads_ = heads;
  queries_ = queries;
  dim_ = dim;
  packs_ = (heads * queries + kLanes - 1) / kLanes;
  token_window_ = token_sink_ = mass_blocks_ = 0;
  scale_ = static_cast<float>(scale * std::numbers::log2e);
  const auto lanes = static_cast<std::size_t>(packs_ * kLanes);
  qt_.assign(lanes * static_cast<std::size_t>(dim), 0.0f);
  ot_.assign(lanes * static_cast<std::size_t>(dim), 0.0f);
  m_.assign(lanes, -std::numeric_limits<float>::infinity());
  l_.assign(lanes, 0.0f);
  s_.resize(std::size_t{kTileKeys} * kLanes);
  position_.assign(lanes, -1);
  tile_block_.clear();
  tile_sum_.clear();
  tile_max_.clear();
}

void RowAttention::set_query(std::int64_t head, std::int64_t query, const float* values,
                             std::int64_t position) {
  const std::int64_t lane = lane_of(head, query);
  float* column = qt(lane / kLanes) + lane % kLanes;
  for (std::int64_t j = 0; j < dim_; ++j) column[j * kLanes] = values[j] * scale_;
  position_[static_cast<std::size_t>(lane)] = static_cast<std::int32_t>(position);
}

void RowAttention::set_token_parts(std::int64_t window, std::int64_t sink) {
  token_window_ = window;
  token_sink_ = sink;
}

void RowAttention::want_masses(std::int64_t blocks) { mass_blocks_ = blocks; }

void RowAttention::load_keys(const HeadsView& x, std::int64_t head, std::int64_t begin,
                             std::int64_t end, std::vector<float>& to) const {
  to.resize(static_cast<std::size_t>(kTileKeys * dim_));
  for (std::int64_t t = begin; t < end; ++t) x.load_row(head, t, to.data() + (t - begin) * dim_);
}

void RowAttention::visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head,
                         const KeyRange& keys) {
  const bool output = v.heads > 0;
  for (std::int64_t begin = keys.begin; begin < keys.end; begin += kTileKeys) {
    const std::int64_t end = std::min(begin + kTileKeys, keys.end);
    load_keys(k, kv_head, begin, end, k_);
    if (output) load_keys(v, kv_head, begin, end, v_);
    const std::size_t tile_offset = tile_sum_.size();
    if (mass_blocks_ > 0) {
      tile_block_.push_back(keys.block);
      tile_sum_.resize(tile_offset + static_cast<std::size_t>(packs_ * kLanes));
      tile_max_.resize(tile_sum_.size());
    }
    for (std::int64_t pack = 0; pack < packs_; ++pack) {
      const std::int64_t used = std::min<std::int64_t>(heads_ * queries_ - pack * kLanes, kLanes);
      const std::int64_t width = kernel_->vector_lanes;
      Tile tile{};
      tile.qt = qt(pack);
      tile.k = k_.data();
      tile.v = output ? v_.data() : nullptr;
      tile.position = position_.data() + pack * kLanes;
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
      tile.ot = ot(pack);
      if (mass_blocks_ > 0) {
        tile.tile_sum = tile_sum_.data() + tile_offset + pack * kLanes;
        tile.tile_max = tile_max_.data() + tile_offset + pack * kLanes;
      }
      kernel_->run(tile);
    }
  }
}

double RowAttention::finish(std::int64_t head, std::int64_t query, float* out) const {
  const std::int64_t lane = lane_of(head, query);
  const float* column = ot_.data() + lane / kLanes * dim_ * kLanes + lane % kLanes;
  const float l = l_[static_cast<std::size_t>(lane)];
  const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
  for (std::int64_t j = 0; j < dim_; ++j) out[j] = column[j * kLanes] * inverse;
  if (l == 0.0f) return -std::numeric_limits<double>::infinity();
  return (static_cast<double>(m_[static_cast<std::size_t>(lane)]) + std::log2(double{l})) *
         std::numbers::ln2;
}

void RowAttention::add_masses(std::int64_t head, std::span<double> sum) {
  const std::int64_t lanes = packs_ * kLanes;
  for (std::size_t i = 0; i < tile_block_.size(); ++i) {
    float* tile_sum = tile_sum_.data() + static_cast<std::int64_t>(i) * lanes;
    if (head == 0) {
      const float* tile_max = tile_max_.data() + static_cast<std::int64_t>(i) * lanes;
      kernel_->normalize(tile_sum, tile_max, m_.data(), l_.data(), lanes);
    }
    double total = 0.0;
    for (std::int64_t q = 0; q < queries_; ++q) total += tile_sum[lane_of(head, q)];
    sum[static_cast<std::size_t>(tile_block_[i])] += total;
  }
}

}  // namespace sw::cpu
