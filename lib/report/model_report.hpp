#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "eval/model_summary.hpp"
#include "eval/run_entry.hpp"
#include "report/environment.hpp"
#include "report/files.hpp"

/// The report of a model evaluation as a value. JSON, HDF5 file, table and predictions are pure
/// functions of it, and all but its head comes from the journal. `summary` is that of the report's
/// own entries, tasks and arms: it is computed once for all of them.
namespace sw {

/// A file that the results depend on.
struct SourceFile {
  std::string role;  ///< "model", "task"
  std::string path;
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct ModelProtocol {
  std::string model;    ///< name
  std::string format;   ///< "GGUF" or "Hugging Face"
  std::string compute;  ///< dtype of products and KV cache
  std::string prompt;   ///< "longbench" or "release"
  std::string chat_template;
  std::string phase;  ///< "prefill", "decode" or "both"
  std::int64_t context = 0;
  std::int64_t block = 0;
  std::int64_t limit = 0;           ///< 0: all samples
  std::int64_t max_new_tokens = 0;  ///< 0: as each task says
  std::int64_t stride = 0;          ///< of windows, in tokens
  std::int64_t decode_tokens = 0;
  bool kl = false;
  std::uint64_t seed = 0;
};

/// As reports hold it (results/schema.json, $defs model_protocol); it decides all results, together
/// with the files, tasks and arms.
nlohmann::ordered_json to_json(const ModelProtocol& protocol);

struct ModelReport {
  std::string created;
  double seconds = 0.0;  ///< spent on the entries, all runs together
  std::vector<std::string> command;
  Environment environment;
  std::vector<SourceFile> inputs;
  ModelProtocol protocol;
  std::vector<TaskInfo> tasks;
  std::vector<ArmInfo> arms;
  std::vector<RunEntry> entries;
};

/// results/schema.json, $defs model_report.
std::string to_json_text(const ModelReport& report, const ModelSummary& summary);
/// For a terminal: a row a task and arm, and the arms over all tasks.
std::string report_table(const ModelReport& report, const ModelSummary& summary);
/// Replies of one arm to one task, one JSON object a line with pred, answers, all_classes and
/// length, as LongBench's eval.py reads them.
std::string predictions_jsonl(const ModelReport& report, std::string_view task,
                              std::string_view arm);
/// Writes JSON and HDF5 aside and renames them once both are complete. Throws Error(kOutput).
void write_report(const ModelReport& report, const ModelSummary& summary, const ReportPaths& paths,
                  bool force);

}  // namespace sw
