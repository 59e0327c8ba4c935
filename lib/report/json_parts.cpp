#include "report/json_parts.hpp"

#include <span>

#include "core/sha256.hpp"

namespace sw {

using Json = nlohmann::ordered_json;

Json to_json(const Interval& interval) {
  return {
      {"mean", interval.mean}, {"low", nullable(interval.low)}, {"high", nullable(interval.high)}};
}

Json to_json(const Environment& environment) {
  Json libraries = Json::object();
  for (const auto& [name, version] : environment.libraries) libraries[name] = version;
  return {{"version", environment.version},
          {"git_sha", environment.git_sha},
          {"git_dirty", nullable(environment.git_dirty)},
          {"build_type", environment.build_type},
          {"compiler", environment.compiler},
          {"system", environment.system},
          {"cpu", environment.cpu},
          {"isa", environment.isa},
          {"gpu", nullable(environment.gpu)},
          {"driver", nullable(environment.driver)},
          {"clocks", nullable(environment.clocks)},
          {"threads", environment.threads},
          {"backend", environment.backend},
          {"backend_detail", environment.backend_detail},
          {"libraries", libraries}};
}

Json to_json(const DensitySummary& density) {
  Json parts;
  for (std::size_t part = 0; part < kNumParts; ++part) {
    parts[part_name(static_cast<Part>(part))] = density.parts[part];
  }
  return {{"sparse", density.sparse},
          {"all", density.all},
          {"decode", nullable(density.decode)},
          {"parts", parts}};
}

Json to_json(const InputRecord& input) {
  const TraceInfo& info = input.info;
  Json spans = Json::array();
  for (const TokenSpan& span : info.answer_spans) {
    spans.push_back(Json::array({span.begin, span.end}));
  }
  Json ids_hash = nullptr;
  if (!info.tokens.empty()) ids_hash = sha256(std::as_bytes(std::span(info.tokens)));
  return {{"path", input.path},
          {"format", input.format},
          {"bytes", input.bytes},
          {"sha256", input.sha256},
          {"model", info.model},
          {"source", info.source},
          {"created_by", info.created_by},
          {"first_layer", info.first_layer},
          {"num_layers", info.num_layers},
          {"model_layers", nullable(info.model_layers)},
          {"num_heads", info.num_heads},
          {"num_kv_heads", info.num_kv_heads},
          {"head_dim", info.head_dim},
          {"prefill_tokens", info.prefill_tokens},
          {"total_tokens", info.total_tokens},
          {"dtype", dtype_name(info.dtype)},
          {"answer_spans", spans},
          {"prompt_ids_sha256", ids_hash}};
}

}  // namespace sw
