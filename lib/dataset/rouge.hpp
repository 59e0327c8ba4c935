#pragma once

#include <string_view>

namespace sw {

/// The F-measure "rouge-l" of get_scores of the PyPI package `rouge` 1.0.1, as LongBench calls it:
/// summary level and exclusive, so that it counts distinct words; sentences end at every '.', words
/// at white space, case matters. LongBench turns its exceptions into 0: a text without any
/// sentence, and sentences whose alignment recurses deeper than Python's limit (about 1,000 words).
double rouge_l(std::string_view prediction, std::string_view reference);

}  // namespace sw
