#pragma once

#include <nlohmann/json.hpp>
#include <optional>

#include "eval/record.hpp"
#include "eval/statistics.hpp"
#include "eval/summary.hpp"
#include "report/environment.hpp"

/// The parts that the JSON forms of all reports share (results/schema.json, $defs).
namespace sw {

/// The value, or null.
template <class T>
nlohmann::ordered_json nullable(const std::optional<T>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json to_json(const Interval& interval);
nlohmann::ordered_json to_json(const Environment& environment);
nlohmann::ordered_json to_json(const DensitySummary& density);
nlohmann::ordered_json to_json(const InputRecord& input);

}  // namespace sw
