#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dataset/jsonl.hpp"
#include "dataset/longbench.hpp"
#include "dataset/niah.hpp"
#include "dataset/sample.hpp"
#include "dataset/scorers.hpp"

/// The tasks of a model evaluation, named as on the command line (interfaces.md, TASK):
/// longbench:NAME[=FILE], ruler:NAME=FILE, niah[:options] and perplexity=FILE.
namespace sw {

enum class TaskKind { kLongBench, kRuler, kNiah, kPerplexity };

/// Where benchmarks lie when a task names no file of its own.
struct TaskPlaces {
  std::string longbench;  ///< folder with NAME.jsonl
  std::string prompts;    ///< dataset2prompt.json; empty: looked for near the records
};

struct TaskSample {
  Sample sample;
  /// Part of the task that the sample belongs to: a LongBench-E bucket, the length and depth of a
  /// needle; empty where there are none.
  std::string group;
  std::int64_t length = 0;  ///< as the benchmark counts it (LongBench: words); 0 when unknown
};

class Task {
 public:
  /// Throws Error(kUsage) for a spec that is none of the forms above, for unknown tasks and
  /// options, and when the records are not found; Error(kUnsupported) for tasks that cannot be
  /// scored here (the reason is in the message); Error(kInput) for damaged files.
  static Task open(std::string_view spec, const TaskPlaces& places);

  TaskKind kind() const { return kind_; }
  /// "longbench:trec_e", "ruler:vt", "niah", "perplexity:wikitext-2.test.txt".
  const std::string& name() const { return name_; }
  /// The canonical spec: kind, name and options that decide the samples.
  const std::string& spec() const { return spec_; }
  /// The name that the benchmark uses for its files: "trec_e", "vt", "niah". No path: it has no
  /// '/'.
  const std::string& benchmark_name() const { return benchmark_name_; }
  /// Every file that the samples and their protocol come from.
  const std::vector<std::string>& files() const { return files_; }
  /// Samples; 1 for perplexity, which is one text.
  std::int64_t size() const;
  /// Sample `index` in [0, size()). `measure` is the unit of niah lengths. Throws as the readers
  /// do, and Error(kInput) for a sample without a reference answer.
  TaskSample sample(std::int64_t index, const SampleMeasure& measure) const;

  /// Tokens that a reply may have (LongBench: dataset2maxlen.json; RULER: its own constants).
  std::int64_t max_new_tokens() const { return max_new_tokens_; }
  /// A reply ends at a newline too, and has at least one token (LongBench, samsum).
  bool stops_at_newline() const { return stops_at_newline_; }
  /// nullptr for perplexity.
  const Scorer* scorer() const { return scorer_; }
  /// What is scored of a generated text.
  std::string prediction(std::string_view generated) const;

 private:
  Task() = default;
  void open_longbench(std::string_view name, std::string path, const TaskPlaces& places);
  void open_ruler(std::string_view name, const std::string& path);
  void open_niah(std::string_view options);

  TaskKind kind_ = TaskKind::kPerplexity;
  std::string name_;
  std::string spec_;
  std::string benchmark_name_;
  std::vector<std::string> files_;
  Sample text_;  // of perplexity
  std::shared_ptr<const JsonlFile> records_;
  std::shared_ptr<const LongBenchPrompts> prompts_;
  std::vector<std::int64_t> niah_lengths_;
  std::vector<double> niah_depths_;
  std::int64_t niah_samples_ = 1;
  NiahOptions niah_;
  std::int64_t max_new_tokens_ = 0;
  bool stops_at_newline_ = false;
  const Scorer* scorer_ = nullptr;
};

/// "longbench:NAME[=FILE]", ...: the forms, for help and error messages.
std::string task_forms();

}  // namespace sw
