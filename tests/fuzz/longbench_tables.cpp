#include "dataset/longbench.hpp"
#include "fuzz.hpp"

/// The prompts and the reply lengths of LongBench (dataset2prompt.json, dataset2maxlen.json).
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("table.json", sw::fuzz::text_of(data, size));
  sw::LongBenchRecord record;
  record.dataset = "trec_e";
  record.context = "context";
  record.input = "{input}";
  sw::fuzz::parse([&] { sw::LongBenchPrompts(path).sample(record); });
  sw::fuzz::parse([&] { sw::LongBenchLengths(path).max_new_tokens(record.dataset); });
  return 0;
}
