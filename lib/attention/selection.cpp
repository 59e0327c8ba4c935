#include "attention/selection.hpp"

#include <algorithm>
#include <cassert>
#include <functional>
#include <stdexcept>

namespace sw {
namespace {

/// Pairs (p, t), t <= p, with p in [p0, p1) and t in [t0, t1).
std::int64_t causal_pairs(std::int64_t p0, std::int64_t p1, std::int64_t t0, std::int64_t t1) {
  std::int64_t pairs = 0;
  for (std::int64_t p = p0; p < p1; ++p) pairs += std::clamp<std::int64_t>(p + 1 - t0, 0, t1 - t0);
  return pairs;
}

/// Ascending and unique.
bool strictly_ascends(std::span<const std::int32_t> x) {
  return std::adjacent_find(x.begin(), x.end(), std::greater_equal<>()) == x.end();
}

/// Entries of row i of a CSR.
template <class T>
std::span<const T> csr_row(const std::vector<T>& x, const std::vector<std::int64_t>& ptr,
                           std::int64_t i) {
  const auto begin = static_cast<std::size_t>(ptr[static_cast<std::size_t>(i)]);
  const auto end = static_cast<std::size_t>(ptr[static_cast<std::size_t>(i) + 1]);
  return std::span(x).subspan(begin, end - begin);
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

void BlockSelection::append_row(std::span<const std::int32_t> blocks, std::span<const Part> parts,
                                std::span<const std::int32_t> tokens,
                                std::span<const Part> token_parts) {
  if (complete()) throw std::logic_error("selection: more rows than the geometry has");
  const auto row = (static_cast<std::int64_t>(row_ptr_.size()) - 1) % rows();
  const std::int64_t own = geometry_.first_row() + row;
  if (blocks.size() != parts.size() || !strictly_ascends(blocks) ||
      (!blocks.empty() && (blocks.front() < 0 || blocks.back() > own))) {
    throw std::logic_error("selection: blocks must ascend, be unique and not exceed the row's own");
  }
  const std::int64_t begin = geometry_.row_begin(row);
  const std::int64_t end = geometry_.row_end(row);
  if (tokens.size() != token_parts.size() || !strictly_ascends(tokens) ||
      (!tokens.empty() && (tokens.front() < 0 || tokens.back() >= end))) {
    throw std::logic_error("selection: tokens must ascend, be unique and precede the row's end");
  }
  if (!tokens.empty() && has_token_parts()) {
    throw std::logic_error("selection: single keys beside token-level parts");
  }
  for (const std::int32_t t : tokens) {
    if (std::binary_search(blocks.begin(), blocks.end(),
                           static_cast<std::int32_t>(t / geometry_.block))) {
      throw std::logic_error("selection: a token lies in a kept block");
    }
  }
  const bool keeps_own_block = !blocks.empty() && blocks.back() == own;
  const auto own_tokens = std::lower_bound(tokens.begin(), tokens.end(), begin);
  if (!keeps_own_block && tokens.end() - own_tokens != end - begin) {
    throw std::logic_error("selection: a query does not see its own key");
  }
  block_.insert(block_.end(), blocks.begin(), blocks.end());
  part_.insert(part_.end(), parts.begin(), parts.end());
  row_ptr_.push_back(static_cast<std::int64_t>(block_.size()));
  token_.insert(token_.end(), tokens.begin(), tokens.end());
  token_part_.insert(token_part_.end(), token_parts.begin(), token_parts.end());
  token_ptr_.push_back(static_cast<std::int64_t>(token_.size()));
}

void BlockSelection::set_token_parts(std::int64_t window, std::int64_t sink) {
  if (has_tokens() && (window > 0 || sink > 0)) {
    throw std::logic_error("selection: token-level parts beside single keys");
  }
  token_window_ = window;
  token_sink_ = sink;
}

std::span<const std::int32_t> BlockSelection::blocks(std::int64_t group, std::int64_t row) const {
  return csr_row(block_, row_ptr_, group * rows() + row);
}

std::span<const Part> BlockSelection::parts(std::int64_t group, std::int64_t row) const {
  return csr_row(part_, row_ptr_, group * rows() + row);
}

std::span<const std::int32_t> BlockSelection::tokens(std::int64_t group, std::int64_t row) const {
  return csr_row(token_, token_ptr_, group * rows() + row);
}

std::span<const Part> BlockSelection::token_parts(std::int64_t group, std::int64_t row) const {
  return csr_row(token_part_, token_ptr_, group * rows() + row);
}

BlockSelection BlockSelection::in_keys() const {
  assert(geometry_.tokens - geometry_.query_begin == 1);
  BlockSelection result({1, geometry_.query_begin, geometry_.tokens}, groups_);
  for (std::int64_t g = 0; g < groups_; ++g) {
    std::vector<std::int32_t> keys;
    std::vector<Part> parts_of_keys;
    const auto keep = [&](std::int64_t begin, std::int64_t end, Part part) {
      for (std::int64_t t = begin; t < end; ++t) {
        keys.push_back(static_cast<std::int32_t>(t));
        parts_of_keys.push_back(part);
      }
    };
    const auto singles = tokens(g, 0);
    std::size_t next_single = 0;
    const auto keep_singles_before = [&](std::int64_t end) {
      for (; next_single < singles.size() && singles[next_single] < end; ++next_single) {
        const std::int64_t t = singles[next_single];
        keep(t, t + 1, token_parts(g, 0)[next_single]);
      }
    };
    const auto kept = blocks(g, 0);
    for (const std::int32_t j : touched_blocks(g, 0)) {
      const std::int64_t begin = j * geometry_.block;
      const std::int64_t end = begin + geometry_.block_tokens(j);
      keep_singles_before(begin);
      const auto found = std::lower_bound(kept.begin(), kept.end(), j);
      if (found != kept.end() && *found == j) {
        keep(begin, end, parts(g, 0)[static_cast<std::size_t>(found - kept.begin())]);
        continue;
      }
      const std::int64_t window = std::clamp(geometry_.query_begin - token_window_ + 1, begin, end);
      keep(begin, std::clamp(token_sink_, begin, window), Part::kSink);
      keep(window, end, Part::kWindow);
    }
    keep_singles_before(geometry_.tokens);
    result.append_row(keys, parts_of_keys);
  }
  return result;
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
  const auto singles = tokens(group, row);
  const auto single_tags = token_parts(group, row);
  for (std::size_t i = 0; i < singles.size(); ++i) {
    count.kept[static_cast<int>(single_tags[i])] +=
        causal_pairs(p0, p1, singles[i], std::int64_t{singles[i]} + 1);
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
