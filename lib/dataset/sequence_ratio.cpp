#include "dataset/sequence_ratio.hpp"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sw {
namespace {

struct Match {
  std::size_t a, b, size;
};
struct Range {
  std::size_t a_begin, a_end, b_begin, b_end;
};

class Matcher {
 public:
  Matcher(std::u32string_view a, std::u32string_view b)
      : a_(a), b_(b), lengths_(b.size() + 1), next_lengths_(b.size() + 1) {
    for (std::size_t j = 0; j < b.size(); ++j) positions_[b[j]].push_back(j);
    // Autojunk: in long texts, frequent characters begin no match (but do extend one).
    if (b.size() >= 200) {
      std::erase_if(positions_,
                    [&](const auto& entry) { return entry.second.size() > b.size() / 100 + 1; });
    }
  }

  /// Characters in the matching blocks: the longest one, then those left and right of it.
  std::size_t matching() {
    std::size_t total = 0;
    std::vector<Range> queue = {{0, a_.size(), 0, b_.size()}};
    while (!queue.empty()) {
      const Range r = queue.back();
      queue.pop_back();
      const Match m = longest(r);
      if (m.size == 0) continue;
      total += m.size;
      if (r.a_begin < m.a && r.b_begin < m.b) queue.push_back({r.a_begin, m.a, r.b_begin, m.b});
      if (m.a + m.size < r.a_end && m.b + m.size < r.b_end) {
        queue.push_back({m.a + m.size, r.a_end, m.b + m.size, r.b_end});
      }
    }
    return total;
  }

 private:
  /// The longest common run; of several the first in a, then in b.
  Match longest(const Range& r) {
    Match best = {r.a_begin, r.b_begin, 0};
    for (std::size_t i = r.a_begin; i < r.a_end; ++i) {
      if (const auto it = positions_.find(a_[i]); it != positions_.end()) {
        for (const std::size_t j : it->second) {
          if (j < r.b_begin) continue;
          if (j >= r.b_end) break;
          // lengths_[j] is of the run that ends with a[i - 1] and b[j - 1].
          const std::size_t size = lengths_[j] + 1;
          next_lengths_[j + 1] = size;
          next_touched_.push_back(j + 1);
          if (size > best.size) best = {i + 1 - size, j + 1 - size, size};
        }
      }
      for (const std::size_t j : touched_) lengths_[j] = 0;
      touched_.clear();
      std::swap(lengths_, next_lengths_);
      std::swap(touched_, next_touched_);
    }
    for (const std::size_t j : touched_) lengths_[j] = 0;
    touched_.clear();

    while (best.a > r.a_begin && best.b > r.b_begin && a_[best.a - 1] == b_[best.b - 1]) {
      best = {best.a - 1, best.b - 1, best.size + 1};
    }
    while (best.a + best.size < r.a_end && best.b + best.size < r.b_end &&
           a_[best.a + best.size] == b_[best.b + best.size]) {
      ++best.size;
    }
    return best;
  }

  std::u32string_view a_, b_;
  std::unordered_map<char32_t, std::vector<std::size_t>> positions_;  // in b, ascending
  std::vector<std::size_t> lengths_, next_lengths_;                   // zero except where touched
  std::vector<std::size_t> touched_, next_touched_;
};

}  // namespace

double sequence_ratio(std::u32string_view a, std::u32string_view b) {
  if (a.empty() && b.empty()) return 1.0;
  const auto matching = static_cast<double>(Matcher(a, b).matching());
  return 2.0 * matching / static_cast<double>(a.size() + b.size());
}

double indel_ratio(std::u32string_view a, std::u32string_view b) {
  if (a.empty() && b.empty()) return 1.0;
  std::vector<std::size_t> row(b.size() + 1);  // longest common subsequences with b's beginnings
  for (const char32_t c : a) {
    std::size_t diagonal = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t longer = c == b[j] ? diagonal + 1 : std::max(row[j + 1], row[j]);
      diagonal = std::exchange(row[j + 1], longer);
    }
  }
  const std::size_t all = a.size() + b.size();
  // The package's own arithmetic: 2 * common / all rounds differently at some ties.
  return 1.0 - static_cast<double>(all - 2 * row.back()) / static_cast<double>(all);
}

}  // namespace sw
