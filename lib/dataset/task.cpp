#include "dataset/task.hpp"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "dataset/dataset.hpp"
#include "dataset/ruler.hpp"

namespace sw {
namespace {

[[noreturn]] void fail(std::string_view spec, const std::string& what) {
  throw Error(ErrorKind::kUsage, "task '" + std::string(spec) + "': " + what,
              "write one of: " + task_forms());
}

/// "A=B" -> {A, B}; without '=' the second part is empty.
std::pair<std::string_view, std::string> split_file(std::string_view text) {
  const std::size_t at = text.find('=');
  if (at == std::string_view::npos) return {text, ""};
  return {text.substr(0, at), std::string(text.substr(at + 1))};
}

/// Reply lengths of RULER's own configuration (tokens_to_generate of its synthetic tasks).
std::int64_t ruler_reply_tokens(std::string_view task) {
  constexpr std::pair<std::string_view, std::int64_t> kLengths[] = {
      {"niah", 128}, {"vt", 30}, {"cwe", 120}, {"fwe", 50}, {"qa", 32}};
  for (const auto& [prefix, tokens] : kLengths) {
    if (task.starts_with(prefix)) return tokens;
  }
  return 128;
}

/// "a+b+c"
template <class T, class Parse>
std::vector<T> parse_list(std::string_view text, Parse parse) {
  std::vector<T> values;
  for (const std::string& part : split(text, '+')) values.push_back(parse(part));
  return values;
}

std::string group_of_needle(std::int64_t length, double depth) {
  return "length=" + std::to_string(length) + ",depth=" + format_double(depth);
}

}  // namespace

std::string task_forms() {
  return "longbench:NAME[=FILE.jsonl], ruler:NAME=FILE.jsonl, "
         "niah[:lengths=1024+2048,depths=0+0.5+1,needles=1,samples=1,seed=0], "
         "perplexity=FILE.txt";
}

Task Task::open(std::string_view spec, const TaskPlaces& places) {
  Task task;
  const std::string_view kind = spec.substr(0, spec.find_first_of(":="));
  const std::string_view rest = kind.size() < spec.size() ? spec.substr(kind.size() + 1) : "";
  const bool colon = kind.size() < spec.size() && spec[kind.size()] == ':';
  if (kind == "longbench" && colon) {
    const auto [name, path] = split_file(rest);
    task.open_longbench(name, path, places);
  } else if (kind == "ruler" && colon) {
    const auto [name, path] = split_file(rest);
    if (path.empty()) fail(spec, "a RULER task needs the file of its samples");
    task.open_ruler(name, path);
  } else if (kind == "niah" && (colon || rest.empty())) {
    task.open_niah(rest);
  } else if (kind == "perplexity" && !colon && !rest.empty()) {
    task.kind_ = TaskKind::kPerplexity;
    const std::string path(rest);
    task.benchmark_name_ = std::filesystem::path(path).filename().string();
    task.name_ = "perplexity:" + task.benchmark_name_;
    task.spec_ = task.name_;
    task.files_ = {path};
    task.text_ = read_text(path);
  } else {
    fail(spec, "unknown kind of task, or a part is missing");
  }
  if (task.benchmark_name_.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
    fail(spec, "the name is that of a file of replies, so it cannot hold '/'");
  }
  return task;
}

void Task::open_longbench(std::string_view name, std::string path, const TaskPlaces& places) {
  kind_ = TaskKind::kLongBench;
  benchmark_name_ = name;
  name_ = "longbench:" + benchmark_name_;
  spec_ = name_;
  const std::string_view task = longbench_task(name);
  scorer_ = &longbench_scorer(task);
  if (path.empty()) {
    if (places.longbench.empty()) {
      throw Error(ErrorKind::kUsage, "no records for the task '" + name_ + "'",
                  "name the file, " + name_ + "=FILE.jsonl, or the folder with --longbench-dir");
    }
    path = (std::filesystem::path(places.longbench) / (benchmark_name_ + ".jsonl")).string();
  }
  records_ = std::make_shared<JsonlFile>(path);
  const std::string prompts =
      places.prompts.empty() ? find_longbench_prompts(path) : places.prompts;
  prompts_ = std::make_shared<LongBenchPrompts>(prompts);
  const std::string lengths =
      (std::filesystem::path(prompts).parent_path() / "dataset2maxlen.json").string();
  max_new_tokens_ = LongBenchLengths(lengths).max_new_tokens(task);
  stops_at_newline_ = task == "samsum";
  files_ = {path, prompts, lengths};
}

void Task::open_ruler(std::string_view name, const std::string& path) {
  kind_ = TaskKind::kRuler;
  benchmark_name_ = name;
  name_ = "ruler:" + benchmark_name_;
  spec_ = name_;
  scorer_ = &ruler_scorer(name);
  records_ = std::make_shared<JsonlFile>(path);
  max_new_tokens_ = ruler_reply_tokens(name);
  files_ = {path};
}

void Task::open_niah(std::string_view options) {
  kind_ = TaskKind::kNiah;
  benchmark_name_ = "niah";
  name_ = "niah";
  niah_lengths_ = {1024, 2048, 4096};
  niah_depths_ = {0.0, 0.25, 0.5, 0.75, 1.0};
  scorer_ = &ruler_scorer("niah");
  max_new_tokens_ = 32;
  const std::vector<std::string> known = {"lengths", "depths", "needles", "samples", "seed"};
  if (!options.empty()) {
    for (const std::string& option : split(options, ',')) {
      const auto [key, value] = split_file(option);
      const std::string what = "niah option '" + std::string(key) + "'";
      const auto integer = [&](std::string_view text) { return parse_int(text, what); };
      if (key == "lengths") {
        niah_lengths_ = parse_list<std::int64_t>(value, integer);
      } else if (key == "depths") {
        niah_depths_ = parse_list<double>(
            value, [&](std::string_view text) { return parse_double(text, what); });
      } else if (key == "needles") {
        niah_.needles = integer(value);
      } else if (key == "samples") {
        niah_samples_ = integer(value);
      } else if (key == "seed") {
        niah_.seed = static_cast<std::uint64_t>(integer(value));
      } else {
        throw Error(ErrorKind::kUsage, "unknown " + what, suggestion(key, known));
      }
    }
  }
  if (niah_samples_ < 1 || niah_samples_ > 1000000) {
    throw Error(ErrorKind::kUsage, "niah option 'samples' must be between 1 and 1000000");
  }
  for (const std::int64_t length : niah_lengths_) {
    if (length < 1)
      throw Error(ErrorKind::kUsage, "niah lengths are numbers of tokens, at least 1");
  }
  for (const double depth : niah_depths_) {
    if (depth < 0.0 || depth > 1.0) {
      throw Error(ErrorKind::kUsage, "niah depth " + format_double(depth) + " is outside [0, 1]");
    }
  }
  spec_ = "niah:lengths=";
  for (std::size_t i = 0; i < niah_lengths_.size(); ++i) {
    spec_ += (i > 0 ? "+" : "") + std::to_string(niah_lengths_[i]);
  }
  spec_ += ",depths=";
  for (std::size_t i = 0; i < niah_depths_.size(); ++i) {
    spec_ += (i > 0 ? "+" : "") + format_double(niah_depths_[i]);
  }
  spec_ += ",needles=" + std::to_string(niah_.needles) +
           ",samples=" + std::to_string(niah_samples_) + ",seed=" + std::to_string(niah_.seed);
}

std::int64_t Task::size() const {
  switch (kind_) {
    case TaskKind::kPerplexity:
      return 1;
    case TaskKind::kNiah:
      return std::ssize(niah_lengths_) * std::ssize(niah_depths_) * niah_samples_;
    default:
      return records_->size();
  }
}

TaskSample Task::sample(std::int64_t index, const SampleMeasure& measure) const {
  TaskSample result;
  switch (kind_) {
    case TaskKind::kPerplexity:
      result.sample = text_;
      return result;
    case TaskKind::kNiah: {
      // The sample is the outermost index, so that a limited run covers all lengths and depths.
      const std::int64_t depths = std::ssize(niah_depths_);
      const std::int64_t cell = index % (std::ssize(niah_lengths_) * depths);
      NiahOptions options = niah_;
      options.length = niah_lengths_[static_cast<std::size_t>(cell / depths)];
      options.depth = niah_depths_[static_cast<std::size_t>(cell % depths)];
      options.seed = niah_.seed + static_cast<std::uint64_t>(index);
      result.sample = make_niah(options, measure).sample;
      result.group = group_of_needle(options.length, options.depth);
      result.length = options.length;
      break;
    }
    case TaskKind::kRuler:
      result.sample = read_ruler(*records_, index);
      break;
    case TaskKind::kLongBench: {
      const LongBenchRecord record = read_longbench(*records_, index);
      result.sample = prompts_->sample(record);
      result.length = record.length;
      if (benchmark_name_.ends_with("_e")) result.group = length_bucket(record.length);
      break;
    }
  }
  if (result.sample.answers.empty()) {
    throw Error(ErrorKind::kInput, records_->where(index) + ": the record has no reference answer",
                "remove the record, or give it an answer; without one there is nothing to score");
  }
  return result;
}

std::string Task::prediction(std::string_view generated) const {
  if (kind_ == TaskKind::kLongBench) {
    return longbench_prediction(longbench_task(benchmark_name_), generated);
  }
  return std::string(generated);
}

}  // namespace sw
