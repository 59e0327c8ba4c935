#include "dataset/dataset.hpp"

#include <filesystem>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "dataset/jsonl.hpp"
#include "dataset/longbench.hpp"
#include "dataset/ruler.hpp"

namespace sw {
namespace {

Sample load_text(const SampleRequest& request) { return read_text(request.path); }

Sample load_longbench(const SampleRequest& request) {
  const JsonlFile file(request.path);
  const LongBenchRecord record = read_longbench(file, request.record);
  return LongBenchPrompts(request.prompts.empty() ? find_longbench_prompts(request.path)
                                                  : request.prompts)
      .sample(record);
}

Sample load_ruler(const SampleRequest& request) {
  return read_ruler(JsonlFile(request.path), request.record);
}

Sample load_niah(const SampleRequest& request) {
  return make_niah(request.niah, request.measure).sample;
}

constexpr DatasetKind kKinds[] = {
    {"text", "a UTF-8 text file", load_text},
    {"longbench", "a record of a LongBench v1 file", load_longbench},
    {"ruler", "a record of a RULER file", load_ruler},
    {"niah", "needle in a haystack, generated", load_niah},
};

}  // namespace

std::span<const DatasetKind> dataset_kinds() { return kKinds; }

const DatasetKind& dataset_kind(std::string_view name) {
  std::vector<std::string> known;
  for (const DatasetKind& kind : kKinds) {
    if (kind.name == name) return kind;
    known.emplace_back(kind.name);
  }
  throw Error(ErrorKind::kUsage, "unknown kind of dataset '" + std::string(name) + "'",
              suggestion(name, known));
}

Sample read_text(const std::string& path) {
  Sample sample;
  sample.prompt = read_file(path);
  if (sample.prompt.empty()) throw Error(ErrorKind::kInput, "'" + path + "' is empty");
  if (const auto at = find_invalid_utf8(sample.prompt)) {
    throw Error(ErrorKind::kInput,
                "'" + path + "' is not UTF-8: invalid byte at offset " + std::to_string(*at),
                "convert it, for example with iconv -t UTF-8");
  }
  sample.dataset = "text";
  sample.id = std::filesystem::path(path).filename().string();
  sample.truncation = Truncation::kTail;
  sample.chat = false;
  return sample;
}

}  // namespace sw
