#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "eval/arm.hpp"

/// What one arm did with one sample, as it stands in the journal: everything that a report says
/// about it is computed from these entries alone.
namespace sw {

/// What two arms must have in common to be compared (metrics.md, protocol guard).
struct PromptIdentity {
  std::string ids_sha256;  ///< of the prompt's ids, int32 little-endian
  std::int64_t tokens = 0;
  std::int64_t untruncated = 0;  ///< tokens before truncation
  std::int64_t bos_count = 0;    ///< BOS tokens among the ids
  std::string stop_set;          ///< ids that end a reply, ascending, separated by blanks
  std::string chat_template;     ///< name, or "none"

  bool operator==(const PromptIdentity&) const = default;
};

/// A generated reply and its score.
struct Reply {
  std::vector<std::int32_t> ids;  ///< without the token that ended it
  std::string text;               ///< what is scored, UTF-8
  double score = 0.0;             ///< in [0, 1]
  std::vector<std::string> answers;
  std::vector<std::string> classes;
  std::int64_t length = 0;  ///< of the record, as the benchmark counts it
};

/// Likelihoods of one window of a text. Arrays are parallel: one value a scored token.
struct WindowResult {
  std::int64_t begin = 0;        ///< first token of the window in the text
  std::int64_t end = 0;          ///< one past the last
  std::int64_t scored_from = 0;  ///< first token that is scored
  std::vector<float> nll;        ///< -ln p(token)
  // Against the dense run of the same ids; empty for the dense arm and without --kl.
  std::vector<float> kl;               ///< KL(dense || arm) in nats
  std::vector<float> delta_p;          ///< p_arm(token) - p_dense(token)
  std::vector<std::uint8_t> same_top;  ///< whether the most likely token is the same
  std::vector<double> hidden_error;    ///< a layer: ||h_dense - h||_F / ||h_dense||_F
};

struct RunEntry {
  std::string task;         ///< Task::name()
  std::int64_t sample = 0;  ///< index of the sample or window
  std::string arm;          ///< Arm::label()
  std::string failure;      ///< why it could not be run; all below is empty then. "": it was
  std::string id;           ///< the record's own id
  std::string group;        ///< TaskSample::group
  PromptIdentity prompt;
  std::optional<Reply> reply;
  std::optional<WindowResult> window;
  std::vector<LayerUsage> usage;  ///< a layer
  // Seconds; timings are the only fields that differ between two runs of the same thing.
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
  std::int64_t decode_steps = 0;
  StageTimes prefill_stages;
  StageTimes decode_stages;
};

nlohmann::json to_json(const RunEntry& entry);
/// Throws Error(kInput) when a field is missing or has another type, and when the entry contradicts
/// itself: it is of one reply or one window, whose arrays have the sizes that they say.
RunEntry run_entry_from_json(const nlohmann::json& json);

}  // namespace sw
