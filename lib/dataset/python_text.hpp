#pragma once

#include <string>
#include <string_view>
#include <vector>

/// Text as Python sees it. The benchmarks define their scores by Python programs; these are the
/// string operations that those use, over whole characters and with Python's own tables
/// (unicode_tables.inc), so that scores agree on any text.
namespace sw {

/// The characters of `utf8`; every maximal invalid part becomes U+FFFD.
std::u32string decode_utf8(std::string_view utf8);

/// str.lower(): the final sigma and the dotted I included.
std::u32string python_lower(std::u32string_view text);
/// str.split(): the words between runs of white space.
std::vector<std::u32string> python_split(std::u32string_view text);
/// str.strip()
std::u32string_view python_strip(std::u32string_view text);

bool is_python_space(char32_t c);  ///< str.isspace()
bool is_python_digit(char32_t c);  ///< \d of re
bool is_python_word(char32_t c);   ///< \w of re

}  // namespace sw
