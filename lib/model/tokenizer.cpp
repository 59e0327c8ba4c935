#include "model/tokenizer.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <queue>
#include <set>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

// Token types of tokenizer.ggml.token_type.
constexpr std::int64_t kControl = 3;
constexpr std::int64_t kUserDefined = 4;

// White space is spelled out (White_Space of Unicode), because \s of PCRE2 includes U+180E.
#define SW_SPACE                                                                     \
  "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
  "\\x{202f}\\x{205f}\\x{3000}"

// Runs of white space leave their last character to the word behind them.
#define SW_SPACES "[" SW_SPACE "]+(?![^" SW_SPACE "])|[" SW_SPACE "]+"
#define SW_CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SW_WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SW_SYMBOLS " ?[^" SW_SPACE "\\p{L}\\p{N}]+[\\r\\n]*|[" SW_SPACE "]*[\\r\\n]+"

constexpr const char* kGpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SW_SPACE "\\p{L}\\p{N}]+|" SW_SPACES;
constexpr const char* kQwen2 = SW_CONTRACTIONS "|" SW_WORDS "|\\p{N}|" SW_SYMBOLS "|" SW_SPACES;
constexpr const char* kLlama3 =
    SW_CONTRACTIONS "|" SW_WORDS "|\\p{N}{1,3}|" SW_SYMBOLS "|" SW_SPACES;

struct PreTokenizerSpec {
  std::string_view name;  ///< tokenizer.ggml.pre
  const char* isolate;    ///< matches are words of their own, cut out first; may be null
  const char* words;      ///< cuts what is left into words
  bool whole_words;       ///< a word that is a token is not merged byte by byte
};

constexpr PreTokenizerSpec kPreTokenizers[] = {
    {"smollm", "\\p{N}", kGpt2, false},    {"gpt-2", nullptr, kGpt2, false},
    {"gpt2", nullptr, kGpt2, false},       {"qwen2", nullptr, kQwen2, false},
    {"llama-bpe", nullptr, kLlama3, true},
};

/// A compiled pattern; matching is const and safe from several threads.
class Regex {
 public:
  explicit Regex(const char* pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
    if (!code_) throw std::bad_alloc();  // the patterns are constants, so it can only be memory
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  /// Calls visit(piece, matched) for the matches and the stretches between them, in order. `text`
  /// is valid UTF-8.
  template <class F>
  void each(std::string_view text, F&& visit) const {
    const std::unique_ptr<pcre2_match_data, Free> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (!match) throw std::bad_alloc();
    std::size_t done = 0;
    while (done < text.size()) {
      const int found =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), done,
                      PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) {
        throw Error(ErrorKind::kResource,
                    "the text cannot be cut into words (PCRE2 error " + std::to_string(found) + ")",
                    "use a shorter text");
      }
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
      if (range[0] > done) visit(text.substr(done, range[0] - done), false);
      visit(text.substr(range[0], range[1] - range[0]), true);
      done = range[1];
    }
    if (done < text.size()) visit(text.substr(done), false);
  }

 private:
  struct Free {
    void operator()(pcre2_code* p) const { pcre2_code_free(p); }
    void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
};

/// Bytes of the well-formed UTF-8 sequence at the begin of `text`, 0 when there is none (Unicode
/// Standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto continuation = [&](std::size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0);
  const unsigned second = byte(1);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4 || !continuation(1)) return 0;
  if (first < 0xe0) return 2;
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
  if (!continuation(2)) return 0;
  if (first < 0xf0) return 3;
  return continuation(3) ? 4 : 0;
}

/// Code point of a well-formed sequence of `length` bytes.
std::uint32_t code_point(std::string_view text, std::size_t length) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (length == 1) return first;
  std::uint32_t value = first & (0x7fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    value = value << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
  }
  return value;
}

/// The alphabet of byte-level BPE (GPT-2): printable Latin-1 bytes stand for themselves, the others
/// are U+0100, U+0101, ... in ascending order.
std::array<std::uint32_t, 256> byte_alphabet() {
  std::array<std::uint32_t, 256> alphabet{};
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    alphabet[b] = printable ? b : next++;
  }
  return alphabet;
}

/// Bytes of a token written in the alphabet; the text itself when a letter is not of the alphabet.
std::string token_bytes(std::string_view text,
                        const std::unordered_map<std::uint32_t, char>& letters) {
  std::string bytes;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t length = utf8_length(rest);
    if (length == 0) return std::string(text);
    const auto it = letters.find(code_point(rest, length));
    if (it == letters.end()) return std::string(text);
    bytes += it->second;
    rest.remove_prefix(length);
  }
  return bytes;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

[[noreturn]] void fail(const Gguf& gguf, const std::string& what) {
  throw Error(ErrorKind::kInput, "'" + gguf.path() + "': " + what,
              "the tokenizer tables are damaged; fetch the file again");
}

}  // namespace

struct Tokenizer::PreTokenizer {
  explicit PreTokenizer(const PreTokenizerSpec& spec)
      : words(spec.words), whole_words(spec.whole_words) {
    if (spec.isolate) isolate.emplace(spec.isolate);
  }

  /// Calls visit(word) for the words of a valid UTF-8 text, in order.
  template <class F>
  void each_word(std::string_view text, F&& visit) const {
    const auto cut = [&](std::string_view piece) {
      words.each(piece, [&](std::string_view word, bool) { visit(word); });
    };
    if (!isolate) return cut(text);
    isolate->each(
        text, [&](std::string_view piece, bool matched) { matched ? visit(piece) : cut(piece); });
  }

  std::optional<Regex> isolate;
  Regex words;
  bool whole_words;
};

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer::Tokenizer(const Gguf& gguf) {
  const std::string model(gguf.text("tokenizer.ggml.model"));
  const std::string pre(gguf.text("tokenizer.ggml.pre", "gpt2"));
  const auto* spec = std::find_if(std::begin(kPreTokenizers), std::end(kPreTokenizers),
                                  [&](const PreTokenizerSpec& s) { return s.name == pre; });
  if (model != "gpt2" || spec == std::end(kPreTokenizers)) {
    throw Error(ErrorKind::kUnsupported,
                "'" + gguf.path() + "' has the tokenizer '" + model + "' with pre-tokenizer '" +
                    pre + "', which is not implemented",
                "use a model with byte-level BPE and smollm, qwen2, llama-bpe or gpt2");
  }
  pre_ = std::make_unique<const PreTokenizer>(*spec);
  read_tokens(gguf);
  read_merges(gguf);
  read_special_ids(gguf);
}

void Tokenizer::read_tokens(const Gguf& gguf) {
  const auto& texts = gguf.texts("tokenizer.ggml.tokens");
  const std::vector<std::int64_t> types = gguf.integers("tokenizer.ggml.token_type");
  if (texts.empty() || texts.size() > (std::size_t{1} << 30)) fail(gguf, "there are no tokens");
  if (types.size() != texts.size()) {
    fail(gguf, std::to_string(texts.size()) + " tokens, but " + std::to_string(types.size()) +
                   " token types");
  }
  std::unordered_map<std::uint32_t, char> letters;
  const std::array<std::uint32_t, 256> alphabet = byte_alphabet();
  for (std::size_t b = 0; b < 256; ++b) letters[alphabet[b]] = static_cast<char>(b);

  bytes_.reserve(texts.size());  // words_ looks into it, so it must not move
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const bool special = types[i] == kControl || types[i] == kUserDefined;
    bytes_.push_back(special ? std::string(texts[i]) : token_bytes(texts[i], letters));
    if (!special) {
      words_.emplace(bytes_.back(), id);
    } else if (!texts[i].empty()) {
      specials_.emplace_back(texts[i], id);
      special_begin_[static_cast<unsigned char>(texts[i][0])] = true;
    }
  }
  std::sort(specials_.begin(), specials_.end());
  specials_.erase(std::unique(specials_.begin(), specials_.end(),
                              [](const auto& a, const auto& b) { return a.first == b.first; }),
                  specials_.end());
  for (std::size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    const auto it = words_.find({&byte, 1});
    byte_ids_[b] = it == words_.end() ? -1 : it->second;
  }
}

void Tokenizer::read_merges(const Gguf& gguf) {
  const auto& texts = gguf.texts("tokenizer.ggml.merges");
  const auto& tokens = gguf.texts("tokenizer.ggml.tokens");
  std::unordered_map<std::string_view, std::int32_t> id_of_text;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    id_of_text.emplace(tokens[i], static_cast<std::int32_t>(i));
  }
  const auto find = [&](std::string_view text, std::string_view merge) {
    const auto it = id_of_text.find(text);
    if (it == id_of_text.end()) {
      fail(gguf, "the merge '" + std::string(merge.substr(0, 64)) +
                     "' needs a token that is not in the vocabulary");
    }
    return it->second;
  };
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::string_view merge = texts[i];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      fail(gguf, "merge " + std::to_string(i) + " is not two tokens with a space between");
    }
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    const std::int32_t merged = find(std::string(left) + std::string(right), merge);
    merges_.emplace(pair_key(find(left, merge), find(right, merge)),
                    Merge{static_cast<std::int32_t>(i), merged});
  }
}

std::optional<std::int32_t> Tokenizer::optional_id(const Gguf& gguf, std::string_view key) const {
  if (!gguf.find(key)) return std::nullopt;
  const std::int64_t id = gguf.integer(key);
  if (id < 0 || id >= size()) {
    fail(gguf, "'" + std::string(key) + "' is " + std::to_string(id) + ", not one of the " +
                   std::to_string(size()) + " tokens");
  }
  return static_cast<std::int32_t>(id);
}

void Tokenizer::read_special_ids(const Gguf& gguf) {
  bos_ = optional_id(gguf, "tokenizer.ggml.bos_token_id");
  adds_bos_ = gguf.boolean("tokenizer.ggml.add_bos_token", false);
  std::set<std::int32_t> ends;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = optional_id(gguf, key)) ends.insert(*id);
  }
  for (const char* text : {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"}) {
    if (const auto id = special_id(text)) ends.insert(*id);
  }
  end_tokens_.assign(ends.begin(), ends.end());
}

std::optional<std::int32_t> Tokenizer::special_id(std::string_view text) const {
  const auto it =
      std::lower_bound(specials_.begin(), specials_.end(), text,
                       [](const auto& entry, std::string_view t) { return entry.first < t; });
  if (it == specials_.end() || it->first != text) return std::nullopt;
  return it->second;
}

bool Tokenizer::is_end(std::int32_t id) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), id);
}

std::pair<std::size_t, std::int32_t> Tokenizer::match_special(std::string_view text) const {
  std::pair<std::size_t, std::int32_t> best{0, 0};
  if (text.empty() || !special_begin_[static_cast<unsigned char>(text[0])]) return best;
  // [low, high) are the specials that agree with text[0, length).
  auto low = specials_.begin();
  auto high = specials_.end();
  for (std::size_t length = 0; low != high; ++length) {
    if (low->first.size() == length) {
      best = {length, low->second};
      ++low;  // the others of the range are longer
    }
    if (length == text.size()) break;
    const auto next = static_cast<unsigned char>(text[length]);
    const auto letter = [&](const auto& entry) {
      return static_cast<unsigned char>(entry.first[length]);
    };
    low = std::partition_point(low, high, [&](const auto& e) { return letter(e) < next; });
    high = std::partition_point(low, high, [&](const auto& e) { return letter(e) <= next; });
  }
  return best;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, SpecialText special) const {
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw Error(ErrorKind::kUsage, "a text of " + format_bytes(text.size()) + " is too long",
                "use a text below 2 GiB");
  }
  std::vector<std::int32_t> ids;
  if (special == SpecialText::kPlain) {
    encode_plain(text, ids);
    return ids;
  }
  std::size_t plain_begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto [length, id] = match_special(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    encode_plain(text.substr(plain_begin, at - plain_begin), ids);
    ids.push_back(id);
    at += length;
    plain_begin = at;
  }
  encode_plain(text.substr(plain_begin), ids);
  return ids;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
  const auto visit = [&](std::string_view word) { encode_word(word, ids); };
  std::size_t valid_begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length > 0) {
      at += length;
      continue;
    }
    pre_->each_word(text.substr(valid_begin, at - valid_begin), visit);
    encode_word(text.substr(at, 1), ids);
    valid_begin = ++at;
  }
  pre_->each_word(text.substr(valid_begin), visit);
}

void Tokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (pre_->whole_words) {
    if (const auto it = words_.find(word); it != words_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  // A list of symbols, linked by index; merging keeps the left one and unlinks the right one.
  struct Symbol {
    std::int32_t id;  // -1: unlinked
    std::int32_t previous;
    std::int32_t next;  // -1: the last one
  };
  struct Candidate {
    std::int32_t rank;
    std::int32_t left;  // index of the left symbol
    std::uint64_t key;  // the pair that was seen, which may have changed since
    std::int32_t merged;
    bool operator>(const Candidate& o) const {
      return std::pair(rank, left) > std::pair(o.rank, o.left);
    }
  };
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (const char byte : word) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    const auto index = static_cast<std::int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](std::int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const std::uint64_t key = pair_key(symbols[left].id, symbols[symbols[left].next].id);
    if (const auto it = merges_.find(key); it != merges_.end()) {
      queue.push({it->second.rank, left, key, it->second.merged});
    }
  };
  const auto count = static_cast<std::int32_t>(symbols.size());
  for (std::int32_t i = 0; i < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.id < 0 || left.next < 0 || pair_key(left.id, symbols[left.next].id) != best.key) {
      continue;
    }
    Symbol& right = symbols[left.next];
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  for (std::int32_t i = 0; i >= 0; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= size()) {
      throw Error(ErrorKind::kUsage, "token id " + std::to_string(id) + " is not one of the " +
                                         std::to_string(size()) + " tokens of the vocabulary");
    }
    text += bytes_[static_cast<std::size_t>(id)];
  }
  return text;
}

}  // namespace sw
