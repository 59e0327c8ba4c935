#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

/// How answers are scored. LongBench v1: the English metrics, equal to the benchmark's own
/// metrics.py and eval.py sample by sample (metrics.md, Model quality). RULER: its string matches.
/// A new metric is one line in scorers.cpp, in the list of scorers and in that of its benchmark.
namespace sw {

struct Scorer {
  /// "qa_f1", "rouge_l", "classification", "retrieval", "count", "code_similarity",
  /// "code_similarity_difflib", "string_match_all" or "string_match_part"
  std::string_view name;
  /// Whether every score is 0 or 1, by construction of the metric or, for niah, of the task.
  bool binary;
  /// Score in [0, 1] of one prediction (already trimmed by longbench_prediction) against its
  /// references: the best one, and string_match_all the share that it contains. 0 without
  /// references. `classes` are those of the task, for classification only. Time grows with the
  /// product of the lengths, as in the originals. Throws Error(kInput) when retrieval's reference
  /// names no paragraph.
  double (*score)(std::string_view prediction, std::span<const std::string> references,
                  std::span<const std::string> classes);
};

/// How lcc and repobench-p compare two lines. LongBench calls fuzzywuzzy, which takes the package
/// Levenshtein where that is installed and Python's difflib elsewhere, with other scores.
enum class CodeRatio {
  kLevenshtein,  ///< as in the published scores of the benchmark
  kDifflib,
};

/// The scorer of a task, with or without "_e". Throws Error(kUnsupported) for the Chinese tasks,
/// which stand on jieba's segmentation, and Error(kUsage) with a suggestion for unknown names.
const Scorer& longbench_scorer(std::string_view task, CodeRatio ratio = CodeRatio::kLevenshtein);
/// The scorer of a RULER task: niah, vt, cwe, fwe or qa, or such a name with "_" and more behind it
/// ("niah_multikey_3_4096"). "niah" alone is the built-in one, which has a single answer. Throws
/// Error(kUsage) with a suggestion for any other name.
const Scorer& ruler_scorer(std::string_view task);

/// What is scored of a generated text: trec, triviaqa, samsum and lsht count only the first line
/// after leading line feeds, the other tasks everything.
std::string longbench_prediction(std::string_view task, std::string_view generated);

/// LongBench-E: "0-4k", "4-8k" or "8k+" for the record's `length`.
std::string_view length_bucket(std::int64_t length);

/// The score of a task as eval.py prints it: 100 times the mean, rounded to two digits. `scores`
/// is not empty.
double longbench_task_score(std::span<const double> scores);
/// The same for a bucket of LongBench-E, which eval.py averages and rounds with numpy's functions:
/// another order of addition, and ties fall differently.
double longbench_bucket_score(std::span<const double> scores);

}  // namespace sw
