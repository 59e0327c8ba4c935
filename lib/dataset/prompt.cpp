#include "dataset/prompt.hpp"

#include <algorithm>
#include <cassert>
#include <set>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

bool is_word(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::string_view trim(std::string_view text) {
  constexpr const char* kSpaces = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

std::string cut_text(const Sample& sample, const PromptCodec& codec,
                     std::span<const std::int32_t> ids, std::int64_t limit) {
  if (sample.truncation == Truncation::kTail) {
    const auto kept = std::min(ids.size(), static_cast<std::size_t>(limit));
    return to_valid_utf8(codec.decode(ids.first(kept)));
  }
  const auto [head, tail] = truncate_middle(ids, limit);
  return to_valid_utf8(codec.decode(head)) + to_valid_utf8(codec.decode(tail));
}

/// The ids of the sample, untruncated, and those within the limit.
std::pair<std::vector<std::int32_t>, std::int64_t> limited_ids(const Sample& sample,
                                                               const PromptCodec& codec,
                                                               std::int64_t limit,
                                                               PromptProtocol protocol) {
  const auto encode_all = [&](std::string_view text) {
    std::string all = codec.chat ? codec.chat(text) : std::string(text);
    const bool glued = !codec.chat && !sample.answer_prefix.empty() && !text.empty() &&
                       trim(text.substr(text.size() - 1)).size() == 1;
    all += (glued ? "\n" : "") + sample.answer_prefix;
    auto ids = codec.encode(all);
    if (codec.bos && !codec.chat) ids.insert(ids.begin(), *codec.bos);
    return ids;
  };
  auto ids = encode_all(sample.prompt);
  const std::int64_t untruncated = std::ssize(ids);
  if (untruncated <= limit) return {std::move(ids), untruncated};
  if (sample.truncation == Truncation::kTail && !codec.chat && sample.answer_prefix.empty()) {
    ids.resize(static_cast<std::size_t>(std::max<std::int64_t>(limit, 0)));
    return {std::move(ids), untruncated};
  }
  if (protocol == PromptProtocol::kRelease && limit >= 2) {
    const auto [head, tail] = truncate_middle(ids, limit);
    std::vector<std::int32_t> cut(head.begin(), head.end());
    cut.insert(cut.end(), tail.begin(), tail.end());
    return {std::move(cut), untruncated};
  }
  const auto prompt_ids = codec.encode(sample.prompt);
  std::int64_t room = limit - std::ssize(encode_all(""));
  while (room >= 2) {
    ids = encode_all(cut_text(sample, codec, prompt_ids, room));
    // Where the parts meet, the text may need a token or two more than before.
    const std::int64_t excess = std::ssize(ids) - limit;
    if (excess <= 0) return {std::move(ids), untruncated};
    room -= excess;
  }
  throw Error(
      ErrorKind::kUsage,
      "a context of " + std::to_string(limit) + " tokens has no room for the prompt of " +
          sample.dataset + " " + sample.id,
      "choose a longer context; the whole prompt has " + std::to_string(untruncated) + " tokens");
}

}  // namespace

std::pair<std::span<const std::int32_t>, std::span<const std::int32_t>> truncate_middle(
    std::span<const std::int32_t> ids, std::int64_t limit) {
  if (std::ssize(ids) <= limit) return {ids, {}};
  const auto half = static_cast<std::size_t>(std::max<std::int64_t>(limit, 0) / 2);
  return {ids.first(half), ids.last(half)};
}

TokenText::TokenText(std::span<const std::string> pieces) {
  offsets_.reserve(pieces.size() + 1);
  offsets_.push_back(0);
  for (const std::string& piece : pieces) {
    text_ += piece;
    offsets_.push_back(text_.size());
  }
}

TokenRange TokenText::tokens(std::size_t begin, std::size_t end) const {
  assert(begin < end && end <= text_.size());
  // The last token that starts at or before `begin`, and the first that ends at or after `end`.
  const auto first = std::upper_bound(offsets_.begin(), offsets_.end(), begin) - 1;
  const auto last = std::lower_bound(offsets_.begin(), offsets_.end(), end);
  return {first - offsets_.begin(), last - offsets_.begin()};
}

std::vector<TokenRange> TokenText::find(std::span<const std::string> answers,
                                        std::size_t searched) const {
  const std::string_view text = std::string_view(text_).substr(0, searched);
  std::set<TokenRange> ranges;
  for (const std::string& answer : answers) {
    if (answer.empty()) continue;
    for (std::size_t at = text.find(answer); at != std::string_view::npos;
         at = text.find(answer, at + 1)) {
      const std::size_t end = at + answer.size();
      const bool joined_before = at > 0 && is_word(text[at - 1]) && is_word(answer.front());
      const bool joined_after = end < text.size() && is_word(text[end]) && is_word(answer.back());
      if (!joined_before && !joined_after) ranges.insert(tokens(at, end));
    }
  }
  return {ranges.begin(), ranges.end()};
}

Prompt build_prompt(const Sample& sample, const PromptCodec& codec, std::int64_t limit,
                    PromptProtocol protocol) {
  auto [ids, untruncated] = limited_ids(sample, codec, limit, protocol);
  if (ids.empty()) {
    throw Error(ErrorKind::kInput, sample.dataset + " " + sample.id + " gives no tokens",
                "the text is empty or the context is 0");
  }
  std::vector<std::string> pieces;
  pieces.reserve(ids.size());
  for (const std::int32_t& id : ids) pieces.push_back(codec.decode({&id, 1}));
  Prompt prompt{std::move(ids), untruncated, TokenText(pieces), {}};
  const std::string_view question = trim(sample.question);
  const std::size_t searched =
      question.empty() ? std::string::npos : prompt.text.text().rfind(question);
  prompt.answer_spans = prompt.text.find(sample.answers, searched);
  return prompt;
}

}  // namespace sw
