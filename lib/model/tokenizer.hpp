#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/gguf.hpp"

/// Byte-level BPE from the tables of a GGUF file (tokenizer.ggml.*): the text is cut into words by
/// the regular expressions of the pre-tokenizer (smollm, qwen2, llama-bpe, gpt2), and the bytes of
/// each word are merged by the rank of the merge table.
///
/// Text is UTF-8. A byte that belongs to no valid UTF-8 sequence is no error: it ends the word
/// before it, stands for itself as a word of one byte, and keeps its value, so that decoding
/// returns every input byte for byte. Unicode normalisation is not applied (GGUF files carry none).
namespace sw {

/// Whether texts such as <|im_end|> in the input stand for their special tokens (a rendered chat),
/// or are text like any other (a document). Special are the file's control and user-defined tokens;
/// the longest that begins at a position wins.
enum class SpecialText { kPlain, kParse };

class Tokenizer {
 public:
  /// Throws Error(kUnsupported) for tokenizers other than byte-level BPE with a pre-tokenizer of
  /// the list above, Error(kInput) for tables that contradict each other.
  explicit Tokenizer(const Gguf& gguf);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// No token is added at the begin or end. Time is O(n log n) for any text.
  std::vector<std::int32_t> encode(std::string_view text, SpecialText special) const;
  /// The bytes of the tokens, in order; special tokens as their text. Throws Error(kUsage) for an
  /// id that is not in the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

  std::int32_t size() const { return static_cast<std::int32_t>(bytes_.size()); }
  /// Id of the special token with this text.
  std::optional<std::int32_t> special_id(std::string_view text) const;
  std::optional<std::int32_t> bos() const { return bos_; }
  /// Whether the model expects bos() in front of its input.
  bool adds_bos() const { return adds_bos_; }
  /// Tokens after which generation stops: the file's eos, eot and eom tokens, and those of
  /// <|im_end|>, <|endoftext|>, <|eot_id|>, <|end_of_text|> that it has. Ascending.
  const std::vector<std::int32_t>& end_tokens() const { return end_tokens_; }
  bool is_end(std::int32_t id) const;

 private:
  struct PreTokenizer;
  struct Merge {
    std::int32_t rank;
    std::int32_t merged;
  };

  void read_tokens(const Gguf& gguf);
  void read_merges(const Gguf& gguf);
  void read_special_ids(const Gguf& gguf);
  std::optional<std::int32_t> optional_id(const Gguf& gguf, std::string_view key) const;
  /// Length and id of the longest special token that `text` begins with; length 0 when none does.
  std::pair<std::size_t, std::int32_t> match_special(std::string_view text) const;
  void encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;

  std::unique_ptr<const PreTokenizer> pre_;
  std::vector<std::string> bytes_;                              // of each token
  std::unordered_map<std::string_view, std::int32_t> words_;    // bytes of a normal token -> id
  std::vector<std::pair<std::string, std::int32_t>> specials_;  // sorted by text
  std::array<bool, 256> special_begin_{};                       // first bytes of specials_
  std::array<std::int32_t, 256> byte_ids_{};                    // -1: no token
  std::unordered_map<std::uint64_t, Merge> merges_;             // (left << 32 | right)
  std::optional<std::int32_t> bos_;
  bool adds_bos_ = false;
  std::vector<std::int32_t> end_tokens_;
};

}  // namespace sw
