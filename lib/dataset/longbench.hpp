#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dataset/jsonl.hpp"
#include "dataset/sample.hpp"

/// LongBench v1 (Bai et al., ACL 2024): its records, and prompts built exactly as the benchmark's
/// own pred.py does, from its dataset2prompt.json.
namespace sw {

struct LongBenchRecord {
  std::string id;       ///< "_id"
  std::string dataset;  ///< as in the file: "hotpotqa", "hotpotqa_e", ...
  std::string language;
  std::string input;  ///< the question; empty for summaries
  std::string context;
  std::vector<std::string> answers;
  std::vector<std::string> all_classes;  ///< empty when the task has none
  std::int64_t length = 0;               ///< words, as counted by the benchmark; 0 when missing
};

/// Record `index` of a LongBench file. `input`, `context`, `answers` and `dataset` are required.
/// Errors as JsonlFile::record; a missing field or one of another type is Error(kInput).
LongBenchRecord read_longbench(const JsonlFile& file, std::int64_t index);

/// Name of the task without the "_e" of LongBench-E: "hotpotqa_e" -> "hotpotqa".
std::string_view longbench_task(std::string_view dataset);

/// False for the tasks that LongBench gives to the model without a chat template: trec, triviaqa,
/// samsum, lsht, lcc and repobench-p.
bool longbench_uses_chat(std::string_view task);

/// The prompt templates of dataset2prompt.json: one string a task, with {context} and {input}.
class LongBenchPrompts {
 public:
  /// Throws Error(kInput) when the file is not an object of strings.
  explicit LongBenchPrompts(const std::string& path);

  /// The template of the record's task, filled in; `question` of the sample is what follows
  /// {context} there. Throws Error(kInput) for an unknown task or placeholder.
  Sample sample(const LongBenchRecord& record) const;

 private:
  std::string path_;
  std::map<std::string, std::string, std::less<>> templates_;
};

/// How many tokens a task may generate: dataset2maxlen.json, one number a task.
class LongBenchLengths {
 public:
  /// Throws Error(kInput) when the file is not an object of positive whole numbers.
  explicit LongBenchLengths(const std::string& path);

  /// For a task with or without "_e". Throws Error(kInput) for an unknown one.
  std::int64_t max_new_tokens(std::string_view task) const;

 private:
  std::string path_;
  std::map<std::string, std::int64_t, std::less<>> lengths_;
};

/// Where dataset2prompt.json is when nobody says so: beside the records, or in the folder config or
/// longbench_config next to the records' folder. Throws Error(kUsage) when it is in none of them.
std::string find_longbench_prompts(const std::string& records_path);

}  // namespace sw
