#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <utility>

#include "eval/evaluate.hpp"

/// A layer's part of the cells of one input as an entry of a journal: exact, with arrays as base64
/// of little-endian values, or as one number where all values are equal.
namespace sw {

/// One unit of a sweep of traces.
struct LayerEntry {
  std::size_t input = 0;
  LayerPart part;
};

nlohmann::json to_json(const LayerEntry& entry);

/// Whether an entry is one of a layer; of which (input, layer), and the seconds that it took,
/// without decoding the rest. Throw Error(kInput) as below.
bool is_layer_entry(const nlohmann::json& json);
std::pair<std::size_t, std::int64_t> layer_entry_unit(const nlohmann::json& json);
double layer_entry_seconds(const nlohmann::json& json);

/// Throws Error(kInput) when a field is missing, has another type, or contradicts another one.
LayerEntry layer_entry_from_json(const nlohmann::json& json);

}  // namespace sw
