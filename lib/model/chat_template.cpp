#include "model/chat_template.hpp"

#include <algorithm>
#include <iterator>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

struct Family {
  std::string_view name;
  std::string_view default_system;  ///< put in front when the conversation begins otherwise
};

constexpr std::string_view kLlama3 = "llama3";

constexpr Family kFamilies[] = {
    {"chatml", ""},
    {"smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {"qwen2", "You are a helpful assistant."},
    {"qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {kLlama3, ""},
};

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

/// Strips white space at both ends as Jinja's trim does: that of ASCII with 0x1c..0x1f, and that of
/// Unicode.
std::string_view trim(std::string_view text) {
  static constexpr std::string_view kSpaces[] = {
      " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",
      "\x1e",   "\x1f",   "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002",
      "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
      "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
  for (bool changed = true; changed;) {
    changed = false;
    for (const std::string_view space : kSpaces) {
      while (text.starts_with(space)) text.remove_prefix(space.size()), changed = true;
      while (text.ends_with(space)) text.remove_suffix(space.size()), changed = true;
    }
  }
  return text;
}

std::string list_of_names() {
  std::string list;
  for (const Family& f : kFamilies) list += (list.empty() ? "" : ", ") + std::string(f.name);
  return list;
}

std::string render_llama3(std::span<const ChatMessage> messages, bool generation_prompt) {
  std::string text = "<|begin_of_text|>";
  for (const ChatMessage& m : messages) {
    text += "<|start_header_id|>" + m.role + "<|end_header_id|>\n\n";
    text += trim(m.content);
    text += "<|eot_id|>";
  }
  if (generation_prompt) text += "<|start_header_id|>assistant<|end_header_id|>\n\n";
  return text;
}

std::string render_chatml(std::string_view default_system, std::span<const ChatMessage> messages,
                          bool generation_prompt) {
  std::string text;
  const auto add = [&](std::string_view role, std::string_view content) {
    text.append("<|im_start|>").append(role).append("\n").append(content).append("<|im_end|>\n");
  };
  if (!default_system.empty() && messages[0].role != "system") add("system", default_system);
  for (const ChatMessage& m : messages) add(m.role, m.content);
  if (generation_prompt) text += "<|im_start|>assistant\n";
  return text;
}

}  // namespace

std::vector<std::string> ChatTemplate::names() {
  std::vector<std::string> names;
  for (const Family& f : kFamilies) names.emplace_back(f.name);
  return names;
}

ChatTemplate::ChatTemplate(std::string_view name) : name_(name) {
  const std::vector<std::string> known = names();
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    throw Error(ErrorKind::kUsage, "unknown chat template '" + std::string(name) + "'",
                suggestion(name, known));
  }
}

ChatTemplate ChatTemplate::recognise(std::string_view jinja) {
  // Templates with dates or hidden reasoning render other text than the families here.
  const bool known_features = !contains(jinja, "strftime") && !contains(jinja, "think") &&
                              !contains(jinja, "Cutting Knowledge Date");
  const auto has_default = [&](const Family& f) {
    return !f.default_system.empty() && contains(jinja, f.default_system);
  };
  if (known_features && contains(jinja, "<|im_start|>") && contains(jinja, "<|im_end|>")) {
    // The longest default first, because that of qwen2 is part of that of qwen2.5.
    const auto found = std::find_if(std::rbegin(kFamilies), std::rend(kFamilies), has_default);
    if (found != std::rend(kFamilies)) return ChatTemplate(found->name);
    const bool other_default = contains(jinja, "system\\n") || contains(jinja, "system\n");
    if (!other_default) return ChatTemplate("chatml");
  }
  if (known_features && contains(jinja, "<|start_header_id|>") && contains(jinja, "<|eot_id|>") &&
      contains(jinja, "trim")) {
    return ChatTemplate(kLlama3);
  }
  throw Error(ErrorKind::kUnsupported,
              "the model's chat template is none of those known here: " + list_of_names(),
              "name the one to use, or give the prompt as plain text");
}

ChatTemplate ChatTemplate::of(const Gguf& gguf) {
  const std::string_view jinja = gguf.text("tokenizer.chat_template", "");
  if (jinja.empty()) {
    throw Error(ErrorKind::kInput, "'" + gguf.path() + "' has no chat template",
                "name one of: " + list_of_names() + "; or give the prompt as plain text");
  }
  return recognise(jinja);
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages,
                                 bool generation_prompt) const {
  if (messages.empty()) throw Error(ErrorKind::kUsage, "the conversation has no messages");
  for (const ChatMessage& m : messages) {
    if (m.role != "system" && m.role != "user" && m.role != "assistant") {
      throw Error(ErrorKind::kUsage, "a chat message has the role '" + m.role + "'",
                  suggestion(m.role, {"system", "user", "assistant"}));
    }
  }
  if (name_ == kLlama3) return render_llama3(messages, generation_prompt);
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& f) { return f.name == name_; });
  return render_chatml(family->default_system, messages, generation_prompt);
}

}  // namespace sw
