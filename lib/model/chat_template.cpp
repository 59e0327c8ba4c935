#include "model/chat_template.hpp"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "model/tokenizer_parts.hpp"

namespace sw {
namespace {

struct Family {
  std::string_view name;
  std::string_view default_system;  ///< put in front when the conversation begins otherwise
};

constexpr std::string_view kLlama3 = "llama3";
constexpr std::string_view kLlama31 = "llama3.1";
constexpr std::string_view kQwen3 = "qwen3";
constexpr std::string_view kQwen3NoThink = "qwen3-nothink";

constexpr std::string_view kPromptFlag = "add_generation_prompt";
constexpr std::uint64_t kMaxTemplate = std::uint64_t{1} << 24;

/// Other names.
constexpr std::pair<std::string_view, std::string_view> kAliases[] = {{"qwen", "qwen2.5"}};

constexpr Family kFamilies[] = {
    {"chatml", ""},
    {"smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    {"qwen2", "You are a helpful assistant."},
    {"qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {kQwen3, ""},
    {kQwen3NoThink, ""},
    {kLlama3, ""},
    {kLlama31, ""},
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
  for (const std::string& name : ChatTemplate::names()) {
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

void add_llama3(std::string& text, std::string_view role, std::string_view content) {
  text.append("<|start_header_id|>").append(role).append("<|end_header_id|>\n\n");
  text.append(content).append("<|eot_id|>");
}

/// With `dates`, the system message of Llama 3.1 is always there, and begins with two dates.
std::string render_llama3(bool dates, std::span<const ChatMessage> messages,
                          bool generation_prompt) {
  std::string text = "<|begin_of_text|>";
  if (dates) {
    std::string system = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    if (messages[0].role == "system") {
      system += trim(messages[0].content);
      messages = messages.subspan(1);
    }
    add_llama3(text, "system", system);
  }
  for (const ChatMessage& m : messages) add_llama3(text, m.role, trim(m.content));
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

std::string_view strip_newlines(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

/// An answer of the assistant as Qwen3's template splits it: the text between <think> and </think>
/// is its reasoning, the text behind the last </think> its content.
struct Answer {
  std::string_view reasoning;
  std::string_view content;
};

Answer split_answer(std::string_view text) {
  constexpr std::string_view kOpen = "<think>";
  constexpr std::string_view kClose = "</think>";
  const std::size_t first_close = text.find(kClose);
  if (first_close == std::string_view::npos) return {"", text};
  Answer answer{text.substr(0, first_close), text.substr(text.rfind(kClose) + kClose.size())};
  while (answer.reasoning.ends_with('\n')) answer.reasoning.remove_suffix(1);
  if (const std::size_t open = answer.reasoning.rfind(kOpen); open != std::string_view::npos) {
    answer.reasoning.remove_prefix(open + kOpen.size());
  }
  answer.reasoning = strip_newlines(answer.reasoning);
  while (answer.content.starts_with('\n')) answer.content.remove_prefix(1);
  return answer;
}

/// Index of the last question of the user; replies of tools, which are given as user messages too,
/// are none. The last index when there is no question.
std::size_t last_question(std::span<const ChatMessage> messages) {
  for (std::size_t i = messages.size(); i-- > 0;) {
    const bool tool = messages[i].content.starts_with("<tool_response>") &&
                      messages[i].content.ends_with("</tool_response>");
    if (messages[i].role == "user" && !tool) return i;
  }
  return messages.size() - 1;
}

/// The reasoning of answers before the last question is left out.
std::string render_qwen3(bool thinking, std::span<const ChatMessage> messages,
                         bool generation_prompt) {
  const std::size_t question = last_question(messages);
  std::string text;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    text.append("<|im_start|>").append(m.role).append("\n");
    if (m.role != "assistant") {
      text += m.content;
    } else {
      Answer answer = split_answer(m.content);
      if (i > question && (i + 1 == messages.size() || !answer.reasoning.empty())) {
        text.append("<think>\n").append(answer.reasoning).append("\n</think>\n\n");
        while (answer.content.starts_with('\n')) answer.content.remove_prefix(1);
      }
      text += answer.content;
    }
    text += "<|im_end|>\n";
  }
  if (generation_prompt) text += "<|im_start|>assistant\n";
  if (generation_prompt && !thinking) text += "<think>\n\n</think>\n\n";
  return text;
}

/// The system message that the template itself has: what its first "system\n" (escaped or not) is
/// followed by, unless the literal ends there and the message is the conversation's. "" for none.
std::string_view default_system(std::string_view jinja) {
  for (const std::string_view head : {"system\\n", "system\n"}) {
    for (std::size_t at = jinja.find(head); at != std::string_view::npos;
         at = jinja.find(head, at + 1)) {
      const std::string_view rest = jinja.substr(at + head.size());
      if (!rest.starts_with('\'') && !rest.starts_with('"')) {
        return rest.substr(0, rest.find("<|im_end|>"));
      }
    }
  }
  return "";
}

}  // namespace

std::vector<std::string> ChatTemplate::names() {
  std::vector<std::string> names;
  for (const Family& f : kFamilies) names.emplace_back(f.name);
  for (const auto& [alias, name] : kAliases) names.emplace_back(alias);
  return names;
}

ChatTemplate::ChatTemplate(std::string_view name) : name_(name) {
  for (const auto& [alias, meant] : kAliases) {
    if (name == alias) name_ = meant;
  }
  const std::vector<std::string> known = names();
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    throw Error(ErrorKind::kUsage, "unknown chat template '" + std::string(name) + "'",
                suggestion(name, known));
  }
}

ChatTemplate ChatTemplate::recognise(std::string_view jinja) {
  const bool chatml = contains(jinja, "<|im_start|>") && contains(jinja, "<|im_end|>");
  const bool llama3 = contains(jinja, "<|start_header_id|>") && contains(jinja, "<|eot_id|>") &&
                      contains(jinja, "trim");
  // Other templates with dates or hidden reasoning render other text than the families here.
  const bool dates = contains(jinja, "strftime") || contains(jinja, "Cutting Knowledge Date");
  const bool thinks = contains(jinja, "think>");
  // What no template here does to a message, or puts around the conversation.
  const bool alters = contains(jinja, "trim") || contains(jinja, "strip") ||
                      contains(jinja, "bos_token") || contains(jinja, "eos_token") ||
                      contains(jinja, "system_message");
  if (chatml && !dates && !thinks && !alters && contains(jinja, kPromptFlag)) {
    const std::string_view system = default_system(jinja);
    const auto* found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                     [&](const Family& f) { return f.default_system == system; });
    // A default that is put together in another way.
    const bool other = contains(jinja, "!= 'system'") || contains(jinja, "!= \"system\"") ||
                       contains(jinja, "You are");
    if (found != std::end(kFamilies) && !(system.empty() && other)) {
      return ChatTemplate(found->name);
    }
  }
  if (chatml && !dates && contains(jinja, "enable_thinking is false") &&
      contains(jinja, "last_query_index") && contains(jinja, "'<think>\\n\\n</think>\\n\\n'") &&
      contains(jinja, "loop.last or (not loop.last and reasoning_content)")) {
    return ChatTemplate(kQwen3);
  }
  // A system message of the template's own, or functions that every prompt has.
  const bool own_system = contains(jinja, "system<|end_header_id|>") || contains(jinja, "You ") ||
                          contains(jinja, "function");
  if (llama3 && !dates && !thinks && !own_system && contains(jinja, kPromptFlag)) {
    return ChatTemplate(kLlama3);
  }
  const bool empty_system = contains(jinja, "system_message = \"\"");
  if (llama3 && !thinks && empty_system &&
      contains(jinja, "Cutting Knowledge Date: December 2023\\n") &&
      contains(jinja, "Today Date: ") && contains(jinja, "date_string = \"26 Jul 2024\"")) {
    return ChatTemplate(kLlama31);
  }
  throw Error(ErrorKind::kUnsupported,
              "the model's chat template is none of those known here: " + list_of_names(),
              "name the one to use with --chat-template, or none for plain text");
}

ChatTemplate ChatTemplate::of(const Gguf& gguf) {
  const std::string_view jinja = gguf.text("tokenizer.chat_template", "");
  if (jinja.empty()) {
    throw Error(ErrorKind::kInput, "'" + gguf.path() + "' has no chat template",
                "name one of: " + list_of_names() + "; or give the prompt as plain text");
  }
  return recognise(jinja);
}

ChatTemplate ChatTemplate::of_folder(const std::string& folder) {
  const std::string file = folder + "/chat_template.jinja";
  if (std::filesystem::exists(file)) return recognise(read_file(file, kMaxTemplate));
  const std::string config = folder + "/tokenizer_config.json";
  const auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::kInput, what,
                "name one of: " + list_of_names() + "; or give the prompt as plain text");
  };
  if (!std::filesystem::exists(config)) fail("'" + folder + "' has no chat template");
  const nlohmann::json json = read_json_object(config);
  auto chat = json.value("chat_template", nlohmann::json());
  if (chat.is_null()) fail("'" + folder + "' has no chat template");
  if (chat.is_array()) {  // of {"name", "template"}
    const auto found = std::find_if(chat.begin(), chat.end(), [](const nlohmann::json& entry) {
      return entry.is_object() && entry.value("name", nlohmann::json()) == "default";
    });
    if (found == chat.end() || !found->contains("template")) {
      fail("'" + config + "': 'chat_template' has no template 'default'");
    }
    chat = nlohmann::json((*found)["template"]);
  }
  if (!chat.is_string()) fail("'" + config + "': 'chat_template' is neither a text nor a list");
  return recognise(chat.get_ref<const std::string&>());
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
  if (name_ == kLlama3 || name_ == kLlama31) {
    return render_llama3(name_ == kLlama31, messages, generation_prompt);
  }
  if (name_ == kQwen3 || name_ == kQwen3NoThink) {
    return render_qwen3(name_ == kQwen3, messages, generation_prompt);
  }
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& f) { return f.name == name_; });
  return render_chatml(family->default_system, messages, generation_prompt);
}

}  // namespace sw
