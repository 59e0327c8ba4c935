#include "attention/budget.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
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

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr double kAlways = std::numeric_limits<double>::infinity();

Part part_of(double score) { return score == kAlways ? Part::kForced : Part::kScored; }

/// One row being filled: a tag for each candidate, which is a block or a key, or none.
class Row {
 public:
  explicit Row(std::int64_t candidates) : tags_(static_cast<std::size_t>(candidates), kFree) {}
  /// Candidates of score -infinity can never be kept.
  explicit Row(std::span<const double> scores) : Row(std::ssize(scores)) {
    for (std::size_t j = 0; j < scores.size(); ++j) {
      if (scores[j] == kNever) tags_[j] = kGone;
    }
  }

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
  /// Fills up to `total` candidates by score.
  void keep_best(std::span<const double> scores, std::int64_t total) {
    std::vector<std::int64_t> free;
    for (std::int64_t j = 0; j < candidates(); ++j) {
      if (is_free(j)) free.push_back(j);
    }
    const std::int64_t wanted = std::min(total - kept_, std::ssize(free));
    if (wanted <= 0) return;
    std::nth_element(free.begin(), free.begin() + (wanted - 1), free.end(),
                     [&](std::int64_t x, std::int64_t y) { return ranks_before(scores, x, y); });
    for (std::int64_t i = 0; i < wanted; ++i) {
      const std::int64_t j = free[static_cast<std::size_t>(i)];
      keep(j, part_of(scores[static_cast<std::size_t>(j)]));
    }
  }

  struct Kept {
    std::vector<std::int32_t> indices;
    std::vector<Part> parts;
  };
  /// In ascending order.
  Kept all_kept() const {
    Kept kept;
    for (std::int64_t j = 0; j < candidates(); ++j) {
      const std::int8_t tag = tags_[static_cast<std::size_t>(j)];
      if (tag < 0) continue;
      kept.indices.push_back(static_cast<std::int32_t>(j));
      kept.parts.push_back(static_cast<Part>(tag));
    }
    return kept;
  }

 private:
  static constexpr std::int8_t kFree = -1;
  static constexpr std::int8_t kGone = -2;
  std::vector<std::int8_t> tags_;
  std::int64_t kept_ = 0;
};

std::int64_t round_half_up(double x) { return static_cast<std::int64_t>(std::floor(x + 0.5)); }

void require_numbers(std::span<const double> scores, std::int64_t query_block) {
  if (std::none_of(scores.begin(), scores.end(), [](double x) { return std::isnan(x); })) return;
  throw Error(ErrorKind::kInput,
              "a score of query block " + std::to_string(query_block) + " is not a number",
              "check the trace for NaN and huge values with sw-trace validate");
}

/// What the budget forces in a row that is to keep m candidates.
void keep_forced(Row& row, Budget::Forced forced, std::int64_t m) {
  const std::int64_t sink = m >= 3   ? std::max<std::int64_t>(1, round_half_up(m / 8.0))
                            : m == 2 ? 1
                                     : 0;
  row.keep_window(1);
  switch (forced) {
    case Budget::Forced::kSinkAndRecent:
      row.keep_window(m - sink);
      row.keep_sink(sink);
      break;
    case Budget::Forced::kSinkAndWindow:
      if (m >= 3) row.keep_window(std::max<std::int64_t>(1, round_half_up(m / 4.0)));
      row.keep_sink(sink);
      break;
    case Budget::Forced::kDiagonal:
      break;
    case Budget::Forced::kSinkBlock:
      if (m >= 2) row.keep_sink(1);
      break;
    case Budget::Forced::kRecentHalf:
      row.keep_window(std::max<std::int64_t>(1, round_half_up(m / 2.0)));
      break;
  }
}

/// m candidates: what is forced, and the rest by score, which kSinkAndRecent does without.
void fill_matched(Row& row, std::span<const double> scores, const Budget& budget, std::int64_t m) {
  keep_forced(row, budget.forced, m);
  if (budget.forced != Budget::Forced::kSinkAndRecent) row.keep_best(scores, m);
}

/// The free candidates of a row in the order in which kTopP takes them, after what it forces, which
/// the constructor keeps. Scores are >= 0.
class TopPOrder {
 public:
  struct Entry {
    std::int64_t candidate;
    double before;  ///< scores of the candidates that are kept when this one's turn comes
  };

  TopPOrder(Row& row, std::span<const double> scores, const Budget& budget) {
    row.keep_window(1);
    if (budget.forced != Budget::Forced::kDiagonal) row.keep_sink(1);
    double kept = 0.0;
    for (std::int64_t j = 0; j < row.candidates(); ++j) {
      const double score = scores[static_cast<std::size_t>(j)];
      assert(score >= 0.0);
      total_ += score;
      if (row.is_free(j)) {
        entries_.push_back({j, 0.0});
      } else {
        kept += score;
      }
    }
    std::sort(entries_.begin(), entries_.end(), [&](const Entry& x, const Entry& y) {
      return ranks_before(scores, x.candidate, y.candidate);
    });
    for (Entry& entry : entries_) {
      entry.before = kept;
      kept += scores[static_cast<std::size_t>(entry.candidate)];
    }
  }

  const std::vector<Entry>& entries() const { return entries_; }
  bool reaches(const Entry& entry, double share) const {
    return share < 1.0 && entry.before >= share * total_;
  }
  /// The share above which the row keeps this entry.
  /// The sum in another order may be above the total by rounding.
  double share(const Entry& entry) const {
    return total_ > 0.0 ? std::min(entry.before / total_, 1.0) : 1.0;
  }

 private:
  double total_ = 0.0;
  std::vector<Entry> entries_;
};

/// At least `least` candidates, if there are as many.
void fill_top_p(Row& row, std::span<const double> scores, const Budget& budget,
                std::int64_t least) {
  const TopPOrder order(row, scores, budget);
  for (const TopPOrder::Entry& entry : order.entries()) {
    if (order.reaches(entry, budget.top_p) && row.kept() >= least) break;
    row.keep(entry.candidate, part_of(scores[static_cast<std::size_t>(entry.candidate)]));
  }
}

/// A row whose share is to be calibrated: its scores, and the pairs that a candidate before its own
/// one and that one itself hold.
struct ShareRow {
  std::span<const double> scores;
  double pairs_before;
  double pairs_own;
};

/// The share of kTopP with which the rows together keep the number of pairs nearest to `wanted`; of
/// two, the smaller. Each row keeps `least` candidates in any case.
double calibrated_share(const std::vector<ShareRow>& rows, const Budget& budget, std::int64_t least,
                        double wanted) {
  struct Step {
    double share;  ///< above it the candidate is kept
    double pairs;
  };
  std::vector<std::vector<Step>> steps_of(rows.size());
  std::vector<double> always(rows.size());
  parallel_for(std::ssize(rows), [&](std::int64_t i, int) {
    const ShareRow& from = rows[static_cast<std::size_t>(i)];
    Row row(from.scores);
    const TopPOrder order(row, from.scores, budget);
    const auto pairs = [&](std::int64_t j) {
      return j + 1 == row.candidates() ? from.pairs_own : from.pairs_before;
    };
    double& sum = always[static_cast<std::size_t>(i)];
    for (std::int64_t j = 0; j < row.candidates(); ++j) {
      if (!row.is_free(j)) sum += pairs(j);
    }
    std::int64_t kept = row.kept();
    for (const TopPOrder::Entry& entry : order.entries()) {
      if (kept++ < least) {
        sum += pairs(entry.candidate);
      } else {
        steps_of[static_cast<std::size_t>(i)].push_back(
            {order.share(entry), pairs(entry.candidate)});
      }
    }
  });
  std::vector<Step> steps;
  for (const auto& part : steps_of) steps.insert(steps.end(), part.begin(), part.end());
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& x, const Step& y) { return x.share < y.share; });
  double kept = std::accumulate(always.begin(), always.end(), 0.0);
  double best = 1.0;
  double best_error = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i <= steps.size(); ++i) {
    const bool between = i == 0 || i == steps.size() || steps[i].share > steps[i - 1].share;
    if (between && std::abs(kept - wanted) < best_error) {
      best_error = std::abs(kept - wanted);
      // Between the last candidate that is kept and the first that is not; 1 keeps all.
      best = i == steps.size()
                 ? 1.0
                 : std::min(0.5 * ((i > 0 ? steps[i - 1].share : 0.0) + steps[i].share),
                            std::nextafter(1.0, 0.0));
    }
    if (i < steps.size()) kept += steps[i].pairs;
  }
  return best;
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

/// Pairs of a block row: `queries` of it see all keys of the blocks before their own, `before`.
struct RowSize {
  double queries;
  double before;
  double own;  // pairs

  double area() const { return queries * before + own; }
  /// Keys before its own block that a row may keep for `share` of its pairs.
  double room(double share) const { return (share * area() - own) / queries; }
  /// Pairs of the row when it keeps its own block and `keys` before it, if there are as many.
  double least(double keys) const { return queries * std::min(keys, before) + own; }
};

std::vector<RowSize> row_sizes(const BlockGeometry& geometry) {
  std::vector<RowSize> sizes;
  for (std::int64_t r = 0; r < geometry.rows(); ++r) {
    const auto queries = static_cast<double>(geometry.row_end(r) - geometry.row_begin(r));
    const auto before = static_cast<double>((geometry.first_row() + r) * geometry.block);
    const double in_own = static_cast<double>(geometry.row_begin(r)) - before;
    sizes.push_back({queries, before, queries * in_own + queries * (queries + 1.0) / 2.0});
  }
  return sizes;
}

/// Keys before its own block, or before its own key, that a row keeps whatever its share.
std::int64_t least_keys(const Budget& budget, const BlockGeometry& geometry) {
  const std::int64_t all = geometry.key_blocks() + 1;  // more of them change nothing
  return (std::min(budget.min_blocks, all) - 1) * geometry.block;
}

/// Rows at the end that attend densely, and the density that the rows before them have.
struct DenseRows {
  std::int64_t count = 0;
  double density_before = 0.0;
};

DenseRows pay_dense_rows(const Budget& budget, const BlockGeometry& geometry, double density) {
  const std::vector<RowSize> sizes = row_sizes(geometry);
  const auto least_each = static_cast<double>(least_keys(budget, geometry));
  double all = 0.0;
  double least = 0.0;
  for (const RowSize& size : sizes) {
    all += size.area();
    least += size.least(least_each);
  }
  DenseRows dense{0, density};
  double last = 0.0;
  for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
    if (dense.count == budget.dense_last_rows) break;
    last += size->area();
    least -= size->least(least_each);
    if (last + least > density * all) break;
    ++dense.count;
    if (last < all) dense.density_before = (density * all - last) / (all - last);
  }
  return dense;
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

/// The row of a decode step in single keys.
BlockSelection select_keys(const Matrix& keys, const BlockGeometry& geometry, const Budget& budget,
                           double density) {
  assert(geometry.tokens - geometry.query_begin == 1 && keys.cols() == geometry.tokens);
  const std::int64_t least = least_keys(budget, geometry) + 1;
  std::vector<Row::Kept> rows(static_cast<std::size_t>(keys.rows()));
  parallel_for(keys.rows(), [&](std::int64_t g, int) {
    const std::span<const double> scores = keys.row(g);
    require_numbers(scores, geometry.key_blocks() - 1);
    Row row(scores);
    switch (budget.kind) {
      case Budget::Kind::kMatched:
        fill_matched(row, scores, budget,
                     std::clamp(least, matched_keys(density, geometry.tokens), geometry.tokens));
        break;
      case Budget::Kind::kTopP:
        fill_top_p(row, scores, budget, least);
        break;
      case Budget::Kind::kMarked:
        fill_marked(row, scores);
        break;
      default:
        throw std::logic_error("budget: not one of single keys");
    }
    rows[static_cast<std::size_t>(g)] = row.all_kept();
  });
  BlockSelection selection(geometry, keys.rows());
  for (const Row::Kept& row : rows) selection.append_row({}, {}, row.indices, row.parts);
  return selection;
}

/// Candidates of one row set in the order of selection.
std::vector<std::int32_t> in_order(std::span<const double> scores) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::int32_t x, std::int32_t y) { return ranks_before(scores, x, y); });
  return order;
}

/// Keys before its own block that each row may keep (not whole numbers), so that all rows together
/// keep the share `density` of their pairs. Each row keeps its own block and `least` keys in any
/// case, where there are as many; what the early rows have too much the others have less.
std::vector<double> keys_before_own(const BlockGeometry& geometry, double density, double least) {
  const std::vector<RowSize> sizes = row_sizes(geometry);
  double wanted = 0.0;
  for (const RowSize& size : sizes) wanted += density * size.area();
  double share = density;
  for (std::size_t full = 0, last = sizes.size() + 1; full != last;) {
    last = full;
    full = 0;
    double left = wanted;
    double area = 0.0;
    for (const RowSize& size : sizes) {
      if (size.room(share) > std::min(least, size.before)) {
        area += size.area();
      } else {
        left -= size.least(least);
        ++full;
      }
    }
    if (area > 0.0) share = std::max(left / area, 0.0);
  }
  std::vector<double> rooms;
  for (const RowSize& size : sizes) {
    rooms.push_back(std::max(size.room(share), std::min(least, size.before)));
  }
  return rooms;
}

/// A row that is filled with blocks and with single keys before its own block.
class MixedRow {
 public:
  /// `room`: keys before the own block that it may keep, to the nearest.
  MixedRow(std::int64_t candidates, std::int64_t block, double room)
      : blocks_(candidates),
        block_(block),
        room_(room),
        singles_in_(static_cast<std::size_t>(candidates), 0) {}

  void keep_forced_blocks(Budget::Forced forced, std::int64_t m) {
    keep_forced(blocks_, forced, m);
    room_ -= static_cast<double>((blocks_.kept() - 1) * block_);
  }

  /// The best by score per key that there is room for; a key goes first among equals. Both orders
  /// are those of selection.
  void keep_best(std::span<const double> block_scores, std::span<const double> key_scores,
                 std::span<const std::int32_t> block_order,
                 std::span<const std::int32_t> key_order) {
    const std::int64_t own_begin = (blocks_.candidates() - 1) * block_;
    const auto score_at = [](std::span<const double> scores, std::span<const std::int32_t> order) {
      return order.empty() ? kNever : scores[static_cast<std::size_t>(order.front())];
    };
    while (fits(1)) {
      while (!key_order.empty() && (key_order.front() >= own_begin || is_kept(key_order.front()))) {
        key_order = key_order.subspan(1);
      }
      while (!block_order.empty() && !blocks_.is_free(block_order.front())) {
        block_order = block_order.subspan(1);
      }
      const double key_score = score_at(key_scores, key_order);
      const double block_score = score_at(block_scores, block_order) / static_cast<double>(block_);
      if (std::max(key_score, block_score) == kNever) break;
      if (key_score >= block_score) {
        keep_key(key_order.front());
        key_order = key_order.subspan(1);
      } else {
        keep_block(block_order.front(), part_of(block_score));
        block_order = block_order.subspan(1);
      }
    }
    // All keys of a block are the block.
    for (std::int64_t j = 0; j < blocks_.candidates() - 1; ++j) {
      if (singles_in_[static_cast<std::size_t>(j)] == block_) {
        blocks_.keep(j, part_of(block_scores[static_cast<std::size_t>(j)]));
      }
    }
  }

  void append_to(BlockSelection& selection, std::span<const double> key_scores) {
    std::erase_if(singles_, [&](std::int32_t t) { return is_kept(t); });
    std::sort(singles_.begin(), singles_.end());
    std::vector<Part> parts;
    for (const std::int32_t t : singles_) {
      parts.push_back(part_of(key_scores[static_cast<std::size_t>(t)]));
    }
    const Row::Kept kept = blocks_.all_kept();
    selection.append_row(kept.indices, kept.parts, singles_, parts);
  }

 private:
  bool fits(std::int64_t keys) const { return static_cast<double>(keys) <= room_ + 0.5; }
  /// With its block.
  bool is_kept(std::int32_t key) const { return !blocks_.is_free(key / block_); }

  void keep_key(std::int32_t key) {
    singles_.push_back(key);
    ++singles_in_[static_cast<std::size_t>(key / block_)];
    room_ -= 1.0;
  }
  void keep_block(std::int64_t j, Part part) {
    const std::int64_t more = block_ - singles_in_[static_cast<std::size_t>(j)];
    if (!fits(more)) return;
    blocks_.keep(j, part);
    room_ -= static_cast<double>(more);
  }

  Row blocks_;
  std::int64_t block_;
  double room_;
  std::vector<std::int32_t> singles_;
  std::vector<std::int64_t> singles_in_;  // by block
};

/// Rows of blocks and single keys, which compete by score per key.
BlockSelection select_mixed(const BlockScores& scores, const BlockGeometry& geometry,
                            const Budget& budget, double density) {
  if (budget.kind != Budget::Kind::kMatched || budget.dense_last_rows > 0) {
    throw std::logic_error("budget: not one of mixed rows");
  }
  std::vector<std::vector<std::int32_t>> key_order;
  for (std::int64_t g = 0; g < scores.groups; ++g) {
    require_numbers(scores.keys.row(g), geometry.key_blocks() - 1);
    key_order.push_back(in_order(scores.keys.row(g)));
  }
  const std::vector<double> rooms =
      keys_before_own(geometry, density, static_cast<double>(least_keys(budget, geometry)));
  const std::int64_t rows = geometry.rows();
  std::vector<MixedRow> mixed;
  for (std::int64_t i = 0; i < scores.groups * rows; ++i) {
    mixed.emplace_back(geometry.first_row() + i % rows + 1, geometry.block,
                       rooms[static_cast<std::size_t>(i % rows)]);
  }
  parallel_for(scores.groups * rows, [&](std::int64_t i, int) {
    const std::int64_t g = i / rows;
    const std::int64_t own = geometry.first_row() + i % rows;
    const auto block_scores = scores.values.row(i).first(static_cast<std::size_t>(own));
    require_numbers(block_scores, own);
    MixedRow& row = mixed[static_cast<std::size_t>(i)];
    row.keep_forced_blocks(budget.forced, matched_blocks(density, own + 1));
    row.keep_best(block_scores, scores.keys.row(g), in_order(block_scores),
                  key_order[static_cast<std::size_t>(g)]);
  });
  BlockSelection selection(geometry, scores.groups);
  for (std::int64_t i = 0; i < scores.groups * rows; ++i) {
    mixed[static_cast<std::size_t>(i)].append_to(selection, scores.keys.row(i / rows));
  }
  return selection;
}

}  // namespace

std::int64_t matched_keys(double density, std::int64_t tokens) {
  return std::clamp<std::int64_t>(round_half_up(density * static_cast<double>(tokens)), 1, tokens);
}

std::int64_t matched_blocks(double density, std::int64_t candidates) {
  const double area = static_cast<double>(candidates) - 0.5;
  const auto m = static_cast<std::int64_t>(std::floor(density * area + 1.0));
  return std::clamp<std::int64_t>(m, 1, candidates);
}

std::int64_t matched_step_blocks(double density, const BlockGeometry& geometry) {
  const auto block = static_cast<double>(geometry.block);
  const std::int64_t before = geometry.key_blocks() - 1;
  // Sum over the steps 1 .. t of this block of (density * (before * block + i) - i) / block.
  const auto rounded_sum = [&](std::int64_t t) {
    const auto x = static_cast<double>(t);
    return round_half_up(density * static_cast<double>(before) * x -
                         (1.0 - density) * x * (x + 1.0) / (2.0 * block));
  };
  const std::int64_t step = geometry.tokens - before * geometry.block;
  return std::clamp<std::int64_t>(1 + rounded_sum(step) - rounded_sum(step - 1), 1, before + 1);
}

namespace {

/// kCalibrated as the kTopP that it comes to.
Budget calibrate(const BlockScores& scores, const BlockGeometry& geometry, const Budget& budget,
                 double density) {
  std::vector<ShareRow> rows;
  double causal = 0.0;
  std::int64_t least = budget.min_blocks;
  if (!scores.keys.empty()) {
    least = least_keys(budget, geometry) + 1;
    if (!scores.values.empty()) throw std::logic_error("budget: not one of mixed rows");
    for (std::int64_t g = 0; g < scores.keys.rows(); ++g) {
      require_numbers(scores.keys.row(g), geometry.key_blocks() - 1);
      rows.push_back({scores.keys.row(g), 1.0, 1.0});
      causal += static_cast<double>(geometry.tokens);
    }
  } else {
    const std::vector<RowSize> sizes = row_sizes(geometry);
    for (std::int64_t i = 0; i < scores.groups * geometry.rows(); ++i) {
      const std::int64_t own = geometry.first_row() + i % geometry.rows();
      const RowSize& size = sizes[static_cast<std::size_t>(i % geometry.rows())];
      const auto row = scores.values.row(i).first(static_cast<std::size_t>(own + 1));
      require_numbers(row, own);
      rows.push_back({row, size.queries * static_cast<double>(geometry.block), size.own});
      causal += size.area();
    }
  }
  Budget found = budget;
  found.kind = Budget::Kind::kTopP;
  found.top_p = calibrated_share(rows, budget, least, density * causal);
  return found;
}

}  // namespace

BlockSelection select_blocks(const BlockScores& scores, const BlockGeometry& geometry,
                             const Budget& budget, double density, Phase phase) {
  if (budget.kind == Budget::Kind::kAll || budget.dense_phase == phase) {
    return BlockSelection::dense(geometry);
  }
  if (budget.kind == Budget::Kind::kCalibrated) {
    const Budget found = calibrate(scores, geometry, budget, density);
    BlockSelection selection = select_blocks(scores, geometry, found, density, phase);
    selection.set_calibrated_share(found.top_p);
    return selection;
  }
  if (!scores.keys.empty()) {
    return scores.values.empty() ? select_keys(scores.keys, geometry, budget, density)
                                 : select_mixed(scores, geometry, budget, density);
  }
  const bool scored = budget.forced != Budget::Forced::kSinkAndRecent;
  assert(!scored || (scores.values.rows() == scores.groups * geometry.rows() &&
                     scores.values.cols() == geometry.key_blocks()));
  const std::int64_t b = geometry.key_blocks();
  const std::int64_t tau =
      budget.tau > 0 ? budget.tau
                     : std::max<std::int64_t>(1, round_half_up(density * static_cast<double>(b)));
  const ReleaseSizes sizes = release_sizes(geometry, budget);

  DenseRows dense{0, density};
  if (phase == Phase::kPrefill) dense = pay_dense_rows(budget, geometry, density);
  const auto matched = [&](std::int64_t candidates) {
    return phase == Phase::kDecode && budget.rounding == Budget::Rounding::kSteps
               ? matched_step_blocks(density, geometry)
               : matched_blocks(dense.density_before, candidates);
  };

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
      require_numbers(s, row.candidates() - 1);
    }
    switch (budget.kind) {
      case Budget::Kind::kMatched:
        fill_matched(row, s, budget,
                     std::clamp(budget.min_blocks, matched(row.candidates()), row.candidates()));
        if (row.candidates() > b - dense.count) keep_all(row, Part::kForced);
        return;
      case Budget::Kind::kTopP:
        return fill_top_p(row, s, budget, budget.min_blocks);
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
  for (const Row& row : rows) {
    const Row::Kept kept = row.all_kept();
    selection.append_row(kept.indices, kept.parts);
  }
  if (budget.kind == Budget::Kind::kRelease) {
    selection.set_token_parts(phase == Phase::kPrefill ? sizes.token_window : 0, sizes.token_sink);
  }
  return selection;
}

}  // namespace sw
