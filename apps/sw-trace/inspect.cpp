#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "core/text.hpp"
#include "trace/trace.hpp"

namespace sw {
namespace {

struct InspectOptions {
  std::vector<std::string> files;
  bool json = false;
};

nlohmann::ordered_json describe(const TraceReader& reader) {
  const TraceInfo& info = reader.info();
  nlohmann::ordered_json j;
  j["file"] = reader.path();
  j["container"] = trace_format_name(reader.format());
  j["file_bytes"] = std::filesystem::file_size(reader.path());
  j["model"] = info.model;
  j["first_layer"] = info.first_layer;
  j["num_layers"] = info.num_layers;
  if (info.model_layers) j["model_layers"] = *info.model_layers;
  j["num_heads"] = info.num_heads;
  j["num_kv_heads"] = info.num_kv_heads;
  j["head_dim"] = info.head_dim;
  j["prefill_tokens"] = info.prefill_tokens;
  j["total_tokens"] = info.total_tokens;
  j["dtype"] = dtype_name(info.dtype);
  j["rope_applied"] = info.rope_applied;
  j["source"] = info.source;
  j["created_by"] = info.created_by;
  j["has_tokens"] = !info.tokens.empty();
  j["answer_span"] = nlohmann::json::array();
  for (const TokenSpan& span : info.answer_spans)
    j["answer_span"].push_back({span.begin, span.end});
  j["text_bytes"] = info.text.size();
  if (info.planted) {
    j["planted_block"] = info.planted->block;
    j["planted_width"] = info.planted->width;
  }
  return j;
}

/// The beginning of a text on one line.
std::string excerpt(const std::string& text) {
  constexpr std::size_t kLength = 60;
  std::string line = text.substr(0, kLength);
  // Not in the middle of a UTF-8 character.
  if (text.size() > kLength) {
    while (!line.empty() && (static_cast<unsigned char>(text[line.size()]) & 0xc0) == 0x80) {
      line.pop_back();
    }
  }
  std::ranges::replace_if(
      line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return '"' + line + (text.size() > kLength ? "\" ..." : "\"");
}

void print_table(const TraceReader& reader) {
  const TraceInfo& info = reader.info();
  const auto line = [](const std::string& name, const std::string& value) {
    std::cout << "  " << std::left << std::setw(12) << name << value << "\n";
  };
  const auto number = [](std::int64_t value) { return std::to_string(value); };
  std::cout << reader.path() << "\n";
  line("container", std::string(trace_format_name(reader.format())) + ", " +
                        format_bytes(std::filesystem::file_size(reader.path())));
  line("model", info.model);
  line("layers", number(info.num_layers) + " (" + number(info.first_layer) + " .. " +
                     number(info.last_layer()) +
                     (info.model_layers ? " of " + number(*info.model_layers) : "") + ")");
  line("heads", number(info.num_heads) + " query, " + number(info.num_kv_heads) + " KV, dim " +
                    number(info.head_dim));
  line("tokens", number(info.prefill_tokens) + " prefill, " +
                     number(info.total_tokens - info.prefill_tokens) + " decode" +
                     (info.tokens.empty() ? "" : ", ids stored"));
  line("dtype", std::string(dtype_name(info.dtype)));
  for (const TokenSpan& span : info.answer_spans) {
    line("answer", "tokens " + number(span.begin) + " .. " + number(span.end - 1));
  }
  if (!info.text.empty()) line("text", format_bytes(info.text.size()) + ": " + excerpt(info.text));
  if (info.planted) {
    line("planted", number(info.planted->width) + " key blocks for each block of " +
                        number(info.planted->block) + " queries");
  }
  line("source", info.source);
  line("created by", info.created_by);
}

int run_inspect(const InspectOptions& options) {
  auto all = nlohmann::ordered_json::array();
  for (const std::string& file : options.files) {
    const TraceReader reader(file);
    if (options.json) {
      all.push_back(describe(reader));
    } else {
      print_table(reader);
    }
  }
  if (options.json) {
    std::cout << all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  }
  return 0;
}

}  // namespace

void setup_inspect(Program& program) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App& command = program.add_command(
      "inspect", "Show what traces hold",
      {"sw-trace inspect trace.h5", "sw-trace inspect --json a.h5 b.safetensors"},
      [options](const CommonOptions&) { return run_inspect(*options); });
  command.add_option("file", options->files, "Traces")->required();
  command.add_flag("--json", options->json, "Print a JSON list instead of a table");
}

}  // namespace sw
