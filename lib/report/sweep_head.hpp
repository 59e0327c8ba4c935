#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "eval/sweep.hpp"
#include "report/model_report.hpp"
#include "report/report.hpp"

/// What stands in a sweep's journal beside its units: what the sweep is, so that only the same one
/// goes on with it, and the head of its report. A head is a report without cells and entries.
namespace sw {

/// The first line of a journal: everything that decides the results. `program` is the SHA-256 of
/// the program. Journals of the shards of one sweep differ in "shard" only.
nlohmann::json sweep_identity(const Report& head, const std::string& program, const Shard& shard);
/// `task_specs` are the canonical specs of the tasks.
nlohmann::json sweep_identity(const ModelReport& head, const std::vector<std::string>& task_specs,
                              const std::string& program, const Shard& shard);

/// The entry that comes first: the head itself, with when and where the sweep began.
nlohmann::json begin_entry(const Report& head);
/// `samples` are the samples or windows of each task.
nlohmann::json begin_entry(const ModelReport& head, const std::vector<std::int64_t>& samples);
bool is_begin_entry(const nlohmann::json& entry);
/// Where the sweep, or a shard, began: an object to compare, null when there is none.
nlohmann::json begin_environment(const nlohmann::json& begin);

/// The heads, from both. Throw Error(kInput) when a field is missing or has another type.
Report trace_head(const nlohmann::json& identity, const nlohmann::json& begin);
struct ModelHead {
  ModelReport report;
  std::vector<std::int64_t> samples;  ///< of each task
};
ModelHead model_head(const nlohmann::json& identity, const nlohmann::json& begin);

/// "trace" or "model". Throws Error(kInput) for the journal of anything but a sweep; `path` is what
/// the message calls it.
std::string sweep_kind(const nlohmann::json& identity, const std::string& path);

}  // namespace sw
