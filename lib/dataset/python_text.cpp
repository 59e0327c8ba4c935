#include "dataset/python_text.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "core/text.hpp"

namespace sw {
namespace {

constexpr int kWord = 1;
constexpr int kDigit = 2;
constexpr int kCased = 4;
constexpr int kIgnorable = 8;

struct CharClass {
  char32_t first, last;
  int flags;
};
struct LowerRange {
  char32_t first, last;
  std::int32_t step, delta;  // every step-th character from first on
};

#include "dataset/unicode_tables.inc"

template <class Range, std::size_t n>
const Range* find_range(const Range (&ranges)[n], char32_t c) {
  const Range* range = std::partition_point(std::begin(ranges), std::end(ranges),
                                            [c](const Range& r) { return r.last < c; });
  return range != std::end(ranges) && range->first <= c ? range : nullptr;
}

int class_of(char32_t c) {
  const CharClass* found = find_range(kClasses, c);
  return found ? found->flags : 0;
}

char32_t lower(char32_t c) {
  const LowerRange* found = find_range(kLower, c);
  if (!found || (c - found->first) % static_cast<char32_t>(found->step) != 0) return c;
  return static_cast<char32_t>(static_cast<std::int32_t>(c) + found->delta);
}

bool is_cased_first(std::u32string_view::const_iterator it,
                    std::u32string_view::const_iterator end) {
  while (it != end && class_of(*it) & kIgnorable) ++it;
  return it != end && class_of(*it) & kCased;
}

/// Whether the capital sigma at `i` ends a word: a letter before it and none behind.
bool is_final_sigma(std::u32string_view text, std::size_t i) {
  std::size_t before = i;
  while (before > 0 && class_of(text[before - 1]) & kIgnorable) --before;
  if (before == 0 || !(class_of(text[before - 1]) & kCased)) return false;
  return !is_cased_first(text.begin() + static_cast<std::ptrdiff_t>(i) + 1, text.end());
}

}  // namespace

std::u32string decode_utf8(std::string_view utf8) {
  const std::string valid = to_valid_utf8(utf8);
  std::u32string text;
  text.reserve(valid.size());
  for (const char byte : valid) {
    const auto c = static_cast<unsigned char>(byte);
    if ((c & 0xC0u) == 0x80u) {
      text.back() = text.back() << 6 | (c & 0x3Fu);
    } else {
      text += c < 0x80u ? c : c < 0xE0u ? c & 0x1Fu : c < 0xF0u ? c & 0x0Fu : c & 0x07u;
    }
  }
  return text;
}

std::u32string python_lower(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == U'\u03A3') {
      out += is_final_sigma(text, i) ? U'\u03C2' : U'\u03C3';
    } else if (c == U'\u0130') {
      out += U"i\u0307";
    } else {
      out += lower(c);
    }
  }
  return out;
}

std::vector<std::u32string> python_split(std::u32string_view text) {
  std::vector<std::u32string> words;
  for (auto it = text.begin();;) {
    it = std::find_if_not(it, text.end(), is_python_space);
    if (it == text.end()) return words;
    const auto end = std::find_if(it, text.end(), is_python_space);
    words.emplace_back(it, end);
    it = end;
  }
}

std::u32string_view python_strip(std::u32string_view text) {
  while (!text.empty() && is_python_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_python_space(text.back())) text.remove_suffix(1);
  return text;
}

bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_python_digit(char32_t c) { return class_of(c) & kDigit; }
bool is_python_word(char32_t c) { return class_of(c) & kWord; }

}  // namespace sw
