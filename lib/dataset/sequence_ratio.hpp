#pragma once

#include <string_view>

/// How alike two texts are, as two Python packages say: 1 for equal texts, 0 for nothing in common.
namespace sw {

/// difflib.SequenceMatcher(None, a, b).ratio() of Python, its "autojunk" heuristic included: twice
/// the matching characters over all characters, 1 for two empty texts. Not symmetric.
double sequence_ratio(std::u32string_view a, std::u32string_view b);

/// Levenshtein.ratio(a, b) of the Python package: 1 minus the share of characters that are deleted
/// from a or inserted from b, 1 for two empty texts.
double indel_ratio(std::u32string_view a, std::u32string_view b);

}  // namespace sw
