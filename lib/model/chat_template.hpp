#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf.hpp"

/// Chat templates of the supported model families. A template is recognised by its content and
/// rendered by code written for its family, which gives the text that the Jinja template in the
/// file gives for conversations of plain system, user and assistant messages.
namespace sw {

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  /// The template with this name; throws Error(kUsage) with a suggestion for any other.
  explicit ChatTemplate(std::string_view name);
  /// Recognises the text of a Jinja template. Throws Error(kUnsupported) that lists the known
  /// templates when it is none of them.
  static ChatTemplate recognise(std::string_view jinja);
  /// recognise() of tokenizer.chat_template; Error(kInput) when the file has none.
  static ChatTemplate of(const Gguf& gguf);
  /// The template of a Hugging Face folder, recognised: chat_template.jinja, or `chat_template` of
  /// tokenizer_config.json, which is a text or a list with a template named "default". Throws
  /// Error(kInput) when there is none, and as recognise() does.
  static ChatTemplate of_folder(const std::string& folder);
  /// "chatml", "smollm2", "qwen2", "qwen2.5": chatml without a default system prompt, and with
  /// those of SmolLM2, Qwen2 and Qwen2.5. "qwen3": chatml that leaves out the <think> part of
  /// answers before the last question; "qwen3-nothink" opens the answer with an empty one.
  /// "llama3"; "llama3.1": with a system message that begins with the date of the knowledge and
  /// today's. The template of Llama 3.2 puts the day of the call there; here it is always the one
  /// that it falls back to, and that 3.1 states, 26 Jul 2024, so that runs repeat. "qwen" is
  /// "qwen2.5".
  static std::vector<std::string> names();

  const std::string& name() const { return name_; }
  /// The whole conversation; `generation_prompt` opens an answer of the assistant at the end. The
  /// result is to be encoded with SpecialText::kParse; it begins with the BOS token's text where
  /// the template says so (llama3), so none is to be added. Throws Error(kUsage) for other roles
  /// and for an empty conversation.
  std::string render(std::span<const ChatMessage> messages, bool generation_prompt) const;

 private:
  std::string name_;
};

}  // namespace sw
