#include "dataset/longbench.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

// Replaces {name} as Python's str.format does; "{{" and "}}" stand for single braces. The offset
// behind the value of {context} goes to `context_end`.
std::string fill_in(std::string_view text, const LongBenchRecord& record, const std::string& where,
                    std::size_t& context_end) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      ++i;
      continue;
    }
    const std::size_t end = text.find('}', i);
    const std::string_view name =
        c == '{' && end != std::string_view::npos ? text.substr(i + 1, end - i - 1) : "";
    if (name == "context") {
      out += record.context;
      context_end = out.size();
    } else if (name == "input") {
      out += record.input;
    } else {
      throw Error(
          ErrorKind::kInput,
          where + ": '" + std::string(text.substr(i, 20)) + "...' is neither {context} nor {input}",
          "take the file dataset2prompt.json of LongBench v1");
    }
    i = end;
  }
  return out;
}

[[noreturn]] void fail_table(const std::string& path, const char* what, const std::string& reason) {
  throw Error(
      ErrorKind::kInput, path + ": not a JSON object of " + what + " (" + reason + ")",
      "take the file " + std::filesystem::path(path).filename().string() + " of LongBench v1");
}

/// A file of the benchmark's configuration, an object of `what`.
nlohmann::json read_table(const std::string& path, const char* what) {
  constexpr int kMaxDepth = 4;
  const std::string text = read_file(path, std::uint64_t{1} << 24);
  try {
    return parse_json_object(text, "it", kMaxDepth);
  } catch (const Error& error) {
    fail_table(path, what, error.what());
  }
}

}  // namespace

LongBenchRecord read_longbench(const JsonlFile& file, std::int64_t index) {
  const nlohmann::json json = file.record(index);
  const std::string where = file.where(index);
  LongBenchRecord record;
  record.input = text_field(json, "input", where);
  record.context = text_field(json, "context", where);
  record.answers = texts_field(json, "answers", where);
  record.dataset = text_field(json, "dataset", where);
  record.id = text_field(json, "_id", where, std::to_string(index));
  record.language = text_field(json, "language", where, "en");
  record.all_classes = texts_field(json, "all_classes", where, {});
  record.length = int_field(json, "length", where, 0);
  return record;
}

std::string_view longbench_task(std::string_view dataset) {
  if (dataset.ends_with("_e")) dataset.remove_suffix(2);
  return dataset;
}

bool longbench_uses_chat(std::string_view task) {
  static constexpr std::string_view kPlain[] = {"trec", "triviaqa", "samsum",
                                                "lsht", "lcc",      "repobench-p"};
  return std::find(std::begin(kPlain), std::end(kPlain), task) == std::end(kPlain);
}

LongBenchPrompts::LongBenchPrompts(const std::string& path) : path_(path) {
  constexpr const char* kWhat = "prompt strings";
  const nlohmann::json table = read_table(path, kWhat);
  for (const auto& [task, prompt] : table.items()) {
    if (!prompt.is_string()) fail_table(path, kWhat, "'" + task + "' is " + prompt.type_name());
    templates_[task] = prompt.get<std::string>();
  }
}

Sample LongBenchPrompts::sample(const LongBenchRecord& record) const {
  const std::string_view task = longbench_task(record.dataset);
  const auto it = templates_.find(task);
  if (it == templates_.end()) {
    std::vector<std::string> known;
    for (const auto& entry : templates_) known.push_back(entry.first);
    throw Error(ErrorKind::kInput,
                path_ + " has no prompt for the task '" + std::string(task) + "'",
                suggestion(task, known));
  }
  Sample sample;
  sample.dataset = record.dataset;
  sample.id = record.id;
  std::size_t context_end = 0;
  sample.prompt = fill_in(it->second, record, path_ + ", task " + it->first, context_end);
  sample.question = sample.prompt.substr(context_end);
  sample.answers = record.answers;
  sample.classes = record.all_classes;
  sample.chat = longbench_uses_chat(task);
  return sample;
}

LongBenchLengths::LongBenchLengths(const std::string& path) : path_(path) {
  constexpr const char* kWhat = "lengths";
  const nlohmann::json table = read_table(path, kWhat);
  for (const auto& [task, length] : table.items()) {
    if (!length.is_number_integer() || length.get<std::int64_t>() < 1) {
      fail_table(path, kWhat, "'" + task + "' has " + length.dump());
    }
    lengths_[task] = length.get<std::int64_t>();
  }
}

std::int64_t LongBenchLengths::max_new_tokens(std::string_view task) const {
  const std::string_view name = longbench_task(task);
  const auto it = lengths_.find(name);
  if (it != lengths_.end()) return it->second;
  std::vector<std::string> known;
  for (const auto& entry : lengths_) known.push_back(entry.first);
  throw Error(ErrorKind::kInput, path_ + " has no length for the task '" + std::string(name) + "'",
              suggestion(name, known));
}

std::string find_longbench_prompts(const std::string& records_path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::absolute(records_path).parent_path();
  for (const fs::path& candidate :
       {folder, folder.parent_path() / "config", folder.parent_path() / "longbench_config"}) {
    const fs::path path = candidate / "dataset2prompt.json";
    if (fs::exists(path)) return path.string();
  }
  throw Error(ErrorKind::kUsage,
              "no dataset2prompt.json near '" + records_path + "', which LongBench prompts need",
              "give LongBench's own file with --prompts PATH/dataset2prompt.json");
}

}  // namespace sw
