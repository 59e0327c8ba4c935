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

/// Byte-level BPE from the tables of a GGUF file (tokenizer.ggml.*) or of a Hugging Face folder
/// (tokenizer.json). The text is cut at added tokens, brought into the normal form that the folder
/// asks for, cut into words by the pre-tokenizer, and the bytes of each word are merged by the rank
/// of the merge table. The ids are those of Hugging Face's `tokenizers` library (0.23), down to the
/// versions of Unicode that its parts know.
///
/// Text is UTF-8. A byte that belongs to no valid UTF-8 sequence is no error: it ends the word
/// before it, stands for itself as a word of one byte, and keeps its value, so that decoding
/// returns every input byte for byte, but for its Unicode normal form. GGUF files name no normal
/// form, so none is applied to them.
namespace sw {

/// Whether texts such as <|im_end|> in the input stand for their special tokens (a rendered chat),
/// or are text like any other (a document). Special are the control tokens of a GGUF file and the
/// added tokens of a tokenizer.json with "special": true. Added tokens that are not special
/// (user-defined ones of a GGUF file; <think>, runs of spaces) are found in both modes, as the
/// library does. The longest that begins at a position wins.
enum class SpecialText { kPlain, kParse };

struct TokenizerTables;

class Tokenizer {
 public:
  /// Throws Error(kUnsupported) for tokenizers other than byte-level BPE with one of the
  /// pre-tokenizers smollm, qwen2, llama-bpe and gpt2, Error(kInput) for tables that contradict
  /// each other.
  explicit Tokenizer(const Gguf& gguf);
  /// Reads tokenizer.json, and the tokenizer_config.json (bos_token, eos_token, add_bos_token) and
  /// generation_config.json (eos_token_id) beside it, if there are any. Supported: the model BPE
  /// without dropout, byte_fallback and affixes of words; normalizers NFC, NFD, NFKC, NFKD and
  /// Sequence; pre-tokenizers Split (Isolated, Removed), Digits, Sequence and ByteLevel, which
  /// comes last; decoder ByteLevel; post-processors TemplateProcessing, ByteLevel and Sequence, of
  /// which only the BOS in front is used. Ids must be 0, 1, ... without holes. Throws
  /// Error(kUnsupported) that names any other component and its place, Error(kInput) for files that
  /// are missing, damaged or contradict themselves.
  static Tokenizer from_folder(const std::string& folder);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// No token is added at the begin or end. Time is O(n log n) for any text.
  std::vector<std::int32_t> encode(std::string_view text, SpecialText special) const;
  /// The bytes of the tokens, in order; special tokens as their text. Throws Error(kUsage) for an
  /// id that is not in the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

  std::int32_t size() const { return static_cast<std::int32_t>(bytes_.size()); }
  /// Id of the special (or other added) token with this text.
  std::optional<std::int32_t> special_id(std::string_view text) const;
  std::optional<std::int32_t> bos() const { return bos_; }
  /// Whether the model expects bos() in front of its input.
  bool adds_bos() const { return adds_bos_; }
  /// Tokens after which generation stops: the files' eos, eot and eom tokens, and those of
  /// <|im_end|>, <|endoftext|>, <|eot_id|>, <|end_of_text|> that it has. Ascending.
  const std::vector<std::int32_t>& end_tokens() const { return end_tokens_; }
  bool is_end(std::int32_t id) const;

 private:
  struct Parts;
  struct Merge {
    std::int32_t rank;
    std::int32_t merged;
  };

  explicit Tokenizer(TokenizerTables tables);
  void encode_text(std::string_view text, bool parse_special, std::vector<std::int32_t>& ids) const;
  void encode_valid(std::string_view text, bool parse_special,
                    std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;

  std::unique_ptr<const Parts> parts_;
  std::vector<std::string> bytes_;                            // of each token
  std::unordered_map<std::string_view, std::int32_t> words_;  // bytes of a token of the model -> id
  std::array<std::int32_t, 256> byte_ids_{};                  // -1: no token
  std::unordered_map<std::uint64_t, Merge> merges_;           // (left << 32 | right)
  std::optional<std::int32_t> bos_;
  bool adds_bos_ = false;
  std::vector<std::int32_t> end_tokens_;
};

}  // namespace sw
