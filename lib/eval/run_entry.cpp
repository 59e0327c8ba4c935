#include "eval/run_entry.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kHex = "0123456789abcdef";

/// Bytes in hexadecimal: exact, and a quarter of the decimal form of floats.
template <class T>
std::string to_hex(const std::vector<T>& values) {
  static_assert(std::endian::native == std::endian::little);
  std::string text;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  text.reserve(values.size() * sizeof(T) * 2);
  for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) {
    text += kHex[bytes[i] >> 4];
    text += kHex[bytes[i] & 15];
  }
  return text;
}

template <class T>
std::vector<T> from_hex(const std::string& text) {
  if (text.size() % (2 * sizeof(T)) != 0) {
    throw Error(ErrorKind::kInput, "the journal holds an array of a broken length");
  }
  std::vector<T> values(text.size() / (2 * sizeof(T)));
  auto* bytes = reinterpret_cast<unsigned char*>(values.data());
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const std::size_t high = kHex.find(text[i]);
    const std::size_t low = kHex.find(text[i + 1]);
    if (high == std::string_view::npos || low == std::string_view::npos) {
      throw Error(ErrorKind::kInput, "the journal holds an array that is not hexadecimal");
    }
    bytes[i / 2] = static_cast<unsigned char>(high << 4 | low);
  }
  return values;
}

Json usage_json(const LayerUsage& usage) {
  const auto& kept = usage.pairs.kept;
  return {usage.sparse,         usage.pairs.causal,     kept[0], kept[1], kept[2], kept[3],
          usage.kv_tokens_read, usage.kv_tokens_context};
}

LayerUsage usage_from_json(const Json& json) {
  LayerUsage usage;
  usage.sparse = json.at(0).get<bool>();
  json.at(1).get_to(usage.pairs.causal);
  for (std::size_t i = 0; i < kNumParts; ++i) json.at(2 + i).get_to(usage.pairs.kept[i]);
  json.at(6).get_to(usage.kv_tokens_read);
  json.at(7).get_to(usage.kv_tokens_context);
  return usage;
}

/// What summaries and reports rely on.
void check(const RunEntry& entry) {
  const auto require = [&](bool holds, const char* what) {
    if (holds) return;
    throw Error(ErrorKind::kInput,
                "a journal entry of '" + entry.task + "' contradicts itself: " + what,
                "delete the journal, or choose another -o");
  };
  require(entry.reply.has_value() != entry.window.has_value(),
          "it is not of one reply or one window");
  // Sums over all entries stay inside 64 bits.
  const auto counts = [](std::int64_t n) { return 0 <= n && n <= std::int64_t{1} << 50; };
  for (const LayerUsage& layer : entry.usage) {
    require(counts(layer.pairs.causal) && std::ranges::all_of(layer.pairs.kept, counts) &&
                counts(layer.kv_tokens_read) && counts(layer.kv_tokens_context),
            "a count is out of bounds");
  }
  if (!entry.window) return;
  const WindowResult& window = *entry.window;
  require(0 <= window.begin && window.begin <= window.scored_from &&
              window.scored_from <= window.end &&
              std::ssize(window.nll) == window.end - window.scored_from,
          "its likelihoods are not those of its window");
  const std::size_t compared = window.kl.size();
  require((compared == 0 || compared == window.nll.size()) && window.delta_p.size() == compared &&
              window.same_top.size() == compared &&
              (window.hidden_error.empty() || window.hidden_error.size() == entry.usage.size()),
          "its comparisons are not those of its tokens and layers");
}

}  // namespace

Json to_json(const RunEntry& entry) {
  if (!entry.failure.empty()) {
    return {{"task", entry.task},
            {"sample", entry.sample},
            {"arm", entry.arm},
            {"failure", entry.failure}};
  }
  Json json = {{"task", entry.task},
               {"sample", entry.sample},
               {"arm", entry.arm},
               {"id", entry.id},
               {"group", entry.group},
               {"prompt",
                {{"ids_sha256", entry.prompt.ids_sha256},
                 {"tokens", entry.prompt.tokens},
                 {"untruncated", entry.prompt.untruncated},
                 {"bos_count", entry.prompt.bos_count},
                 {"stop_set", entry.prompt.stop_set},
                 {"chat_template", entry.prompt.chat_template}}},
               {"timing",
                {{"prefill", entry.prefill_seconds},
                 {"decode", entry.decode_seconds},
                 {"decode_steps", entry.decode_steps},
                 {"prefill_stages", entry.prefill_stages.seconds},
                 {"decode_stages", entry.decode_stages.seconds}}}};
  Json usage = Json::array();
  for (const LayerUsage& layer : entry.usage) usage.push_back(usage_json(layer));
  json["usage"] = std::move(usage);
  if (entry.reply) {
    const Reply& reply = *entry.reply;
    json["reply"] = {{"ids", reply.ids},         {"text", reply.text},
                     {"score", reply.score},     {"answers", reply.answers},
                     {"classes", reply.classes}, {"length", reply.length}};
  }
  if (entry.window) {
    const WindowResult& window = *entry.window;
    json["window"] = {{"begin", window.begin},
                      {"end", window.end},
                      {"scored_from", window.scored_from},
                      {"nll", to_hex(window.nll)},
                      {"kl", to_hex(window.kl)},
                      {"delta_p", to_hex(window.delta_p)},
                      {"same_top", to_hex(window.same_top)},
                      {"hidden_error", window.hidden_error}};
  }
  return json;
}

RunEntry run_entry_from_json(const Json& json) {
  try {
    RunEntry entry;
    json.at("task").get_to(entry.task);
    json.at("sample").get_to(entry.sample);
    json.at("arm").get_to(entry.arm);
    if (const auto failure = json.find("failure"); failure != json.end()) {
      failure->get_to(entry.failure);
      return entry;
    }
    json.at("id").get_to(entry.id);
    json.at("group").get_to(entry.group);
    const Json& prompt = json.at("prompt");
    prompt.at("ids_sha256").get_to(entry.prompt.ids_sha256);
    prompt.at("tokens").get_to(entry.prompt.tokens);
    prompt.at("untruncated").get_to(entry.prompt.untruncated);
    prompt.at("bos_count").get_to(entry.prompt.bos_count);
    prompt.at("stop_set").get_to(entry.prompt.stop_set);
    prompt.at("chat_template").get_to(entry.prompt.chat_template);
    const Json& timing = json.at("timing");
    timing.at("prefill").get_to(entry.prefill_seconds);
    timing.at("decode").get_to(entry.decode_seconds);
    timing.at("decode_steps").get_to(entry.decode_steps);
    timing.at("prefill_stages").get_to(entry.prefill_stages.seconds);
    timing.at("decode_stages").get_to(entry.decode_stages.seconds);
    for (const Json& layer : json.at("usage")) entry.usage.push_back(usage_from_json(layer));
    if (const auto it = json.find("reply"); it != json.end()) {
      Reply reply;
      it->at("ids").get_to(reply.ids);
      it->at("text").get_to(reply.text);
      it->at("score").get_to(reply.score);
      it->at("answers").get_to(reply.answers);
      it->at("classes").get_to(reply.classes);
      it->at("length").get_to(reply.length);
      entry.reply = std::move(reply);
    }
    if (const auto it = json.find("window"); it != json.end()) {
      WindowResult window;
      it->at("begin").get_to(window.begin);
      it->at("end").get_to(window.end);
      it->at("scored_from").get_to(window.scored_from);
      window.nll = from_hex<float>(it->at("nll").get<std::string>());
      window.kl = from_hex<float>(it->at("kl").get<std::string>());
      window.delta_p = from_hex<float>(it->at("delta_p").get<std::string>());
      window.same_top = from_hex<std::uint8_t>(it->at("same_top").get<std::string>());
      it->at("hidden_error").get_to(window.hidden_error);
      entry.window = std::move(window);
    }
    check(entry);
    return entry;
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::kInput,
                std::string("a journal entry is not one of a model run: ") + error.what(),
                "delete the journal, or choose another -o");
  }
}

}  // namespace sw
