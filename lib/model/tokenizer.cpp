#include "model/tokenizer.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <queue>
#include <set>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"
#include "model/tokenizer_parts.hpp"

namespace sw {
namespace {

// Token types of tokenizer.ggml.token_type.
constexpr std::int64_t kControl = 3;
constexpr std::int64_t kUserDefined = 4;

constexpr const char* kEndTexts[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>",
                                     "<|end_of_text|>"};

// Runs of white space leave their last character to the word behind them.
#define SW_WORDS(numbers)                                               \
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

struct PreTokenizerSpec {
  std::string_view name;  ///< tokenizer.ggml.pre
  const char* split;      ///< null: the pattern of GPT-2
  bool digits;            ///< numbers are cut out first, each a word of its own
  bool ignore_merges;
};

constexpr PreTokenizerSpec kPreTokenizers[] = {
    {"smollm", nullptr, true, false},
    {"gpt-2", nullptr, false, false},
    {"gpt2", nullptr, false, false},
    {"qwen2", SW_WORDS("\\p{N}"), false, false},
    {"llama-bpe", SW_WORDS("\\p{N}{1,3}"), false, true},
};

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

[[noreturn]] void fail(const Gguf& gguf, const std::string& what) {
  throw Error(ErrorKind::kInput, "'" + gguf.path() + "': " + what,
              "the tokenizer tables are damaged; fetch the file again");
}

void read_tokens(const Gguf& gguf, TokenizerTables& tables) {
  const auto& texts = gguf.texts("tokenizer.ggml.tokens");
  const std::vector<std::int64_t> types = gguf.integers("tokenizer.ggml.token_type");
  if (texts.empty() || texts.size() > (std::size_t{1} << 30)) fail(gguf, "there are no tokens");
  if (types.size() != texts.size()) {
    fail(gguf, std::to_string(texts.size()) + " tokens, but " + std::to_string(types.size()) +
                   " token types");
  }
  const ByteAlphabet alphabet;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const bool added = types[i] == kControl || types[i] == kUserDefined;
    const auto bytes = added ? std::nullopt : alphabet.bytes(texts[i]);
    tables.tokens.push_back({bytes.value_or(std::string(texts[i])), bytes.has_value()});
    if (added) {
      tables.added.push_back({.text = std::string(texts[i]),
                              .id = static_cast<std::int32_t>(i),
                              .special = types[i] == kControl});
    }
  }
}

void read_merges(const Gguf& gguf, TokenizerTables& tables) {
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
    tables.merges.push_back({find(left, merge), find(right, merge), merged});
  }
}

void read_special_ids(const Gguf& gguf, TokenizerTables& tables) {
  const auto read = [&](const char* key) -> std::optional<std::int32_t> {
    if (!gguf.find(key)) return std::nullopt;
    const std::int64_t id = gguf.integer(key);
    if (id < 0 || id >= static_cast<std::int64_t>(tables.tokens.size())) {
      fail(gguf, "'" + std::string(key) + "' is " + std::to_string(id) + ", not one of the " +
                     std::to_string(tables.tokens.size()) + " tokens");
    }
    return static_cast<std::int32_t>(id);
  };
  tables.bos = read("tokenizer.ggml.bos_token_id");
  tables.adds_bos = gguf.boolean("tokenizer.ggml.add_bos_token", false);
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    if (const auto id = read(key)) tables.end_tokens.push_back(*id);
  }
}

TokenizerTables read_gguf(const Gguf& gguf) {
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
  TokenizerTables tables;
  if (spec->digits) tables.steps.push_back(digits_step(true));
  tables.steps.push_back(spec->split ? PreTokenizerStep{.pattern = Regex::oniguruma(spec->split)}
                                     : gpt2_step());
  tables.ignore_merges = spec->ignore_merges;
  read_tokens(gguf, tables);
  read_merges(gguf, tables);
  read_special_ids(gguf, tables);
  return tables;
}

}  // namespace

struct Tokenizer::Parts {
  std::string normalized(std::string_view text) const {
    std::string result(text);
    for (const NormalForm form : normal_forms) result = normalize(result, form);
    return result;
  }

  AddedTokens raw_added;         // looked for in the text as it is
  AddedTokens normalized_added;  // looked for in the normalised text
  std::vector<NormalForm> normal_forms;
  std::vector<PreTokenizerStep> steps;
  std::optional<std::int32_t> unknown;
  bool fuse_unknown = false;
  bool ignore_merges = false;
};

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer::Tokenizer(const Gguf& gguf) : Tokenizer(read_gguf(gguf)) {}

Tokenizer Tokenizer::from_folder(const std::string& folder) {
  return Tokenizer(read_tokenizer_folder(folder));
}

Tokenizer::Tokenizer(TokenizerTables tables) : bos_(tables.bos), adds_bos_(tables.adds_bos) {
  auto parts = std::make_unique<Parts>();
  parts->normal_forms = std::move(tables.normal_forms);
  parts->steps = std::move(tables.steps);
  parts->unknown = tables.unknown;
  parts->fuse_unknown = tables.fuse_unknown;
  parts->ignore_merges = tables.ignore_merges;
  for (AddedToken& token : tables.added) {
    if (token.normalized) {
      token.text = parts->normalized(token.text);
      parts->normalized_added.add(std::move(token));
    } else {
      parts->raw_added.add(std::move(token));
    }
  }
  parts->raw_added.finish();
  parts->normalized_added.finish();
  parts_ = std::move(parts);

  bytes_.reserve(tables.tokens.size());  // words_ looks into it, so it must not move
  for (auto& token : tables.tokens) {
    bytes_.push_back(std::move(token.bytes));
    if (token.word) words_.emplace(bytes_.back(), size() - 1);
  }
  for (std::size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    const auto it = words_.find({&byte, 1});
    byte_ids_[b] = it == words_.end() ? -1 : it->second;
  }
  for (std::size_t rank = 0; rank < tables.merges.size(); ++rank) {
    const auto& [left, right, merged] = tables.merges[rank];
    merges_.insert_or_assign(pair_key(left, right), Merge{static_cast<std::int32_t>(rank), merged});
  }
  std::set<std::int32_t> ends(tables.end_tokens.begin(), tables.end_tokens.end());
  for (const char* text : kEndTexts) {
    if (const auto id = special_id(text)) ends.insert(*id);
  }
  end_tokens_.assign(ends.begin(), ends.end());
}

std::optional<std::int32_t> Tokenizer::special_id(std::string_view text) const {
  const auto id = parts_->raw_added.find(text);
  return id ? id : parts_->normalized_added.find(text);
}

bool Tokenizer::is_end(std::int32_t id) const {
  return std::binary_search(end_tokens_.begin(), end_tokens_.end(), id);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, SpecialText special) const {
  if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw Error(ErrorKind::kUsage, "a text of " + format_bytes(text.size()) + " is too long",
                "use a text below 2 GiB");
  }
  const bool parse_special = special == SpecialText::kParse;
  std::vector<std::int32_t> ids;
  parts_->raw_added.each(
      text, parse_special, [&](std::string_view part) { encode_text(part, parse_special, ids); },
      [&](std::int32_t id) { ids.push_back(id); });
  return ids;
}

void Tokenizer::encode_text(std::string_view text, bool parse_special,
                            std::vector<std::int32_t>& ids) const {
  std::size_t valid_begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length > 0) {
      at += length;
      continue;
    }
    encode_valid(text.substr(valid_begin, at - valid_begin), parse_special, ids);
    encode_word(text.substr(at, 1), ids);
    valid_begin = ++at;
  }
  encode_valid(text.substr(valid_begin), parse_special, ids);
}

void Tokenizer::encode_valid(std::string_view text, bool parse_special,
                             std::vector<std::int32_t>& ids) const {
  const std::string normalized = parts_->normalized(text);
  parts_->normalized_added.each(
      normalized, parse_special,
      [&](std::string_view part) {
        each_word(parts_->steps, part, [&](std::string_view word) { encode_word(word, ids); });
      },
      [&](std::int32_t id) { ids.push_back(id); });
}

void Tokenizer::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (parts_->ignore_merges) {
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
  bool after_unknown = false;
  for (const char byte : word) {
    const std::int32_t known = byte_ids_[static_cast<unsigned char>(byte)];
    const std::int32_t id = known >= 0 ? known : parts_->unknown.value_or(-1);
    const bool fused = known < 0 && after_unknown && parts_->fuse_unknown;
    const auto index = static_cast<std::int32_t>(symbols.size());
    if (id >= 0 && !fused) symbols.push_back({id, index - 1, index + 1});
    after_unknown = known < 0;
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
