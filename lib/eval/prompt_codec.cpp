#include "eval/prompt_codec.hpp"

namespace sw {

PromptCodec prompt_codec(const Tokenizer& tokenizer, const std::optional<ChatTemplate>& chat,
                         SpecialText special) {
  PromptCodec codec;
  codec.encode = [&tokenizer, special](std::string_view text) {
    return tokenizer.encode(text, special);
  };
  codec.decode = [&tokenizer](std::span<const std::int32_t> ids) { return tokenizer.decode(ids); };
  if (chat) {
    codec.chat = [chat = *chat](std::string_view text) {
      const ChatMessage message{"user", std::string(text)};
      return chat.render({&message, 1}, true);
    };
  }
  if (tokenizer.adds_bos()) codec.bos = tokenizer.bos();
  return codec;
}

}  // namespace sw
