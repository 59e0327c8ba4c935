#pragma once

#include <string>
#include <vector>

/// One prompt with what is known about it, whatever dataset it came from. A sample is text only;
/// `build_prompt` (prompt.hpp) turns it into token ids.
namespace sw {

/// What to do with a prompt that is longer than the context.
enum class Truncation {
  kTail,    ///< keep the first tokens: running text
  kMiddle,  ///< keep half from each end: a task, whose question stands at the end
};

struct Sample {
  std::string dataset;               ///< "hotpotqa", "niah_multikey_3", "niah", a file name
  std::string id;                    ///< the record's own id, or its index, or what made it
  std::string prompt;                ///< UTF-8, before any chat template
  std::string question;              ///< the end of `prompt` that no answer is looked for in
  std::string answer_prefix;         ///< how the model's reply begins, given after the template
  std::vector<std::string> answers;  ///< reference answers; any of them is right
  std::vector<std::string> classes;  ///< of a classification task, else empty
  Truncation truncation = Truncation::kMiddle;
  bool chat = true;  ///< whether the protocol puts it into a chat template
};

}  // namespace sw
