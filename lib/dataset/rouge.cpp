#include "dataset/rouge.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "dataset/python_text.hpp"

namespace sw {
namespace {

using Sentence = std::vector<int>;  // words as numbers

// Calls of the package's recursive reconstruction that fit below Python's limit of 1000 frames:
// the other 9 belong to eval.py and the functions between.
constexpr std::size_t kMaxCalls = 991;

/// Numbers words in the order in which they come.
class Vocabulary {
 public:
  std::vector<Sentence> sentences(std::u32string_view text) {
    std::vector<Sentence> sentences;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find(U'.', begin), text.size());
      if (end > begin) sentences.push_back(words(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return sentences;
  }

 private:
  Sentence words(std::u32string_view text) {
    std::vector<std::u32string> words = python_split(text);
    if (words.empty()) words.emplace_back();  // white space alone counts as an empty word
    Sentence sentence;
    for (auto& word : words) {
      sentence.push_back(
          numbers_.try_emplace(word, static_cast<int>(numbers_.size())).first->second);
    }
    return sentence;
  }

  std::map<std::u32string, int> numbers_;
};

/// Adds the words of the package's longest common subsequence of x and y. False when its recursion
/// would exceed the limit.
bool add_common_words(const Sentence& x, const Sentence& y, std::set<int>& common) {
  enum Step : std::uint8_t { kBoth, kX, kY };
  const std::size_t n = x.size();
  const std::size_t m = y.size();
  if (std::min(n, m) >= kMaxCalls) return false;  // every step shortens one of them by one
  // Only the last steps can be walked, so only those are kept.
  const std::size_t first_i = n - std::min(n, kMaxCalls);
  const std::size_t first_j = m - std::min(m, kMaxCalls);
  const std::size_t columns = m - first_j;
  std::vector<Step> steps((n - first_i) * columns);
  std::vector<int> above(m + 1, 0);
  std::vector<int> row(m + 1, 0);
  for (std::size_t i = 1; i <= n; ++i) {
    for (std::size_t j = 1; j <= m; ++j) {
      const bool same = x[i - 1] == y[j - 1];
      row[j] = same ? above[j - 1] + 1 : std::max(above[j], row[j - 1]);
      if (i > first_i && j > first_j) {
        steps[(i - first_i - 1) * columns + j - first_j - 1] =
            same ? kBoth : (above[j] > row[j - 1] ? kX : kY);
      }
    }
    std::swap(above, row);
  }
  std::size_t calls = 1;
  for (std::size_t i = n, j = m; i > 0 && j > 0;) {
    if (++calls > kMaxCalls) return false;
    const Step step = steps[(i - first_i - 1) * columns + j - first_j - 1];
    if (step == kBoth) common.insert(x[i - 1]);
    if (step != kY) --i;
    if (step != kX) --j;
  }
  return true;
}

std::size_t distinct(const std::vector<Sentence>& sentences) {
  std::set<int> words;
  for (const Sentence& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return words.size();
}

}  // namespace

double rouge_l(std::string_view prediction, std::string_view reference) {
  Vocabulary vocabulary;
  const auto predicted = vocabulary.sentences(decode_utf8(prediction));
  const auto expected = vocabulary.sentences(decode_utf8(reference));
  if (predicted.empty() || expected.empty()) return 0.0;
  std::set<int> common;
  for (const Sentence& x : expected) {
    for (const Sentence& y : predicted) {
      if (!add_common_words(x, y, common)) return 0.0;
    }
  }
  const auto count = static_cast<double>(common.size());
  const double recall = count / static_cast<double>(distinct(expected));
  const double precision = count / static_cast<double>(distinct(predicted));
  return 2.0 * ((precision * recall) / (precision + recall + 1e-8));
}

}  // namespace sw
