#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/text.hpp"
#include "model/tokenizer_parts.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

/// A value of a file together with its place in it, for messages.
class Node {
 public:
  Node(const Json& value, std::string path, std::string place)
      : value_(&value), path_(std::move(path)), place_(std::move(place)) {}

  const Json& value() const { return *value_; }
  bool is_null() const { return value_->is_null(); }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInput, where() + what, "fetch the file again");
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::kUnsupported, where() + what + " is not implemented",
                "use a model with byte-level BPE, such as Llama 3, Qwen or SmolLM2");
  }
  /// Adds path and place to errors of a pattern.
  [[noreturn]] void rethrow(const Error& error) const {
    throw Error(error.kind(), where() + error.what(), error.hint());
  }

  /// Null counts as absent.
  std::optional<Node> find(const char* key) const {
    if (!value_->is_object()) fail("is not an object");
    const auto it = value_->find(key);
    if (it == value_->end() || it->is_null()) return std::nullopt;
    return member(key, *it);
  }
  Node member(const std::string& key, const Json& value) const {
    return {value, path_, place_.empty() ? key : place_ + "." + key};
  }
  Node at(const char* key) const {
    auto found = find(key);
    if (!found) fail("has no '" + std::string(key) + "'");
    return *found;
  }
  std::vector<Node> list() const {
    if (!value_->is_array()) fail("is not a list");
    std::vector<Node> nodes;
    for (std::size_t i = 0; i < value_->size(); ++i) nodes.push_back(item(i));
    return nodes;
  }
  Node item(std::size_t i) const {
    return {(*value_)[i], path_, place_ + "[" + std::to_string(i) + "]"};
  }
  const std::string& text() const {
    if (!value_->is_string()) fail("is not a text");
    return value_->get_ref<const std::string&>();
  }
  bool boolean() const {
    if (!value_->is_boolean()) fail("is neither true nor false");
    return value_->get<bool>();
  }
  bool boolean(const char* key, bool otherwise) const {
    const auto found = find(key);
    return found ? found->boolean() : otherwise;
  }
  /// An id below `limit`.
  std::int32_t id(std::int64_t limit) const {
    if (!value_->is_number_integer()) fail("is not a token id");
    const bool too_large =
        value_->is_number_unsigned() &&
        value_->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int32_t>::max()};
    const std::int64_t id = too_large ? limit : value_->get<std::int64_t>();
    if (id < 0 || id >= limit) {
      fail("is " + value_->dump() + ", but there are " + std::to_string(limit) +
           " tokens, with the ids from 0 on");
    }
    return static_cast<std::int32_t>(id);
  }
  const std::string& type() const { return at("type").text(); }

 private:
  std::string where() const {
    return "'" + path_ + "': " + (place_.empty() ? "it " : "'" + place_ + "' ");
  }

  const Json* value_;
  std::string path_;
  std::string place_;
};

std::string quote(const std::string& text) { return "'" + to_valid_utf8(text.substr(0, 64)) + "'"; }

void read_normalizer(const Node& node, std::vector<NormalForm>& forms) {
  const std::string& type = node.type();
  if (type == "Sequence") {
    for (const Node& part : node.at("normalizers").list()) read_normalizer(part, forms);
  } else if (type == "NFC") {
    forms.push_back(NormalForm::kNfc);
  } else if (type == "NFD") {
    forms.push_back(NormalForm::kNfd);
  } else if (type == "NFKC") {
    forms.push_back(NormalForm::kNfkc);
  } else if (type == "NFKD") {
    forms.push_back(NormalForm::kNfkd);
  } else {
    node.refuse("has the type " + quote(type) + ", which");
  }
}

std::optional<Regex> read_pattern(const Node& node) {
  try {
    if (const auto regex = node.find("Regex")) return Regex::oniguruma(regex->text());
    if (const auto text = node.find("String")) {
      if (text->text().empty()) return std::nullopt;
      return Regex(text->text(), Regex::Syntax::kLiteral);
    }
  } catch (const Error& error) {
    node.rethrow(error);
  }
  node.fail("has neither 'Regex' nor 'String'");
}

PreTokenizerStep read_split(const Node& node) {
  PreTokenizerStep step{read_pattern(node.at("pattern"))};
  const bool invert = node.boolean("invert", false);
  const std::string& behavior = node.at("behavior").text();
  if (behavior == "Removed") {
    (invert ? step.drop_others : step.drop_matches) = true;
  } else if (behavior != "Isolated") {
    node.refuse("has the behavior " + quote(behavior) + ", which");
  }
  return step;
}

/// Returns whether the bytes are mapped to their letters, after which no step can follow.
void read_pre_tokenizer(const Node& node, std::vector<PreTokenizerStep>& steps, bool& byte_level) {
  const std::string& type = node.type();
  if (type == "Sequence") {
    for (const Node& part : node.at("pretokenizers").list()) {
      read_pre_tokenizer(part, steps, byte_level);
    }
    return;
  }
  if (byte_level) node.refuse("stands behind ByteLevel, which");
  if (type == "ByteLevel") {
    PreTokenizerStep step;
    if (node.boolean("use_regex", true)) step = gpt2_step();
    step.prefix_space = node.boolean("add_prefix_space", true);
    steps.push_back(std::move(step));
    byte_level = true;
  } else if (type == "Split") {
    steps.push_back(read_split(node));
  } else if (type == "Digits") {
    steps.push_back(digits_step(node.boolean("individual_digits", false)));
  } else {
    node.refuse("has the type " + quote(type) + ", which");
  }
}

/// Text of the special token that is put in front of an input, if one is.
std::optional<std::string> read_post_processor(const Node& node) {
  const std::string& type = node.type();
  if (type == "ByteLevel") return std::nullopt;
  if (type == "Sequence") {
    std::optional<std::string> bos;
    for (const Node& part : node.at("processors").list()) {
      if (auto found = read_post_processor(part)) bos = std::move(found);
    }
    return bos;
  }
  if (type != "TemplateProcessing") node.refuse("has the type " + quote(type) + ", which");
  const std::vector<Node> single = node.at("single").list();
  if (single.empty()) node.fail("has an empty template");
  const auto first = single[0].find("SpecialToken");
  if (!first) return std::nullopt;
  if (single.size() > 1 && single[1].find("SpecialToken")) {
    single[1].refuse("is a second special token in front, which");
  }
  return first->at("id").text();
}

void read_decoder(const Node& node) {
  const std::string& type = node.type();
  if (type == "Sequence") {
    for (const Node& part : node.at("decoders").list()) read_decoder(part);
  } else if (type != "ByteLevel") {
    node.refuse("has the type " + quote(type) + ", which");
  }
}

void refuse_options(const Node& model) {
  if (const auto type = model.find("type"); type && type->text() != "BPE") {
    model.refuse("has the type " + quote(type->text()) + ", which");
  }
  if (const auto dropout = model.find("dropout")) {
    if (!dropout->value().is_number()) dropout->fail("is not a number");
    if (dropout->value().get<double>() != 0) dropout->refuse("is not 0, which");
  }
  if (model.boolean("byte_fallback", false)) model.refuse("has byte_fallback, which");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const auto affix = model.find(key); affix && !affix->text().empty()) {
      affix->refuse("is " + quote(affix->text()) + ", which");
    }
  }
}

/// Reads vocabulary, merges and added tokens; checks that the ids are 0, 1, ...
class TableReader {
 public:
  TableReader(const Node& root, TokenizerTables& tables) : root_(root), tables_(tables) {}

  void read() {
    const Node model = root_.at("model");
    refuse_options(model);
    tables_.ignore_merges = model.boolean("ignore_merges", false);
    const Node vocab = model.at("vocab");
    if (!vocab.value().is_object()) vocab.fail("is not an object");
    std::vector<Node> added;
    if (const auto list = root_.find("added_tokens")) added = list->list();
    std::size_t count = vocab.value().size();
    for (const Node& token : added) {
      if (!vocab.value().contains(token.at("content").text())) ++count;
    }
    if (count == 0) vocab.fail("is empty");
    if (count > (std::size_t{1} << 30)) vocab.fail("is too large");
    limit_ = static_cast<std::int64_t>(count);
    tables_.tokens.resize(count);
    texts_.resize(count);
    read_vocab(vocab);
    for (const Node& token : added) read_added(token);
    if (const auto unknown = model.find("unk_token"); unknown && !unknown->text().empty()) {
      read_unknown(*unknown, model.boolean("fuse_unk", false));
    }
    read_merges(model.at("merges"));
  }

 private:
  void read_vocab(const Node& vocab) {
    const ByteAlphabet alphabet;
    for (const auto& [text, value] : vocab.value().items()) {
      const Node node = vocab.member(to_valid_utf8(text.substr(0, 64)), value);
      const std::int32_t id = node.id(limit_);
      take(node, text, id);
      const auto bytes = alphabet.bytes(text);
      tables_.tokens[static_cast<std::size_t>(id)] = {bytes.value_or(text), bytes.has_value()};
      id_of_text_.emplace(text, id);
    }
  }

  void read_added(const Node& node) {
    const std::string& text = node.at("content").text();
    const std::int32_t id = node.at("id").id(limit_);
    if (text.empty()) node.fail("has an empty content");
    const auto known = id_of_text_.find(text);
    if (known == id_of_text_.end()) {
      take(node, text, id);
      tables_.tokens[static_cast<std::size_t>(id)] = {text, false};
    } else if (known->second != id) {
      node.fail("has the id " + std::to_string(id) + ", but the vocabulary gives " + quote(text) +
                " the id " + std::to_string(known->second));
    }
    const bool special = node.boolean("special", false);
    tables_.added.push_back({.text = text,
                             .id = id,
                             .special = special,
                             .normalized = node.boolean("normalized", !special),
                             .lstrip = node.boolean("lstrip", false),
                             .rstrip = node.boolean("rstrip", false),
                             .single_word = node.boolean("single_word", false)});
  }

  /// Gives `id` to `text`. As many texts as ids, and each id at most once: no id is left out.
  void take(const Node& node, const std::string& text, std::int32_t id) {
    auto& owner = texts_[static_cast<std::size_t>(id)];
    if (owner) {
      node.fail("gives " + quote(text) + " the id " + std::to_string(id) + ", which " +
                quote(*owner) + " has");
    }
    owner = text;
  }

  /// The token of bytes that no token has; as a rule there are none, and it need not exist.
  void read_unknown(const Node& unknown, bool fuse) {
    std::set<char> bytes;
    for (const auto& token : tables_.tokens) {
      if (token.word && token.bytes.size() == 1) bytes.insert(token.bytes[0]);
    }
    if (bytes.size() == 256) return;
    const auto it = id_of_text_.find(unknown.text());
    if (it == id_of_text_.end())
      unknown.fail("is " + quote(unknown.text()) + ", which is no token");
    tables_.unknown = it->second;
    tables_.fuse_unknown = fuse;
  }

  std::int32_t find(const Node& merges, std::size_t rank, const std::string& text) const {
    const auto it = id_of_text_.find(text);
    if (it == id_of_text_.end()) {
      merges.item(rank).fail("needs the token " + quote(text) + ", which is not in the vocabulary");
    }
    return it->second;
  }

  void read_merges(const Node& merges) {
    if (!merges.value().is_array()) merges.fail("is not a list");
    if (merges.value().size() > (std::size_t{1} << 30)) merges.fail("is too long");
    tables_.merges.reserve(merges.value().size());
    for (std::size_t rank = 0; rank < merges.value().size(); ++rank) {
      const Json& merge = merges.value()[rank];
      std::vector<std::string> parts;
      if (merge.is_string()) {
        parts = split(merge.get_ref<const std::string&>(), ' ');
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        parts = {merge[0].get<std::string>(), merge[1].get<std::string>()};
      }
      if (parts.size() != 2 || parts[0].empty() || parts[1].empty()) {
        merges.item(rank).fail("is not two tokens");
      }
      tables_.merges.push_back({find(merges, rank, parts[0]), find(merges, rank, parts[1]),
                                find(merges, rank, parts[0] + parts[1])});
    }
  }

  const Node& root_;
  TokenizerTables& tables_;
  std::int64_t limit_ = 0;
  std::vector<std::optional<std::string>> texts_;             // of each id
  std::unordered_map<std::string, std::int32_t> id_of_text_;  // of the model's vocabulary
};

/// A token of tokenizer_config.json: a text, or an object with the text as "content".
std::optional<std::string> token_text(const Node& config, const char* key) {
  const auto node = config.find(key);
  if (!node) return std::nullopt;
  return node->value().is_object() ? node->at("content").text() : node->text();
}

}  // namespace

nlohmann::json read_json_object(const std::string& path) {
  constexpr int kMaxDepth = 64;
  constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 26;  // the largest in use have 35 MB
  return parse_json_object(read_file(path, kMaxBytes), "'" + path + "'", kMaxDepth);
}

TokenizerTables read_tokenizer_folder(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  const Json json = read_json_object(path);
  const Node root(json, path, "");
  TokenizerTables tables;
  TableReader(root, tables).read();
  if (const auto node = root.find("normalizer")) read_normalizer(*node, tables.normal_forms);
  bool byte_level = false;
  if (const auto node = root.find("pre_tokenizer")) {
    read_pre_tokenizer(*node, tables.steps, byte_level);
  }
  if (!byte_level) root.refuse("has no ByteLevel pre_tokenizer, which");
  if (const auto node = root.find("decoder")) read_decoder(*node);

  const auto id_of = [&](const Node& node, const std::string& text) {
    const auto added = std::find_if(tables.added.begin(), tables.added.end(),
                                    [&](const AddedToken& t) { return t.text == text; });
    if (added != tables.added.end()) return added->id;
    const Json& vocab = json["model"]["vocab"];
    const auto it = vocab.find(text);
    if (it == vocab.end()) node.fail("names the token " + quote(text) + ", which does not exist");
    return it->get<std::int32_t>();
  };
  if (const auto node = root.find("post_processor")) {
    if (const auto text = read_post_processor(*node)) {
      tables.bos = id_of(*node, *text);
      tables.adds_bos = true;
    }
  }
  const std::string config_path = folder + "/tokenizer_config.json";
  if (std::filesystem::exists(config_path)) {
    const Json config_json = read_json_object(config_path);
    const Node config(config_json, config_path, "");
    const auto bos = token_text(config, "bos_token");
    if (bos && !tables.bos) tables.bos = id_of(config, *bos);
    if (const auto eos = token_text(config, "eos_token")) {
      tables.end_tokens.push_back(id_of(config, *eos));
    }
    tables.adds_bos = config.boolean("add_bos_token", tables.adds_bos) && tables.bos;
  }
  const std::string generation_path = folder + "/generation_config.json";
  if (std::filesystem::exists(generation_path)) {
    const Json generation_json = read_json_object(generation_path);
    const Node generation(generation_json, generation_path, "");
    const auto limit = static_cast<std::int64_t>(tables.tokens.size());
    if (const auto eos = generation.find("eos_token_id")) {
      if (!eos->value().is_array()) {
        tables.end_tokens.push_back(eos->id(limit));
      } else {
        for (const Node& id : eos->list()) tables.end_tokens.push_back(id.id(limit));
      }
    }
  }
  return tables;
}

}  // namespace sw
