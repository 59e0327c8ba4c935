#include "report/json_parts.hpp"

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

}  // namespace sw
