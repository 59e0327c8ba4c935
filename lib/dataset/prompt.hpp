#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dataset/sample.hpp"

/// From a sample to token ids: truncation to the context, chat template and beginning of the reply
/// (metrics.md, protocols `longbench` and `release`), and the tokens that hold the answers.
namespace sw {

/// Tokens [begin, end).
struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  auto operator<=>(const TokenRange&) const = default;
};

/// What prompts need of a tokenizer and its chat template.
struct PromptCodec {
  std::function<std::vector<std::int32_t>(std::string_view)> encode;  ///< adds no token
  std::function<std::string(std::span<const std::int32_t>)> decode;   ///< bytes, in order
  /// The prompt as the user's turn, with the assistant's turn opened; empty: no template.
  std::function<std::string(std::string_view)> chat;
  std::optional<std::int32_t> bos;  ///< put in front, unless there is a chat template
};

/// The two parts of `ids` that stay when the middle is cut out: floor(limit / 2) ids from each end
/// when there are more than `limit`, otherwise all of them and an empty second part.
std::pair<std::span<const std::int32_t>, std::span<const std::int32_t>> truncate_middle(
    std::span<const std::int32_t> ids, std::int64_t limit);

/// Tokens and the text they spell, to go from bytes to tokens.
class TokenText {
 public:
  /// pieces[i] is what token i decodes to alone: possibly a part of a character, or nothing.
  explicit TokenText(std::span<const std::string> pieces);

  const std::string& text() const { return text_; }
  /// The fewest consecutive tokens that hold bytes [begin, end) of the text, begin < end.
  TokenRange tokens(std::size_t begin, std::size_t end) const;
  /// Tokens of every occurrence of every answer within the first `searched` bytes, ascending,
  /// without duplicates. An occurrence inside a longer word or number of ASCII letters and digits
  /// is none ("6" is not in "1961"), nor is an empty answer.
  std::vector<TokenRange> find(std::span<const std::string> answers,
                               std::size_t searched = std::string::npos) const;

 private:
  std::string text_;
  std::vector<std::size_t> offsets_;  // [tokens + 1]
};

struct Prompt {
  std::vector<std::int32_t> ids;
  std::int64_t untruncated = 0;  ///< number of ids before truncation; ids.size() if there was none
  TokenText text;
  std::vector<TokenRange> answer_spans;  ///< of the sample's answers, outside its question
};

/// How a prompt that is too long is cut.
enum class PromptProtocol {
  /// LongBench's own: on the ids of the prompt alone, decoded (U+FFFD for broken characters) and
  /// encoded again inside the template.
  kLongBench,
  /// That of the paper's release: on the ids of the finished text, template included.
  kRelease,
};

/// Ids of a sample, at most `limit` of them with the template, BOS and reply prefix included. A
/// prompt that is too long loses its middle, or its end where the sample says so; running text
/// without a template keeps exactly its first ids. Throws Error(kUsage) when the limit leaves no
/// room, Error(kInput) when the sample has no tokens.
Prompt build_prompt(const Sample& sample, const PromptCodec& codec, std::int64_t limit,
                    PromptProtocol protocol = PromptProtocol::kLongBench);

}  // namespace sw
