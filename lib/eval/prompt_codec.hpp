#pragma once

#include <optional>

#include "dataset/prompt.hpp"
#include "model/chat_template.hpp"
#include "model/tokenizer.hpp"

namespace sw {

/// What prompts need of a model: its tokenizer, which has to outlive the codec, its BOS token, and
/// the chat template, if there is to be one.
PromptCodec prompt_codec(const Tokenizer& tokenizer, const std::optional<ChatTemplate>& chat,
                         SpecialText special);

}  // namespace sw
