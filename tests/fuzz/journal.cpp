#include "eval/journal.hpp"

#include <nlohmann/json.hpp>
#include <span>

#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/model_summary.hpp"
#include "fuzz.hpp"

namespace {

/// The lines with the checksums that they should have, so that what stands in them is read.
std::string with_checksums(std::string_view text) {
  std::string out;
  for (const std::string& line : sw::split(text, '\n')) {
    if (out.empty()) out = "sketchwalk-journal 2 ";
    out += sw::sha256(std::as_bytes(std::span(line))).substr(0, 16) + " " + line + "\n";
  }
  return out;
}

/// What the report of a model does with entries.
void summarize(const std::vector<sw::RunEntry>& entries) {
  std::vector<sw::TaskInfo> tasks;
  std::vector<sw::ArmInfo> arms;
  for (const sw::RunEntry& entry : entries) {
    const auto same_task = [&](const auto& t) { return t.name == entry.task; };
    const auto same_arm = [&](const auto& a) { return a.label == entry.arm; };
    if (std::ranges::none_of(tasks, same_task)) {
      tasks.push_back({entry.task, entry.reply ? "qa_f1" : "perplexity", false});
    }
    if (std::ranges::none_of(arms, same_arm)) arms.push_back({entry.arm, "dense", "dense", {}});
  }
  if (!entries.empty()) sw::summarize_model(entries, tasks, arms);
}

}  // namespace

/// A journal: the file as it is when it begins with 's', else its lines with checksums added. Its
/// entries as those of a model run, and back.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  static const nlohmann::json identity = {{"kind", "model"}, {"arms", {"dense", "sparse"}}};
  const std::string_view text = sw::fuzz::text_of(data, size);
  const std::string path =
      folder.write("run.journal", text.starts_with('s') ? std::string(text) : with_checksums(text));
  sw::fuzz::parse([&] {
    sw::Journal journal(path, identity);
    std::vector<sw::RunEntry> entries;
    for (const nlohmann::json& json : journal.entries()) {
      sw::fuzz::parse([&] {
        sw::RunEntry entry = sw::run_entry_from_json(json);
        const nlohmann::json again = sw::to_json(entry);
        sw::fuzz::require(sw::to_json(sw::run_entry_from_json(again)) == again);
        entries.push_back(std::move(entry));
      });
    }
    journal.append({{"event", "report"}});
    summarize(entries);
  });
  return 0;
}
