#include "dataset/scorers.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <vector>

#include "core/error.hpp"
#include "core/text.hpp"
#include "dataset/longbench.hpp"
#include "dataset/python_text.hpp"
#include "dataset/rouge.hpp"
#include "dataset/sequence_ratio.hpp"

namespace sw {
namespace {

using Texts = std::span<const std::string>;

/// The best score over the references.
template <double (*one)(std::string_view prediction, std::string_view reference, Texts classes)>
double best_of(std::string_view prediction, Texts references, Texts classes) {
  double best = 0.0;
  for (const std::string& reference : references) {
    best = std::max(best, one(prediction, reference, classes));
  }
  return best;
}

bool is_ascii_punctuation(char32_t c) {
  return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) ||
         (c >= 0x7B && c <= 0x7E);
}

/// Words without case, ASCII punctuation and the articles a, an and the.
std::vector<std::u32string> normal_words(std::string_view text) {
  std::u32string lower = python_lower(decode_utf8(text));
  std::erase_if(lower, is_ascii_punctuation);
  std::u32string kept;
  for (auto it = lower.cbegin(); it != lower.cend();) {
    const auto end = std::find_if_not(it, lower.cend(), is_python_word);
    const std::u32string word(it, end);
    kept += word == U"a" || word == U"an" || word == U"the" ? U" " : word;
    it = end;
    if (it != lower.cend()) kept += *it++;
  }
  return python_split(kept);
}

double qa_f1(std::string_view prediction, std::string_view reference, Texts) {
  const auto predicted = normal_words(prediction);
  const auto expected = normal_words(reference);
  std::map<std::u32string, std::int64_t> left;
  for (const auto& word : expected) ++left[word];
  std::int64_t same = 0;
  for (const auto& word : predicted) {
    const auto it = left.find(word);
    if (it != left.end() && it->second-- > 0) ++same;
  }
  if (same == 0) return 0.0;
  const double precision = static_cast<double>(same) / static_cast<double>(predicted.size());
  const double recall = static_cast<double>(same) / static_cast<double>(expected.size());
  return (2 * precision * recall) / (precision + recall);
}

double rouge(std::string_view prediction, std::string_view reference, Texts) {
  return rouge_l(prediction, reference);
}

/// 1 / (number of classes that the prediction names), if the reference is one of them.
double classification(std::string_view prediction, std::string_view reference, Texts classes) {
  std::vector<std::string_view> named;
  for (const std::string& name : classes) {
    if (prediction.find(name) != std::string_view::npos) named.push_back(name);
  }
  // Parts of the reference's name do not count. As in the original, the one behind a removed name
  // escapes, and it is the first equal name that goes.
  for (std::size_t i = 0; i < named.size(); ++i) {
    const std::string_view name = named[i];
    if (name != reference && reference.find(name) != std::string_view::npos) {
      named.erase(std::find(named.begin(), named.end(), name));
    }
  }
  if (std::find(named.begin(), named.end(), reference) == named.end()) return 0.0;
  return 1.0 / static_cast<double>(named.size());
}

/// Share of the numbers in the text that are written exactly as `wanted`.
double share_of_numbers(std::string_view text, std::u32string_view wanted) {
  const std::u32string characters = decode_utf8(text);
  std::int64_t numbers = 0;
  std::int64_t right = 0;
  for (auto it = characters.begin();;) {
    it = std::find_if(it, characters.end(), is_python_digit);
    if (it == characters.end()) break;
    const auto end = std::find_if_not(it, characters.end(), is_python_digit);
    ++numbers;
    if (std::u32string_view(it, end) == wanted) ++right;
    it = end;
  }
  return numbers == 0 ? 0.0 : static_cast<double>(right) / static_cast<double>(numbers);
}

double count(std::string_view prediction, std::string_view reference, Texts) {
  return share_of_numbers(prediction, decode_utf8(reference));
}

double retrieval(std::string_view prediction, std::string_view reference, Texts) {
  static constexpr std::u32string_view kParagraph = U"Paragraph ";
  const std::u32string text = decode_utf8(reference);
  for (std::size_t at = text.find(kParagraph); at != std::u32string::npos;
       at = text.find(kParagraph, at + 1)) {
    const auto begin = text.begin() + static_cast<std::ptrdiff_t>(at + kParagraph.size());
    const auto end = std::find_if_not(begin, text.end(), is_python_digit);
    if (begin != end) return share_of_numbers(prediction, std::u32string_view(begin, end));
  }
  throw Error(ErrorKind::kInput,
              "the reference '" + std::string(reference) + "' names no paragraph",
              "passage retrieval expects references such as 'Paragraph 7'");
}

std::string_view without_leading_line_feeds(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

/// The first line that is neither a comment nor a fence.
std::string_view code_line(std::string_view text) {
  for (std::string_view rest = without_leading_line_feeds(text);;) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    if (line.find_first_of("`#") == std::string_view::npos &&
        line.find("//") == std::string_view::npos) {
      return line;
    }
    if (end == std::string_view::npos) return "";
    rest.remove_prefix(end + 1);
  }
}

/// fuzz.ratio / 100 of the package fuzzywuzzy.
template <double (*ratio)(std::u32string_view, std::u32string_view)>
double code_similarity(std::string_view prediction, std::string_view reference, Texts) {
  const std::u32string line = decode_utf8(code_line(prediction));
  const std::u32string expected = decode_utf8(reference);
  if (line == expected) return 1.0;
  if (line.empty() || expected.empty()) return 0.0;
  // Python's round and nearbyint both send ties to the even number.
  return std::nearbyint(100 * ratio(line, expected)) / 100;
}

/// How many of the references the prediction contains, in any case; RULER's own clean-up first.
std::size_t contained(std::string_view prediction, Texts references) {
  std::u32string text(python_strip(decode_utf8(prediction)));
  std::replace_if(
      text.begin(), text.end(), [](char32_t c) { return c < 0x20; }, U'\n');
  const std::u32string lower = python_lower(python_strip(text));
  return static_cast<std::size_t>(
      std::count_if(references.begin(), references.end(), [&](const std::string& reference) {
        return lower.find(python_lower(decode_utf8(reference))) != std::u32string::npos;
      }));
}

double string_match_all(std::string_view prediction, Texts references, Texts) {
  if (references.empty()) return 0.0;
  return static_cast<double>(contained(prediction, references)) /
         static_cast<double>(references.size());
}

double string_match_part(std::string_view prediction, Texts references, Texts) {
  return contained(prediction, references) > 0 ? 1.0 : 0.0;
}

constexpr Scorer kQaF1 = {"qa_f1", false, best_of<qa_f1>};
constexpr Scorer kRougeL = {"rouge_l", false, best_of<rouge>};
constexpr Scorer kClassification = {"classification", false, best_of<classification>};
constexpr Scorer kRetrieval = {"retrieval", false, best_of<retrieval>};
constexpr Scorer kCount = {"count", false, best_of<count>};
constexpr Scorer kCodeSimilarity = {"code_similarity", false,
                                    best_of<code_similarity<indel_ratio>>};
constexpr Scorer kCodeSimilarityDifflib = {"code_similarity_difflib", false,
                                           best_of<code_similarity<sequence_ratio>>};
constexpr Scorer kMatchAll = {"string_match_all", false, string_match_all};
constexpr Scorer kMatchOne = {"string_match_all", true, string_match_all};
constexpr Scorer kMatchPart = {"string_match_part", true, string_match_part};

struct Task {
  std::string_view name;
  const Scorer* scorer;  // null: Chinese
};

constexpr Task kLongBench[] = {
    {"narrativeqa", &kQaF1},
    {"qasper", &kQaF1},
    {"multifieldqa_en", &kQaF1},
    {"hotpotqa", &kQaF1},
    {"2wikimqa", &kQaF1},
    {"musique", &kQaF1},
    {"gov_report", &kRougeL},
    {"qmsum", &kRougeL},
    {"multi_news", &kRougeL},
    {"trec", &kClassification},
    {"triviaqa", &kQaF1},
    {"samsum", &kRougeL},
    {"passage_count", &kCount},
    {"passage_retrieval_en", &kRetrieval},
    {"lcc", &kCodeSimilarity},
    {"repobench-p", &kCodeSimilarity},
    {"multifieldqa_zh", nullptr},
    {"dureader", nullptr},
    {"vcsum", nullptr},
    {"lsht", nullptr},
    {"passage_retrieval_zh", nullptr},
};

constexpr Task kRuler[] = {
    {"niah", &kMatchAll},
    {"vt", &kMatchAll},
    {"variable_tracking", &kMatchAll},
    {"cwe", &kMatchAll},
    {"common_words_extraction", &kMatchAll},
    {"fwe", &kMatchAll},
    {"freq_words_extraction", &kMatchAll},
    {"qa", &kMatchPart},
};

std::vector<std::string> names(std::span<const Task> tasks) {
  std::vector<std::string> all;
  for (const Task& task : tasks) all.emplace_back(task.name);
  return all;
}

/// The sum in numpy's order: eight partial sums up to 128 values, halves of more.
double numpy_sum(std::span<const double> values) {
  const std::size_t n = values.size();
  if (n < 8) return std::accumulate(values.begin(), values.end(), 0.0);
  if (n > 128) {
    const std::size_t half = n / 2 - n / 2 % 8;
    return numpy_sum(values.first(half)) + numpy_sum(values.subspan(half));
  }
  std::array<double, 8> part{};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) part[k] += values[i + k];
  }
  const double sum =
      ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(i), values.end(), sum);
}

}  // namespace

const Scorer& longbench_scorer(std::string_view task, CodeRatio ratio) {
  const std::string_view name = longbench_task(task);
  const auto it = std::find_if(std::begin(kLongBench), std::end(kLongBench),
                               [name](const Task& known) { return known.name == name; });
  if (it == std::end(kLongBench)) {
    throw Error(ErrorKind::kUsage, "'" + std::string(task) + "' is no task of LongBench v1",
                suggestion(name, names(kLongBench)));
  }
  if (!it->scorer) {
    throw Error(ErrorKind::kUnsupported,
                "'" + std::string(task) +
                    "' is a Chinese task: those are not scored here, because LongBench's Chinese "
                    "metrics stand on the word segmentation of jieba",
                "score it with the benchmark's own eval.py");
  }
  if (it->scorer == &kCodeSimilarity && ratio == CodeRatio::kDifflib) {
    return kCodeSimilarityDifflib;
  }
  return *it->scorer;
}

const Scorer& ruler_scorer(std::string_view task) {
  if (task == "niah") return kMatchOne;
  for (const Task& known : kRuler) {
    if (task == known.name ||
        (task.starts_with(known.name) && task.substr(known.name.size()).starts_with('_'))) {
      return *known.scorer;
    }
  }
  throw Error(ErrorKind::kUsage, "'" + std::string(task) + "' is no task of RULER",
              suggestion(task.substr(0, task.find('_')), names(kRuler)));
}

std::string longbench_prediction(std::string_view task, std::string_view generated) {
  static constexpr std::string_view kFirstLine[] = {"trec", "triviaqa", "samsum", "lsht"};
  if (std::find(std::begin(kFirstLine), std::end(kFirstLine), longbench_task(task)) ==
      std::end(kFirstLine)) {
    return std::string(generated);
  }
  const std::string_view text = without_leading_line_feeds(generated);
  return std::string(text.substr(0, text.find('\n')));
}

std::string_view length_bucket(std::int64_t length) {
  return length < 4000 ? "0-4k" : length < 8000 ? "4-8k" : "8k+";
}

double longbench_task_score(std::span<const double> scores) {
  const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
  // Python rounds the exact decimal value, as printf does.
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", 100 * total / static_cast<double>(scores.size()));
  return std::strtod(text, nullptr);
}

double longbench_bucket_score(std::span<const double> scores) {
  const double mean = numpy_sum(scores) / static_cast<double>(scores.size());
  return std::nearbyint(100 * mean * 100) / 100;
}

}  // namespace sw
