#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "dataset/sample.hpp"

/// Needle in a haystack, built in: running text from a template grammar (datasets/niah.json, part
/// of the program) with sentences hidden in it that state a number for a town, and a question about
/// one of them. Everything follows from the options, so that a seed names the sample. The haystack
/// holds no digit and no town of the needles, so that the answer stands in exactly one place.
namespace sw {

struct NiahOptions {
  std::int64_t length = 1000;  ///< of the whole sample, in the unit of `measure` below
  double depth = 0.5;          ///< where the needle asked for is: 0 the begin, 1 the end
  std::int64_t needles = 1;    ///< the others lie anywhere and speak of other towns
  std::uint64_t seed = 0;
  std::string question;  ///< replaces the built-in one; {key} stands for the town
};

/// Bytes [begin, end) of a text.
struct ByteSpan {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool operator==(const ByteSpan&) const = default;
};

struct NiahSample {
  Sample sample;                       ///< its only answer is the number asked for
  std::string needle;                  ///< the sentence that states it
  std::vector<ByteSpan> answer_spans;  ///< the number, in sample.prompt
};

/// Length of a sample, e.g. in tokens with the chat template around it. Must not decrease when the
/// prompt grows.
using SampleMeasure = std::function<std::int64_t(const Sample&)>;
/// The number of words of the prompt.
std::int64_t count_words(const Sample& sample);

/// The longest sample that is at most options.length long. Throws Error(kUsage) for options out of
/// range, or when not even the needles and the question fit.
NiahSample make_niah(const NiahOptions& options, const SampleMeasure& measure = count_words);

/// The largest number of needles: the towns of the grammar.
std::int64_t max_niah_needles();

}  // namespace sw
