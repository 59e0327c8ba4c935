#include "eval/layer_entry.hpp"

#include <nlohmann/json.hpp>

#include "core/json.hpp"
#include "fuzz.hpp"

/// An entry of the journal of a sweep of traces, and back. Arrays are as large as they may be.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  sw::fuzz::parse([&] {
    const auto json = sw::parse_json_object(sw::fuzz::text_of(data, size), "'entry'", 64);
    if (!sw::is_layer_entry(json)) return;
    constexpr sw::LayerShape kShape{64, 4096};
    const nlohmann::json again = sw::to_json(sw::layer_entry_from_json(json, kShape));
    sw::fuzz::require(sw::to_json(sw::layer_entry_from_json(again, kShape)) == again);
  });
  return 0;
}
