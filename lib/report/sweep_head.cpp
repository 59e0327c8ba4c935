#include "report/sweep_head.hpp"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/base64.hpp"
#include "core/error.hpp"
#include "report/json_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

constexpr const char* kBegin = "begin";

template <class T>
void read_nullable(const Json& json, std::optional<T>& value) {
  if (!json.is_null()) value = json.get<T>();
}

Environment environment_from_json(const Json& json) {
  Environment e;
  json.at("version").get_to(e.version);
  json.at("git_sha").get_to(e.git_sha);
  read_nullable(json.at("git_dirty"), e.git_dirty);
  json.at("build_type").get_to(e.build_type);
  json.at("compiler").get_to(e.compiler);
  json.at("system").get_to(e.system);
  json.at("cpu").get_to(e.cpu);
  json.at("isa").get_to(e.isa);
  read_nullable(json.at("gpu"), e.gpu);
  read_nullable(json.at("driver"), e.driver);
  read_nullable(json.at("clocks"), e.clocks);
  json.at("threads").get_to(e.threads);
  json.at("backend").get_to(e.backend);
  json.at("backend_detail").get_to(e.backend_detail);
  for (const Json& library : json.at("libraries")) {
    e.libraries.emplace_back(library.at(0), library.at(1));
  }
  return e;
}

/// Counts of a head become the sizes of loops and arrays, so that absurd ones are refused.
void require_count(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (least <= value && value <= most) return;
  throw Error(ErrorKind::kInput,
              "the head of the journal has " + std::to_string(value) + " as " + name);
}

constexpr std::int64_t kMostLayers = std::int64_t{1} << 16;
constexpr std::int64_t kMostHeads = std::int64_t{1} << 16;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;
constexpr std::int64_t kMostSamples = 1'000'000;

Json environment_json(const Environment& environment) {
  Json json = to_json(environment);
  json["libraries"] = environment.libraries;  // in their order
  return json;
}

Json protocol_json(const Protocol& p) {
  return {{"phase", p.phase},
          {"methods", p.methods},
          {"densities", p.densities},
          {"block", p.block},
          {"layers", p.layers ? Json{p.layers->first, p.layers->second} : Json(nullptr)},
          {"seed", p.seed},
          {"output_error", p.output_error},
          {"attribution", p.attribution},
          {"save_selection", p.save_selection}};
}

Protocol protocol_from_json(const Json& json) {
  Protocol p;
  json.at("phase").get_to(p.phase);
  json.at("methods").get_to(p.methods);
  json.at("densities").get_to(p.densities);
  json.at("block").get_to(p.block);
  require_count("block", p.block, 1, kMostTokens);
  read_nullable(json.at("layers"), p.layers);
  json.at("seed").get_to(p.seed);
  json.at("output_error").get_to(p.output_error);
  json.at("attribution").get_to(p.attribution);
  json.at("save_selection").get_to(p.save_selection);
  return p;
}

Json input_json(const InputRecord& input) {
  Json json = to_json(input);
  json.erase("prompt_ids_sha256");
  json["tokens"] = to_base64(std::as_bytes(std::span(input.info.tokens)));  // and not their hash
  return json;
}

InputRecord input_from_json(const Json& json) {
  InputRecord input;
  TraceInfo& info = input.info;
  json.at("path").get_to(input.path);
  json.at("format").get_to(input.format);
  json.at("sha256").get_to(input.sha256);
  json.at("bytes").get_to(input.bytes);
  json.at("model").get_to(info.model);
  json.at("source").get_to(info.source);
  json.at("created_by").get_to(info.created_by);
  json.at("first_layer").get_to(info.first_layer);
  json.at("num_layers").get_to(info.num_layers);
  read_nullable(json.at("model_layers"), info.model_layers);
  json.at("num_heads").get_to(info.num_heads);
  json.at("num_kv_heads").get_to(info.num_kv_heads);
  json.at("head_dim").get_to(info.head_dim);
  json.at("prefill_tokens").get_to(info.prefill_tokens);
  json.at("total_tokens").get_to(info.total_tokens);
  require_count("first_layer", info.first_layer, 0, kMostLayers);
  require_count("num_layers", info.num_layers, 1, kMostLayers);
  require_count("num_heads", info.num_heads, 1, kMostHeads);
  require_count("total_tokens", info.total_tokens, 1, kMostTokens);
  require_count("prefill_tokens", info.prefill_tokens, 1, info.total_tokens);
  info.dtype = parse_dtype(json.at("dtype").get<std::string>());
  for (const Json& span : json.at("answer_spans")) {
    info.answer_spans.push_back({span.at(0), span.at(1)});
  }
  const auto tokens = from_base64(json.at("tokens").get_ref<const std::string&>());
  if (!tokens || tokens->size() % sizeof(std::int32_t) != 0) {
    throw Error(ErrorKind::kInput, "the journal's tokens are not whole");
  }
  info.tokens.resize(tokens->size() / sizeof(std::int32_t));
  if (!tokens->empty()) std::memcpy(info.tokens.data(), tokens->data(), tokens->size());
  return input;
}

ModelProtocol model_protocol_from_json(const Json& json) {
  ModelProtocol p;
  json.at("model").get_to(p.model);
  json.at("format").get_to(p.format);
  json.at("compute").get_to(p.compute);
  json.at("prompt").get_to(p.prompt);
  json.at("chat_template").get_to(p.chat_template);
  json.at("phase").get_to(p.phase);
  json.at("context").get_to(p.context);
  json.at("block").get_to(p.block);
  json.at("limit").get_to(p.limit);
  json.at("max_new_tokens").get_to(p.max_new_tokens);
  json.at("stride").get_to(p.stride);
  json.at("decode_tokens").get_to(p.decode_tokens);
  json.at("kl").get_to(p.kl);
  json.at("seed").get_to(p.seed);
  return p;
}

std::string backend_text(const Environment& environment) {
  return environment.backend + " " + environment.backend_detail;
}

std::string file_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

/// What all heads have.
template <class R>
Json common_head(const R& head) {
  return {{"created", head.created},
          {"command", head.command},
          {"environment", environment_json(head.environment)}};
}

template <class R>
void read_common(const Json& json, R& head) {
  json.at("created").get_to(head.created);
  json.at("command").get_to(head.command);
  head.environment = environment_from_json(json.at("environment"));
}

/// `body` with what JSON objects to as the one kind of error.
template <class F>
auto reading(F&& body) {
  try {
    return body();
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::kInput,
                std::string("the head of the journal is not that of a sweep: ") + error.what(),
                "delete the journal, or choose another -o");
  }
}

}  // namespace

Json sweep_identity(const Report& head, const std::string& program, const Shard& shard) {
  Json inputs = Json::array();
  for (const InputRecord& input : head.inputs) {
    inputs.push_back(file_name(input.path) + " " + input.sha256);
  }
  return {{"kind", "trace-sweep"},
          {"program", program},
          {"inputs", inputs},
          {"protocol", protocol_json(head.protocol)},
          {"backend", backend_text(head.environment)},
          {"shard", shard.text()}};
}

Json sweep_identity(const ModelReport& head, const std::vector<std::string>& task_specs,
                    const std::string& program, const Shard& shard) {
  Json files = Json::array();
  for (const SourceFile& file : head.inputs) {
    files.push_back(file.role + " " + file_name(file.path) + " " + file.sha256);
  }
  Json arms = Json::array();
  for (const ArmInfo& arm : head.arms) arms.push_back(arm.label);
  return {{"kind", "model-sweep"},
          {"program", program},
          {"files", files},
          {"tasks", task_specs},
          {"arms", arms},
          {"protocol", Json(to_json(head.protocol))},
          {"backend", backend_text(head.environment)},
          {"shard", shard.text()}};
}

Json begin_entry(const Report& head) {
  Json json = common_head(head);
  for (const InputRecord& input : head.inputs) json["inputs"].push_back(input_json(input));
  return {{kBegin, std::move(json)}};
}

Json begin_entry(const ModelReport& head, const std::vector<std::int64_t>& samples) {
  Json json = common_head(head);
  for (const SourceFile& file : head.inputs) {
    json["inputs"].push_back(
        {{"role", file.role}, {"path", file.path}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  for (const TaskInfo& task : head.tasks) {
    json["tasks"].push_back(
        {{"name", task.name}, {"metric", task.metric}, {"binary", task.binary}});
  }
  for (const ArmInfo& arm : head.arms) {
    json["arms"].push_back({{"label", arm.label},
                            {"method", arm.method},
                            {"name", arm.name},
                            {"density", arm.density ? Json(*arm.density) : Json(nullptr)}});
  }
  json["samples"] = samples;
  return {{kBegin, std::move(json)}};
}

bool is_begin_entry(const Json& entry) { return entry.contains(kBegin); }

Json begin_environment(const Json& begin) {
  const auto& head = begin.at(kBegin);
  const auto found = head.is_object() ? head.find("environment") : head.end();
  return found == head.end() ? Json(nullptr) : *found;
}

Report trace_head(const Json& identity, const Json& begin) {
  return reading([&] {
    const Json& json = begin.at(kBegin);
    Report head;
    read_common(json, head);
    head.protocol = protocol_from_json(identity.at("protocol"));
    for (const Json& input : json.at("inputs")) head.inputs.push_back(input_from_json(input));
    return head;
  });
}

ModelHead model_head(const Json& identity, const Json& begin) {
  return reading([&] {
    const Json& json = begin.at(kBegin);
    ModelHead head;
    read_common(json, head.report);
    head.report.protocol = model_protocol_from_json(identity.at("protocol"));
    for (const Json& file : json.at("inputs")) {
      head.report.inputs.push_back(
          {file.at("role"), file.at("path"), file.at("bytes"), file.at("sha256")});
    }
    for (const Json& task : json.at("tasks")) {
      head.report.tasks.push_back({task.at("name"), task.at("metric"), task.at("binary")});
    }
    for (const Json& arm : json.at("arms")) {
      ArmInfo info{arm.at("label"), arm.at("method"), arm.at("name"), std::nullopt};
      read_nullable(arm.at("density"), info.density);
      head.report.arms.push_back(std::move(info));
    }
    json.at("samples").get_to(head.samples);
    for (const std::int64_t samples : head.samples) {
      require_count("samples", samples, 0, kMostSamples);
    }
    return head;
  });
}

std::string sweep_kind(const Json& identity, const std::string& path) {
  const auto kind = identity.find("kind");
  if (kind != identity.end() && *kind == "trace-sweep") return "trace";
  if (kind != identity.end() && *kind == "model-sweep") return "model";
  throw Error(ErrorKind::kInput, "'" + path + "' is not the journal of a sweep",
              "sw-sweep writes them, as OUT.journal");
}

}  // namespace sw
