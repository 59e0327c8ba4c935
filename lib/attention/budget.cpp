#include "attention/budget.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"

namespace sw {
namespace {

constexpr std::int64_t kReleaseDenseRows = 4;

/// numpy's `quantile` with linear interpolation of unsorted values (not empty).
double linear_quantile(std::vector<double> values, double q) {
  const double position = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(position);
  const double t = position - static_cast<double>(low);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(low), values.end());
  const double a = values[low];
  if (t == 0.0) return a;
  const double b =
      *std::min_element(values.begin() + static_cast<std::ptrdiff_t>(low) + 1, values.end());
  return t < 0.5 ? a + (b - a) * t : b - (b - a) * (1.0 - t);
}

/// The order of selection: highest score first, the more recent block first among equals.
bool ranks_before(std::span<const double> scores, std::int64_t x, std::int64_t y) {
  const double sx = scores[static_cast<std::size_t>(x)];
  const double sy = scores[static_cast<std::size_t>(y)];
  return sx != sy ? sx > sy : x > y;
}

/// One row being filled: a tag for each candidate block, or none.
class Row {
 public:
  explicit Row(std::int64_t candidates) : tags_(static_cast<std::size_t>(candidates), kFree) {}

  std::int64_t candidates() const { return static_cast<std::int64_t>(tags_.size()); }
  std::int64_t kept() const { return kept_; }
  bool is_free(std::int64_t j) const { return tags_[static_cast<std::size_t>(j)] == kFree; }

  void keep(std::int64_t j, Part part) {
    if (!is_free(j)) return;
    tags_[static_cast<std::size_t>(j)] = static_cast<std::int8_t>(part);
    ++kept_;
  }
  void keep_window(std::int64_t blocks) {
    for (std::int64_t j = std::max<std::int64_t>(candidates() - blocks, 0); j < candidates(); ++j) {
      keep(j, Part::kWindow);
    }
  }
  void keep_sink(std::int64_t blocks) {
    for (std::int64_t j = 0; j < std::min(blocks, candidates()); ++j) keep(j, Part::kSink);
  }
  /// Fills up to `total` blocks by score.
  void keep_best(std::span<const double> scores, std::int64_t total) {
    const std::int64_t wanted = std::min(total, candidates()) - kept_;
    if (wanted <= 0) return;
    std::vector<std::int64_t> free;
    for (std::int64_t j = 0; j < candidates(); ++j) {
      if (is_free(j)) free.push_back(j);
    }
    std::nth_element(free.begin(), free.begin() + (wanted - 1), free.end(),
                     [&](std::int64_t x, std::int64_t y) { return ranks_before(scores, x, y); });
    for (std::int64_t i = 0; i < wanted; ++i)
      keep(free[static_cast<std::size_t>(i)], Part::kScored);
  }

  void append_to(BlockSelection& selection) const {
    std::vector<std::int32_t> blocks;
    std::vector<Part> parts;
    for (std::int64_t j = 0; j < candidates(); ++j) {
      if (is_free(j)) continue;
      blocks.push_back(static_cast<std::int32_t>(j));
      parts.push_back(static_cast<Part>(tags_[static_cast<std::size_t>(j)]));
    }
    selection.append_row(blocks, parts);
  }

 private:
  static constexpr std::int8_t kFree = -1;
  std::vector<std::int8_t> tags_;
  std::int64_t kept_ = 0;
};

std::int64_t round_half_up(double x) { return static_cast<std::int64_t>(std::floor(x + 0.5)); }

void fill_matched(Row& row, std::span<const double> scores, const Budget& budget, double density) {
  const std::int64_t m = std::min(
      row.candidates(), std::max(budget.min_blocks, matched_blocks(density, row.candidates())));
  const std::int64_t sink = m >= 3   ? std::max<std::int64_t>(1, round_half_up(m / 8.0))
                            : m == 2 ? 1
                                     : 0;
  const std::int64_t window = m >= 3 ? std::max<std::int64_t>(1, round_half_up(m / 4.0)) : 1;
  switch (budget.forced) {
    case Budget::Forced::kSinkAndRecent:
      row.keep_window(m - sink);
      row.keep_sink(sink);
      break;
    case Budget::Forced::kSinkAndWindow:
      row.keep_window(window);
      row.keep_sink(sink);
      row.keep_best(scores, m);
      break;
    case Budget::Forced::kDiagonal:
      row.keep_window(1);
      row.keep_best(scores, m);
      break;
    case Budget::Forced::kSinkBlock:
      row.keep_window(1);
      if (m >= 2) row.keep_sink(1);
      row.keep_best(scores, m);
      break;
    case Budget::Forced::kRecentHalf:
      row.keep_window(std::max<std::int64_t>(1, round_half_up(m / 2.0)));
      row.keep_best(scores, m);
      break;
  }
}

void fill_top_p(Row& row, std::span<const double> scores, const Budget& budget) {
  row.keep_window(1);
  if (budget.forced != Budget::Forced::kDiagonal) row.keep_sink(1);
  double total = 0.0;
  double kept = 0.0;
  std::vector<std::int64_t> free;
  for (std::int64_t j = 0; j < row.candidates(); ++j) {
    const double score = scores[static_cast<std::size_t>(j)];
    assert(score >= 0.0);
    total += score;
    if (row.is_free(j)) {
      free.push_back(j);
    } else {
      kept += score;
    }
  }
  std::sort(free.begin(), free.end(),
            [&](std::int64_t x, std::int64_t y) { return ranks_before(scores, x, y); });
  for (const std::int64_t j : free) {
    const bool enough = budget.top_p < 1.0 && kept >= budget.top_p * total;
    if (enough && row.kept() >= budget.min_blocks) break;
    kept += scores[static_cast<std::size_t>(j)];
    row.keep(j, Part::kScored);
  }
}

void fill_marked(Row& row, std::span<const double> scores) {
  row.keep_window(1);
  for (std::int64_t j = 0; j < row.candidates(); ++j) {
    if (scores[static_cast<std::size_t>(j)] > 0.0) row.keep(j, Part::kScored);
  }
}

void keep_all(Row& row, Part part) {
  for (std::int64_t j = 0; j < row.candidates(); ++j) row.keep(j, part);
}

/// Density of the rows before the last `dense`, so that all of them together keep `density`.
double density_before(std::int64_t dense, const BlockGeometry& geometry, double density) {
  double all = 0.0;
  double last = 0.0;
  for (std::int64_t r = 0; r < geometry.rows(); ++r) {
    const double area = static_cast<double>(geometry.first_row() + r) + 0.5;
    all += area;
    if (r >= geometry.rows() - dense) last += area;
  }
  return last < all ? std::max(0.0, (density * all - last) / (all - last)) : density;
}

void fill_fixed(Row& row, std::span<const double> scores, std::int64_t tau, Phase phase) {
  row.keep_window(1);
  if (tau >= 2 && phase == Phase::kPrefill) row.keep_sink(1);
  row.keep_best(scores, tau);
}

struct ReleaseSizes {
  std::int64_t window_blocks;
  std::int64_t sink_blocks;
  std::int64_t token_window;
  std::int64_t token_sink;
};

ReleaseSizes release_sizes(const BlockGeometry& geometry, const Budget& budget) {
  const auto n = static_cast<double>(geometry.tokens);
  const auto w = std::max<std::int64_t>(1, static_cast<std::int64_t>(budget.window_frac * n));
  const auto k0 = std::max<std::int64_t>(1, static_cast<std::int64_t>(budget.sink_frac * n));
  const auto blocks = [&](std::int64_t t) { return (t + geometry.block - 1) / geometry.block; };
  return {blocks(w), blocks(k0), w, budget.release_sink_bug ? w : k0};
}

void fill_release(Row& row, std::span<const double> scores, const Budget& budget,
                  const ReleaseSizes& sizes, bool dense_row, Phase phase) {
  std::vector<double> between;
  const std::int64_t last = row.candidates() - 1 - sizes.window_blocks;
  for (std::int64_t j = sizes.sink_blocks; j <= last; ++j) {
    between.push_back(scores[static_cast<std::size_t>(j)]);
  }
  if (phase == Phase::kDecode) {
    row.keep_window(sizes.window_blocks);
    row.keep_sink(sizes.sink_blocks);
  } else {
    row.keep_window(1);
  }
  if (!between.empty()) {
    const double threshold = linear_quantile(std::move(between), 1.0 - budget.kfrac);
    for (std::int64_t j = 0; j < row.candidates(); ++j) {
      if (scores[static_cast<std::size_t>(j)] > threshold) row.keep(j, Part::kScored);
    }
  }
  if (dense_row) keep_all(row, Part::kForced);
}

}  // namespace

std::int64_t matched_blocks(double density, std::int64_t candidates) {
  const double area = static_cast<double>(candidates) - 0.5;
  const auto m = static_cast<std::int64_t>(std::floor(density * area + 1.0));
  return std::clamp<std::int64_t>(m, 1, candidates);
}

BlockSelection select_blocks(const BlockScores& scores, const BlockGeometry& geometry,
                             const Budget& budget, double density, Phase phase) {
  if (budget.kind == Budget::Kind::kAll || budget.dense_phase == phase) {
    return BlockSelection::dense(geometry);
  }
  const bool scored = budget.forced != Budget::Forced::kSinkAndRecent;
  assert(!scored || (scores.values.rows() == scores.groups * geometry.rows() &&
                     scores.values.cols() == geometry.key_blocks()));
  const std::int64_t b = geometry.key_blocks();
  const std::int64_t tau =
      budget.tau > 0 ? budget.tau
                     : std::max<std::int64_t>(1, round_half_up(density * static_cast<double>(b)));
  const ReleaseSizes sizes = release_sizes(geometry, budget);

  const std::int64_t dense_rows =
      phase == Phase::kPrefill ? std::min(budget.dense_last_rows, geometry.rows()) : 0;
  if (dense_rows > 0) density = density_before(dense_rows, geometry, density);

  std::vector<Row> rows;
  for (std::int64_t g = 0; g < scores.groups; ++g) {
    for (std::int64_t r = 0; r < geometry.rows(); ++r)
      rows.emplace_back(geometry.first_row() + r + 1);
  }
  parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t index, int) {
    Row& row = rows[static_cast<std::size_t>(index)];
    std::span<const double> s;
    if (scored) {
      s = scores.values.row(index).first(static_cast<std::size_t>(row.candidates()));
      if (std::any_of(s.begin(), s.end(), [](double x) { return std::isnan(x); })) {
        throw Error(ErrorKind::kInput,
                    "a block score of query block " + std::to_string(row.candidates() - 1) +
                        " is not a number",
                    "check the trace for NaN and huge values with sw-trace validate");
      }
    }
    switch (budget.kind) {
      case Budget::Kind::kMatched:
        fill_matched(row, s, budget, density);
        if (row.candidates() > b - dense_rows) keep_all(row, Part::kForced);
        return;
      case Budget::Kind::kTopP:
        return fill_top_p(row, s, budget);
      case Budget::Kind::kMarked:
        return fill_marked(row, s);
      case Budget::Kind::kFixed:
        return fill_fixed(row, s, tau, phase);
      default:
        return fill_release(row, s, budget, sizes,
                            phase == Phase::kPrefill && row.candidates() > b - kReleaseDenseRows,
                            phase);
    }
  });
  BlockSelection selection(geometry, scores.groups);
  for (const Row& row : rows) row.append_to(selection);
  if (budget.kind == Budget::Kind::kRelease) {
    selection.set_token_parts(phase == Phase::kPrefill ? sizes.token_window : 0, sizes.token_sink);
  }
  return selection;
}

}  // namespace sw
