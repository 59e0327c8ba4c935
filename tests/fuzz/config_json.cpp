#include <nlohmann/json.hpp>

#include "core/json.hpp"
#include "fuzz.hpp"
#include "model/config.hpp"

/// The fields of a config.json.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  sw::fuzz::parse([&] {
    const sw::JsonFields fields(
        sw::parse_json_object(sw::fuzz::text_of(data, size), "'config.json'", 16), "'config.json'");
    const sw::ModelConfig config = sw::read_config(fields);
    sw::fuzz::require(config.heads % config.kv_heads == 0 && config.q_rows() > 0);
  });
  return 0;
}
