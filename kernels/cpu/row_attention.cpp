#include "kernels/cpu/row_attention.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>

#include "core/parallel.hpp"
#include "kernels/cpu/gather.hpp"

namespace sw::cpu {

void RowAttention::begin(std::int64_t heads, std::int64_t queries, std::int64_t dim, double scale) {
  heads_ = heads;
  queries_ = queries;
  dim_ = dim;
  token_window_ = token_sink_ = 0;
  masses_ = output_only_ = false;
  scale_ = static_cast<float>(scale * std::numbers::log2e);
  position_.assign(static_cast<std::size_t>(all_rows()), -1);
  tile_block_.clear();
  tile_sum_.clear();
  tile_base_.clear();
  reset();
}

void RowAttention::set_queries(std::int64_t head, const HeadsView& q, std::int64_t q_head,
                               std::int64_t first, std::int64_t position) {
  const std::int64_t row = row_of(head, 0);
  pack_queries({q.row(q_head, first), q.dtype, q.token_stride, static_cast<std::int32_t>(queries_),
                static_cast<std::int32_t>(q.dim)},
               row);
  for (std::int64_t i = 0; i < queries_; ++i) {
    position_[static_cast<std::size_t>(row + i)] = static_cast<std::int32_t>(position + i);
  }
}

void RowAttention::set_position(std::int64_t query, std::int64_t position) {
  for (std::int64_t h = 0; h < heads_; ++h) {
    position_[static_cast<std::size_t>(row_of(h, query))] = static_cast<std::int32_t>(position);
  }
}

void RowAttention::set_token_parts(std::int64_t window, std::int64_t sink) {
  token_window_ = window;
  token_sink_ = sink;
}

std::size_t RowAttention::add_tile(std::int64_t block) {
  const std::size_t offset = tile_sum_.size();
  tile_block_.push_back(block);
  tile_sum_.resize(offset + static_cast<std::size_t>(all_rows()));
  tile_base_.resize(tile_sum_.size());
  return offset;
}

void RowAttention::finish(std::int64_t head, float* out, double* lse) const {
  const std::int64_t row = row_of(head, 0);
  unpack(row, static_cast<std::int32_t>(queries_), out);
  if (lse == nullptr) return;
  for (std::int64_t i = 0; i < queries_; ++i) {
    const float sum = sum_[static_cast<std::size_t>(row + i)];
    const float base = base_[static_cast<std::size_t>(row + i)];
    lse[i] = sum == 0.0f ? -std::numeric_limits<double>::infinity()
                         : (double{base} + std::log2(double{sum})) * std::numbers::ln2;
  }
}

void RowAttention::add_masses(std::int64_t head, std::int64_t begin, std::int64_t end,
                              std::span<double> sum, std::span<const double> weights) const {
  const float* share = tile_sum_.data() + row_of(head, 0);
  for (const std::int64_t block : tile_block_) {
    double total = 0.0;
    for (std::int64_t q = begin; q < end; ++q) {
      total += weights.empty() ? share[q] : weights[static_cast<std::size_t>(q - begin)] * share[q];
    }
    sum[static_cast<std::size_t>(block)] += total;
    share += all_rows();
  }
}

namespace {

TokenRows rows_of(const HeadsView& x, std::int64_t head, std::int64_t begin, std::int64_t count) {
  return {x.row(head, begin), x.dtype, x.token_stride, static_cast<std::int32_t>(count),
          static_cast<std::int32_t>(x.dim)};
}

/// Rows as the lanes of vectors, tile by tile.
class LaneAttention final : public RowAttention {
 public:
  LaneAttention(const TileKernel& kernel, const HeadsView& k, const HeadsView& v)
      : RowAttention(kLanes, kernel.dim_step),
        kernel_(kernel),
        element_bytes_(dtype_size(kernel.element)),
        keys_(k),
        values_(v) {}

  void visit(std::int64_t kv_head, const KeyRange& keys) override {
    visit(keys_, values_, kv_head, keys);
  }
  void visit_singles(std::int64_t kv_head, std::span<const std::int32_t> tokens) override;
  void end() override;

 private:
  void reset() override;
  void pack_queries(const TokenRows& rows, std::int64_t row) override;
  void unpack(std::int64_t row, std::int32_t count, float* out) const override;
  void visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head, const KeyRange& keys);

  /// Calls f(pack, lane in the pack, rows before, rows) for the packs that hold [row, row + count).
  template <class F>
  static void for_packs(std::int64_t row, std::int64_t count, F&& f) {
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t lane = (row + done) % kLanes;
      const std::int64_t some = std::min(count - done, kLanes - lane);
      f((row + done) / kLanes, static_cast<std::int32_t>(lane), done,
        static_cast<std::int32_t>(some));
      done += some;
    }
  }
  std::byte* qt(std::int64_t pack) {
    return qt_.data() + static_cast<std::size_t>(pack * kLanes * padded_dim()) * element_bytes_;
  }

  const TileKernel& kernel_;
  std::size_t element_bytes_;
  HeadsView keys_, values_;
  LineVector<std::byte> qt_, k_, v_;
  LineVector<std::byte> gathered_k_, gathered_v_;
  LineVector<float> ot_, s_;
};

void LaneAttention::reset() {
  const auto lanes = static_cast<std::size_t>(all_rows());
  const auto padded = static_cast<std::size_t>(padded_dim());
  qt_.assign(lanes * padded * element_bytes_, std::byte{0});
  k_.resize(std::size_t{kTileKeys} * padded * element_bytes_);
  v_.resize(k_.size());
  ot_.assign(lanes * padded, 0.0f);
  base_.assign(lanes, -std::numeric_limits<float>::infinity());
  sum_.assign(lanes, 0.0f);
  s_.resize(std::size_t{kTileKeys} * kLanes);
}

void LaneAttention::pack_queries(const TokenRows& rows, std::int64_t row) {
  for_packs(row, rows.count,
            [&](std::int64_t pack, std::int32_t lane, std::int64_t done, std::int32_t count) {
              TokenRows some = rows;
              some.data = static_cast<const std::byte*>(rows.data) +
                          done * rows.stride * static_cast<std::int64_t>(dtype_size(rows.dtype));
              some.count = count;
              kernel_.pack_queries(some, lane, qt(pack));
            });
}

void LaneAttention::visit(const HeadsView& k, const HeadsView& v, std::int64_t kv_head,
                          const KeyRange& keys) {
  const bool output = v.heads > 0;
  // Rows that already lie as Tile::k wants them stay where they are.
  const bool in_place =
      k.dtype == kernel_.element && k.token_stride == dim_ && dim_ == padded_dim();
  for (std::int64_t begin = keys.begin; begin < keys.end; begin += kTileKeys) {
    const std::int64_t end = std::min(begin + kTileKeys, keys.end);
    const TokenRows key_rows = rows_of(k, kv_head, begin, end - begin);
    if (!in_place) kernel_.pack_keys(key_rows, k_.data());
    if (output) kernel_.pack_values(rows_of(v, kv_head, begin, end - begin), v_.data());
    const std::size_t offset = masses_ ? add_tile(keys.block) : 0;
    for (std::int64_t first = 0; first < used_rows(); first += kLanes) {
      const std::int64_t used = std::min<std::int64_t>(used_rows() - first, kLanes);
      const std::int64_t width = kernel_.vector_lanes;
      Tile tile{};
      tile.qt = qt(first / kLanes);
      tile.k = in_place ? key_rows.data : k_.data();
      tile.v = output ? v_.data() : nullptr;
      tile.position = position_.data() + first;
      tile.scale = scale_;
      tile.dim = static_cast<std::int32_t>(dim_);
      tile.lanes = static_cast<std::int32_t>((used + width - 1) / width * width);
      tile.keys = static_cast<std::int32_t>(end - begin);
      tile.key_begin = static_cast<std::int32_t>(begin);
      tile.mask = keys.mask;
      tile.token_window = static_cast<std::int32_t>(token_window_);
      tile.token_sink = static_cast<std::int32_t>(token_sink_);
      tile.s = s_.data();
      tile.m = base_.data() + first;
      tile.l = sum_.data() + first;
      tile.ot = ot_.data() + first * padded_dim();
      if (masses_) {
        tile.tile_sum = tile_sum_.data() + static_cast<std::int64_t>(offset) + first;
        tile.tile_max = tile_base_.data() + static_cast<std::int64_t>(offset) + first;
      }
      kernel_.run(tile);
    }
  }
}

void LaneAttention::visit_singles(std::int64_t kv_head, std::span<const std::int32_t> tokens) {
  const auto count = std::ssize(tokens);
  for (std::int64_t begin = 0; begin < count; begin += kTileKeys) {
    const auto some =
        tokens.subspan(static_cast<std::size_t>(begin),
                       static_cast<std::size_t>(std::min<std::int64_t>(count - begin, kTileKeys)));
    visit(gather_rows(keys_, kv_head, some, gathered_k_),
          gather_rows(values_, kv_head, some, gathered_v_), 0,
          {0, 0, std::ssize(some), Mask::kNone});
  }
}

void LaneAttention::end() {
  for (std::size_t tile = 0; tile < tile_sum_.size(); tile += base_.size()) {
    kernel_.normalize(tile_sum_.data() + tile, tile_base_.data() + tile, base_.data(), sum_.data(),
                      all_rows());
  }
}

void LaneAttention::unpack(std::int64_t row, std::int32_t count, float* out) const {
  for_packs(row, count,
            [&](std::int64_t pack, std::int32_t lane, std::int64_t done, std::int32_t some) {
              kernel_.finish(ot_.data() + pack * padded_dim() * kLanes, sum_.data() + pack * kLanes,
                             lane, some, static_cast<std::int32_t>(dim_), out + done * dim_);
            });
}

/// Heads in panels, packed once for all rows.
class PanelHeads {
 public:
  using Pack = void (*)(const TokenRows& rows, void* to);
  using Magnitude = std::uint16_t (*)(const TokenRows& rows);

  /// `x` may have no heads; `magnitude` may be null.
  PanelHeads(const HeadsView& x, Pack pack, Magnitude magnitude)
      : panels_((x.tokens + kPanelKeys - 1) / kPanelKeys), panel_bytes_(bytes_of_panel(x.dim)) {
    const std::int64_t count = x.heads * panels_;
    constexpr std::int64_t kAtOnce = 16;
    take_memory(static_cast<std::size_t>(count) * panel_bytes_);
    std::vector<std::uint16_t> most(static_cast<std::size_t>((count + kAtOnce - 1) / kAtOnce));
    parallel_for(std::ssize(most), [&](std::int64_t index, int) {
      for (std::int64_t i = index * kAtOnce; i < std::min(count, (index + 1) * kAtOnce); ++i) {
        const std::int64_t begin = i % panels_ * kPanelKeys;
        const std::int64_t keys = std::min<std::int64_t>(kPanelKeys, x.tokens - begin);
        const TokenRows rows = rows_of(x, i / panels_, begin, keys);
        pack(rows, memory_.data() + static_cast<std::size_t>(i) * panel_bytes_);
        auto& here = most[static_cast<std::size_t>(index)];
        if (magnitude != nullptr) here = std::max(here, magnitude(rows));
      }
    });
    if (!most.empty()) largest_ = to_float(Bf16{*std::max_element(most.begin(), most.end())});
  }
  ~PanelHeads() {
    if (memory_.bytes() > 0 && memory_.bytes() <= kMostKeptBytes && kept().size() < 2) {
      kept().push_back(std::move(memory_));
    }
  }
  PanelHeads(const PanelHeads&) = delete;
  PanelHeads& operator=(const PanelHeads&) = delete;

  static std::size_t bytes_of_panel(std::int64_t dim) {
    const std::int64_t padded = (dim + kStripDimStep - 1) / kStripDimStep * kStripDimStep;
    return static_cast<std::size_t>(kPanelKeys * padded) * sizeof(Bf16);
  }
  /// The largest magnitude of an element; 0 if it was not asked for.
  float largest() const { return largest_; }
  const std::byte* panel(std::int64_t head, std::int64_t panel) const {
    return memory_.data() + static_cast<std::size_t>(head * panels_ + panel) * panel_bytes_;
  }

 private:
  static constexpr std::size_t kMostKeptBytes = std::size_t{64} << 20;

  /// What this thread keeps for its next call, since fresh pages cost as much as filling them.
  static std::vector<HeadsTensor>& kept() {
    thread_local std::vector<HeadsTensor> memory;
    return memory;
  }
  /// Not initialised: fresh pages come to lie near the threads that fill them.
  void take_memory(std::size_t bytes) {
    auto& memory = kept();
    if (!memory.empty()) {
      memory_ = std::move(memory.back());
      memory.pop_back();
    }
    if (memory_.bytes() < bytes) {
      memory_ = HeadsTensor();
      memory_ = HeadsTensor(DType::kBf16, 1, 1, static_cast<std::int64_t>(bytes / sizeof(Bf16)));
    }
  }

  std::int64_t panels_;
  std::size_t panel_bytes_;
  float largest_ = 0.0f;
  HeadsTensor memory_;
};

struct PanelKeys {
  PanelKeys(const StripKernel& kernel, const HeadsView& keys, const HeadsView& values)
      : k(keys, kernel.pack_keys, kernel.largest), v(values, kernel.pack_values, nullptr) {}

  PanelHeads k, v;
};

/// Rows in strips for matrix tiles, all keys of a pack in one run.
class StripAttention final : public RowAttention {
 public:
  StripAttention(const StripKernel& kernel, const HeadsView& k, const HeadsView& v,
                 std::shared_ptr<const PanelKeys> panels)
      : RowAttention(kStripRows, kStripDimStep),
        kernel_(kernel),
        keys_(k),
        values_(v),
        packed_(std::move(panels)) {}

  void visit(std::int64_t kv_head, const KeyRange& keys) override;
  void visit_singles(std::int64_t kv_head, std::span<const std::int32_t> tokens) override;
  void end() override;

 private:
  void reset() override;
  void pack_queries(const TokenRows& rows, std::int64_t row) override {
    kernel_.pack_queries(rows, row, q_.data());
    largest_query_ = std::max(largest_query_, kernel_.largest(rows));
  }
  void unpack(std::int64_t row, std::int32_t count, float* out) const override {
    kernel_.finish(o_.data(), sum_.data(), row, count, static_cast<std::int32_t>(dim_), out);
  }
  /// Whether rounded weights are allowed and can be of these logits.
  bool rounded() const {
    const float most = static_cast<float>(dim_) * to_float(Bf16{largest_query_}) *
                       packed_->k.largest() * std::fabs(scale_);
    return output_only_ && !masses_ && most <= kMostRoundedLogit;
  }
  /// Attends to what was collected.
  void run();

  const StripKernel& kernel_;
  HeadsView keys_, values_;
  std::shared_ptr<const PanelKeys> packed_;
  std::vector<KeyPanel> panels_;
  bool fresh_ = true;                ///< nothing has been attended to yet
  std::uint16_t largest_query_ = 0;  ///< bits of bf16
  LineVector<std::byte> q_, scratch_;
  LineVector<float> limit_, l_, o_;
  LineVector<std::byte> gathered_k_, gathered_v_, single_k_, single_v_;
};

void StripAttention::reset() {
  const auto rows = static_cast<std::size_t>(all_rows());
  const auto padded = static_cast<std::size_t>(padded_dim());
  q_.resize(rows * padded * sizeof(Bf16));
  if (all_rows() != used_rows() || padded_dim() != dim_) {
    std::fill(q_.begin(), q_.end(), std::byte{0});
  }
  scratch_.resize(kStripScratchBytes);
  base_.resize(rows);
  sum_.assign(rows, 0.0f);
  limit_.assign(rows, -std::numeric_limits<float>::infinity());
  l_.assign(rows * kStripSums, 0.0f);
  o_.resize(values_.heads > 0 ? rows * padded : 0);
  fresh_ = true;
  largest_query_ = 0;
  panels_.clear();
}

void StripAttention::visit(std::int64_t kv_head, const KeyRange& keys) {
  for (std::int64_t p = keys.begin / kPanelKeys; p * kPanelKeys < keys.end; ++p) {
    const std::int64_t first = p * kPanelKeys;
    const std::int64_t from = std::max<std::int64_t>(keys.begin - first, 0);
    const std::int64_t count = std::min<std::int64_t>(keys.end - first, kPanelKeys) - from;
    const auto bits = static_cast<std::uint32_t>(((std::uint64_t{1} << count) - 1) << from);
    // Blocks smaller than a panel share it.
    if (!panels_.empty() && panels_.back().first_key == first && panels_.back().mask == keys.mask &&
        (!masses_ || tile_block_.back() == keys.block)) {
      panels_.back().keys |= bits;
      continue;
    }
    panels_.push_back({packed_->k.panel(kv_head, p),
                       values_.heads > 0 ? packed_->v.panel(kv_head, p) : nullptr,
                       static_cast<std::int32_t>(first), bits, keys.mask});
    if (masses_) add_tile(keys.block);
  }
}

void StripAttention::visit_singles(std::int64_t kv_head, std::span<const std::int32_t> tokens) {
  if (tokens.empty()) return;
  assert(values_.heads > 0);
  run();
  const std::size_t bytes = PanelHeads::bytes_of_panel(dim_);
  const HeadsView k = gather_rows(keys_, kv_head, tokens, gathered_k_);
  const HeadsView v = gather_rows(values_, kv_head, tokens, gathered_v_);
  const std::int64_t count = (k.tokens + kPanelKeys - 1) / kPanelKeys;
  single_k_.resize(static_cast<std::size_t>(count) * bytes);
  single_v_.resize(single_k_.size());
  for (std::int64_t p = 0; p < count; ++p) {
    const std::int64_t first = p * kPanelKeys;
    const std::int64_t some = std::min<std::int64_t>(kPanelKeys, k.tokens - first);
    std::byte* to_k = single_k_.data() + static_cast<std::size_t>(p) * bytes;
    std::byte* to_v = single_v_.data() + static_cast<std::size_t>(p) * bytes;
    kernel_.pack_keys(rows_of(k, 0, first, some), to_k);
    kernel_.pack_values(rows_of(v, 0, first, some), to_v);
    panels_.push_back({to_k, to_v, static_cast<std::int32_t>(first),
                       static_cast<std::uint32_t>((std::uint64_t{1} << some) - 1), Mask::kNone});
    if (masses_) add_tile(0);
  }
  run();
}

void StripAttention::run() {
  if (panels_.empty()) return;
  StripRun run{};
  run.rounded = rounded();
  if (fresh_) std::fill(base_.begin(), base_.end(), kStripBase[run.rounded ? 1 : 0]);
  run.q = q_.data();
  run.position = position_.data();
  run.panels = panels_.data();
  run.num_panels = static_cast<std::int32_t>(panels_.size());
  run.strips = static_cast<std::int32_t>(all_rows() / kStripRows);
  run.dim = static_cast<std::int32_t>(padded_dim());
  run.scale = scale_;
  run.token_window = static_cast<std::int32_t>(token_window_);
  run.token_sink = static_cast<std::int32_t>(token_sink_);
  run.base = base_.data();
  run.limit = limit_.data();
  run.l = l_.data();
  run.o = o_.data();
  run.fresh = fresh_;
  if (masses_) {
    const std::size_t begin = tile_sum_.size() - panels_.size() * base_.size();
    run.panel_sum = tile_sum_.data() + begin;
    run.panel_base = tile_base_.data() + begin;
  }
  run.scratch = scratch_.data();
  kernel_.run(run);
  fresh_ = false;
  panels_.clear();
}

void StripAttention::end() {
  run();
  kernel_.add_sums(l_.data(), all_rows(), sum_.data());
  for (std::size_t tile = 0; tile < tile_sum_.size(); tile += base_.size()) {
    kernel_.normalize(tile_sum_.data() + tile, tile_base_.data() + tile, base_.data(), sum_.data(),
                      all_rows());
  }
}

}  // namespace

std::vector<std::unique_ptr<RowAttention>> make_row_attention(const Isa& isa, bool bf16,
                                                              const HeadsView& k,
                                                              const HeadsView& v, int threads) {
  std::vector<std::unique_ptr<RowAttention>> rows;
  if (bf16 && isa.bf16_strip != nullptr) {
    const StripKernel& kernel = *isa.bf16_strip;
    const auto panels = std::make_shared<const PanelKeys>(kernel, k, v);
    for (int t = 0; t < threads; ++t) {
      rows.push_back(std::make_unique<StripAttention>(kernel, k, v, panels));
    }
    return rows;
  }
  const TileKernel& kernel = bf16 && isa.bf16_tile != nullptr ? *isa.bf16_tile : *isa.f32_tile;
  for (int t = 0; t < threads; ++t) rows.push_back(std::make_unique<LaneAttention>(kernel, k, v));
  return rows;
}

}  // namespace sw::cpu
