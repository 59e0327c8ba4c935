#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

/// The parts of a byte-level BPE tokenizer as Hugging Face's `tokenizers` library defines them:
/// normal forms, the steps of the pre-tokenizer, added tokens, and the tables that a GGUF file and
/// a tokenizer.json both fill. For lib/model/tokenizer*.cpp only.
namespace sw {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

/// `text` (valid UTF-8) in the normal form that it has in Unicode 9, which the `tokenizers` library
/// follows: newer characters neither decompose, nor compose, nor change places. Time is O(n log n)
/// for any text.
std::string normalize(std::string_view text, NormalForm form);

/// A compiled pattern; matching is const and safe from several threads.
class Regex {
 public:
  enum class Syntax { kPcre2, kLiteral };

  /// Throws Error(kInput) for a pattern that does not compile, Error(kUnsupported) for one that
  /// can match the empty text.
  Regex(std::string_view pattern, Syntax syntax);
  /// A pattern in the syntax of tokenizer.json (Oniguruma's), with the meaning it has there. Throws
  /// Error(kUnsupported) for the constructs whose meaning differs and that are not translated.
  static Regex oniguruma(std::string_view pattern);

  using Visit = std::function<void(std::string_view piece, bool matched)>;
  /// Calls visit for the matches and the stretches between them, in order. `text` is valid UTF-8.
  /// Throws Error(kResource) when a pattern backtracks without end.
  void each(std::string_view text, const Visit& visit) const;

 private:
  std::shared_ptr<const void> code_;
};

/// One step of a pre-tokenizer: cuts a piece at the matches of a pattern.
struct PreTokenizerStep {
  std::optional<Regex> pattern;  ///< none: the piece stays whole
  bool drop_matches = false;     ///< behaviour "Removed"
  bool drop_others = false;      ///< the same, inverted
  bool prefix_space = false;     ///< a space is put in front of a piece that has none
};

/// Calls visit(word) for the words of `text` (valid UTF-8), in order: each step cuts the pieces of
/// the step before.
void each_word(const std::vector<PreTokenizerStep>& steps, std::string_view text,
               const std::function<void(std::string_view)>& visit);

/// The step Digits: numeric characters, one by one or in runs.
PreTokenizerStep digits_step(bool individual);

/// The step of GPT-2's pattern, as in ByteLevel with use_regex.
PreTokenizerStep gpt2_step();

struct AddedToken {
  std::string text;
  std::int32_t id = 0;
  bool special = true;
  bool normalized = false;   ///< looked for in the normalised text
  bool lstrip = false;       ///< takes the white space in front
  bool rstrip = false;       ///< takes the white space behind
  bool single_word = false;  ///< only where no word character is next to it
};

/// Added tokens that are looked for together. The longest that begins at a position wins.
class AddedTokens {
 public:
  void add(AddedToken token);
  /// To be called once, after the last add.
  void finish();

  std::optional<std::int32_t> find(std::string_view text) const;
  /// Calls on_text(piece) and on_token(id) for the parts of `text`, in order. Special tokens are
  /// text unless `parse_special`.
  void each(std::string_view text, bool parse_special,
            const std::function<void(std::string_view)>& on_text,
            const std::function<void(std::int32_t)>& on_token) const;

 private:
  const AddedToken* match(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // sorted by text
  std::array<bool, 256> begins_{};  // first bytes of tokens_
};

/// What a tokenizer is made of. Ids are indices of `tokens`; loaders check all of them.
struct TokenizerTables {
  struct Token {
    std::string bytes;  ///< what it decodes to
    bool word = false;  ///< of the BPE model: whole words and single bytes may become it
  };
  struct Merge {
    std::int32_t left, right, merged;
  };

  std::vector<Token> tokens;
  std::vector<Merge> merges;  ///< by rank
  std::vector<AddedToken> added;
  std::vector<NormalForm> normal_forms;
  std::vector<PreTokenizerStep> steps;
  std::optional<std::int32_t> unknown;  ///< of bytes that no token has; none: they are left out
  bool fuse_unknown = false;            ///< one for a run of them
  bool ignore_merges = false;           ///< a word that is a token is not merged byte by byte
  std::optional<std::int32_t> bos;
  bool adds_bos = false;
  std::vector<std::int32_t> end_tokens;
};

/// Bytes of tokens written in the alphabet of byte-level BPE (GPT-2): printable Latin-1 bytes stand
/// for themselves, the others are U+0100, U+0101, ... in ascending order.
class ByteAlphabet {
 public:
  ByteAlphabet();
  /// Nothing when a letter of `text` is not of the alphabet.
  std::optional<std::string> bytes(std::string_view text) const;

 private:
  std::unordered_map<std::uint32_t, char> letters_;
};

/// Reads a tokenizer.json with its tokenizer_config.json and generation_config.json.
TokenizerTables read_tokenizer_folder(const std::string& folder);

/// The object in a JSON file. Throws Error(kInput) for a text that is no JSON object, for a key
/// that an object has twice, and for objects and arrays nested more than 64 deep.
nlohmann::json read_json_object(const std::string& path);

}  // namespace sw
