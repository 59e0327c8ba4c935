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

/// The largest arrays that the cells of one input have. What an entry declares is checked against
/// it before anything is allocated, because a few bytes of text may stand for many equal values.
struct LayerShape {
  std::int64_t heads = 0;    ///< query heads, and so row sets at most
  std::int64_t columns = 0;  ///< query blocks of the prefill or decode steps, whichever are more

  static LayerShape of(const TraceInfo& info, std::int64_t block);
};

nlohmann::json to_json(const LayerEntry& entry);

/// Whether an entry is one of a layer; of which (input, layer), and the seconds that it took,
/// without decoding the rest. Throw Error(kInput) as below.
bool is_layer_entry(const nlohmann::json& json);
std::pair<std::size_t, std::int64_t> layer_entry_unit(const nlohmann::json& json);
double layer_entry_seconds(const nlohmann::json& json);

/// Throws Error(kInput) when a field is missing, has another type, or contradicts another one, when
/// an array is larger than `shape`, and when all arrays together take more than 1 GiB.
LayerEntry layer_entry_from_json(const nlohmann::json& json, const LayerShape& shape);

}  // namespace sw
