#include "attention/selection.hpp"

#include <algorithm>
#include <stdexcept>

namespace sw {
namespace {

/// Pairs (p, t), t <= p, with p in [p0, p1) and t in [t0, t1).
std::int64_t causal_pairs(std::int64_t p0, std::int64_t p1, std::int64_t t0, std::int64_t t1) {
  std::int64_t pairs = 0;
  for (std::int64_t p = p0; p < p1; ++p) pairs += std::clamp<std::int64_t>(p + 1 - t0, 0, t1 - t0);
  return pairs;
}

}  // namespace

const char* part_name(Part part) {
  static constexpr const char* kNames[] = {"window", "sink", "scored", "forced"};
  return kNames[static_cast<int>(part)];
}

double DensityCount::density() const {
  return causal == 0 ? 0.0 : static_cast<double>(kept_total()) / static_cast<double>(causal);
}

BlockSelection::BlockSelection(const BlockGeometry& geometry, std::int64_t groups)
    : geometry_(geometry), groups_(groups) {}

BlockSelection BlockSelection::dense(const BlockGeometry& geometry) {
  BlockSelection selection(geometry, 1);
  std::vector<std::int32_t> blocks;
  for (std::int64_t j = 0; j < geometry.first_row(); ++j) {
    blocks.push_back(static_cast<std::int32_t>(j));
  }
  for (std::int64_t r = 0; r < geometry.rows(); ++r) {
    blocks.push_back(static_cast<std::int32_t>(geometry.first_row() + r));
    selection.append_row(blocks, std::vector<Part>(blocks.size(), Part::kForced));
  }
  return selection;
}

void BlockSelection::append_row(std::span<const std::int32_t> blocks, std::span<const Part> parts) {
  if (complete()) throw std::logic_error("selection: more rows than the geometry has");
  const auto row = (static_cast<std::int64_t>(row_ptr_.size()) - 1) % rows();
  const std::int64_t diagonal = geometry_.first_row() + row;
  if (blocks.empty() || blocks.size() != parts.size() || blocks.front() < 0 ||
      blocks.back() != diagonal ||
      std::adjacent_find(blocks.begin(), blocks.end(), std::greater_equal<>()) != blocks.end()) {
    throw std::logic_error("selection: a row must ascend, be unique and end with its own block");
  }
  block_.insert(block_.end(), blocks.begin(), blocks.end());
  part_.insert(part_.end(), parts.begin(), parts.end());
  row_ptr_.push_back(static_cast<std::int64_t>(block_.size()));
}

void BlockSelection::set_token_parts(std::int64_t window, std::int64_t sink) {
  token_window_ = window;
  token_sink_ = sink;
}

std::span<const std::int32_t> BlockSelection::blocks(std::int64_t group, std::int64_t row) const {
  const auto i = static_cast<std::size_t>(group * rows() + row);
  return std::span(block_).subspan(static_cast<std::size_t>(row_ptr_[i]),
                                   static_cast<std::size_t>(row_ptr_[i + 1] - row_ptr_[i]));
}

std::span<const Part> BlockSelection::parts(std::int64_t group, std::int64_t row) const {
  const auto i = static_cast<std::size_t>(group * rows() + row);
  return std::span(part_).subspan(static_cast<std::size_t>(row_ptr_[i]),
                                  static_cast<std::size_t>(row_ptr_[i + 1] - row_ptr_[i]));
}

std::vector<std::int32_t> BlockSelection::touched_blocks(std::int64_t group,
                                                         std::int64_t row) const {
  const auto kept = blocks(group, row);
  if (!has_token_parts()) return {kept.begin(), kept.end()};
  const std::int64_t block = geometry_.block;
  // The earliest query of the row looks back furthest; sinks are the same for all queries.
  const std::int64_t window_first =
      token_window_ > 0 ? std::max<std::int64_t>(geometry_.row_begin(row) - token_window_ + 1, 0)
                        : geometry_.tokens;
  std::vector<std::int32_t> touched;
  std::size_t next = 0;
  for (std::int64_t j = 0; j <= geometry_.first_row() + row; ++j) {
    const bool is_kept = next < kept.size() && kept[next] == j;
    if (is_kept) ++next;
    if (is_kept || j * block < token_sink_ || (j + 1) * block > window_first) {
      touched.push_back(static_cast<std::int32_t>(j));
    }
  }
  return touched;
}

DensityCount BlockSelection::count_row(std::int64_t group, std::int64_t row) const {
  const std::int64_t p0 = geometry_.row_begin(row);
  const std::int64_t p1 = geometry_.row_end(row);
  const auto kept = blocks(group, row);
  const auto tags = parts(group, row);
  DensityCount count;
  count.causal = causal_pairs(p0, p1, 0, geometry_.tokens);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const std::int64_t t0 = kept[i] * geometry_.block;
    count.kept[static_cast<int>(tags[i])] +=
        causal_pairs(p0, p1, t0, t0 + geometry_.block_tokens(kept[i]));
  }
  if (!has_token_parts()) return count;
  for (std::int32_t j : touched_blocks(group, row)) {
    if (std::binary_search(kept.begin(), kept.end(), j)) continue;
    const std::int64_t t0 = j * geometry_.block;
    const std::int64_t t1 = t0 + geometry_.block_tokens(j);
    for (std::int64_t p = p0; p < p1; ++p) {
      const std::int64_t end = std::min(t1, p + 1);
      const std::int64_t window_begin = std::clamp(p - token_window_ + 1, t0, end);
      const std::int64_t sink_end = std::clamp(token_sink_, t0, end);
      count.kept[static_cast<int>(Part::kWindow)] += end - window_begin;
      count.kept[static_cast<int>(Part::kSink)] += std::min(sink_end, window_begin) - t0;
    }
  }
  return count;
}

DensityCount BlockSelection::count() const {
  DensityCount total;
  for (std::int64_t g = 0; g < groups_; ++g) {
    for (std::int64_t r = 0; r < rows(); ++r) {
      const DensityCount row = count_row(g, r);
      total.causal += row.causal;
      for (int part = 0; part < kNumParts; ++part) total.kept[part] += row.kept[part];
    }
  }
  return total;
}

}  // namespace sw
