#include "dataset/jsonl.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dataset/longbench.hpp"
#include "dataset/ruler.hpp"
#include "dataset/scorers.hpp"
#include "fuzz.hpp"

/// JSON lines as LongBench and RULER publish them, and as predictions are written. The first byte
/// chooses the scorer of the predictions.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  static const std::string prompts = folder.write(
      "dataset2prompt.json", R"({"trec": "{{{context}}} {input}", "qasper": "{input}{context}"})");
  static const sw::LongBenchPrompts longbench(prompts);
  static const std::vector<std::string> tasks = {
      "qasper", "trec",          "gov_report", "lcc",
      "samsum", "passage_count", "triviaqa",   "passage_retrieval_en"};
  if (size == 0) return 0;
  const std::string& task = tasks[data[0] % tasks.size()];
  const std::string path = folder.write("records.jsonl", sw::fuzz::text_of(data + 1, size - 1));
  sw::fuzz::parse([&] {
    const sw::JsonlFile file(path);
    for (std::int64_t i = 0; i < std::min<std::int64_t>(file.size(), 8); ++i) {
      sw::fuzz::parse([&] { longbench.sample(sw::read_longbench(file, i)); });
      sw::fuzz::parse([&] { sw::read_ruler(file, i); });
      sw::fuzz::parse([&] {
        const nlohmann::json record = file.record(i);
        const std::string where = file.where(i);
        const std::string text =
            sw::longbench_prediction(task, sw::text_field(record, "pred", where));
        const auto answers = sw::texts_field(record, "answers", where);
        const auto classes = sw::texts_field(record, "all_classes", where, {});
        sw::length_bucket(sw::int_field(record, "length", where, -1));
        const double score = sw::longbench_scorer(task).score(text, answers, classes);
        sw::fuzz::require(score >= 0.0 && score <= 1.0);
      });
    }
  });
  return 0;
}
