#include "dataset/niah.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "core/text.hpp"

namespace sw {

extern const char* const kNiahGrammar;  // niah_grammar.cpp.in

namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 24;

const nlohmann::json& grammar() {
  static const nlohmann::json json = nlohmann::json::parse(kNiahGrammar);
  return json;
}

using Words = std::map<std::string, std::string, std::less<>>;

/// `text` with every {name} replaced by word(name).
template <class F>
std::string fill_in(std::string_view text, F&& word) {
  std::string out;
  for (;;) {
    const std::size_t open = text.find('{');
    const std::size_t close = text.find('}', open);
    out += text.substr(0, open);
    if (close == std::string_view::npos) return out;
    out += word(text.substr(open + 1, close - open - 1));
    text.remove_prefix(close + 1);
  }
}

/// Endless text, a sentence at a time.
class Haystack {
 public:
  struct Sentence {
    std::string text;
    bool ends_paragraph;
  };

  explicit Haystack(std::uint64_t seed) : rng_(seed) {}

  const Sentence& sentence(std::size_t i) {
    while (sentences_.size() <= i) add_paragraph();
    return sentences_[i];
  }

 private:
  void add_paragraph() {
    bound_.clear();
    for (const auto& name : grammar().at("bound")) {
      const auto key = name.get<std::string>();
      bound_[key] = grammar().at(key).at(draw(key)).get<std::string>();
    }
    const std::uint64_t middle = 3 + rng_.below(5);
    add_sentence("opening", false);
    for (std::uint64_t i = 0; i < middle; ++i) add_sentence("sentence", false);
    add_sentence("closing", true);
  }

  void add_sentence(const std::string& list, bool ends_paragraph) {
    std::string text = expand(grammar().at(list).at(draw(list)).get_ref<const std::string&>());
    text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
    sentences_.push_back({std::move(text), ends_paragraph});
  }

  std::string expand(std::string_view text) {
    return fill_in(text, [&](std::string_view name) {
      if (const auto it = bound_.find(name); it != bound_.end()) return it->second;
      const std::string key(name);
      return expand(grammar().at(key).at(draw(key)).get_ref<const std::string&>());
    });
  }

  /// Index of an entry of `list`, never the same twice in a row.
  std::size_t draw(const std::string& list) {
    const std::size_t count = grammar().at(list).size();
    std::size_t i = rng_.below(count);
    const auto [last, first_time] = last_.try_emplace(list, i);
    if (!first_time && last->second == i) i = (i + 1) % count;
    return last->second = i;
  }

  SplitMix64 rng_;
  Words bound_;
  std::map<std::string, std::size_t> last_;
  std::vector<Sentence> sentences_;
};

struct Needle {
  std::string key;
  std::string value;
  double depth;
};

std::vector<Needle> draw_needles(const NiahOptions& options) {
  // A stream of its own: the haystack of a seed is the same for any number of needles.
  SplitMix64 rng(options.seed ^ 0x6E65656465736E65ull);
  auto keys = grammar().at("key").get<std::vector<std::string>>();
  std::vector<Needle> needles;
  while (std::ssize(needles) < options.needles) {
    const std::size_t i = needles.size();
    std::swap(keys[i], keys[i + rng.below(keys.size() - i)]);
    const std::string value = std::to_string(1000000 + rng.below(9000000));
    const double depth = i == 0 ? options.depth : rng.uniform();
    const auto same = [&](const Needle& n) { return n.value == value; };
    if (std::none_of(needles.begin(), needles.end(), same)) {
      needles.push_back({keys[i], value, depth});
    }
  }
  return needles;
}

std::string fill_needle(std::string_view text, const Needle& needle) {
  return fill_in(text, [&](std::string_view name) {
    return name == "value" ? needle.value : name == "key" ? needle.key : std::string();
  });
}

NiahSample assemble(const NiahOptions& options, const std::vector<Needle>& needles,
                    Haystack& haystack, std::int64_t sentences) {
  const std::string needle_text = grammar().at("needle");
  std::multimap<std::int64_t, const Needle*> before;  // index of a sentence -> needles before it
  for (const Needle& needle : needles) {
    const auto at = std::llround(needle.depth * static_cast<double>(sentences));
    before.emplace(static_cast<std::int64_t>(at), &needle);
  }
  NiahSample out;
  const Needle& asked = needles.front();
  out.needle = fill_needle(needle_text, asked);
  std::string& text = out.sample.prompt;
  text = grammar().at("intro").get<std::string>() + "\n\n";
  for (std::int64_t i = 0; i <= sentences; ++i) {
    const auto [first, last] = before.equal_range(i);
    for (auto it = first; it != last; ++it) {
      const std::string sentence = fill_needle(needle_text, *it->second);
      if (it->second == &asked) {
        const std::size_t begin = text.size() + sentence.find(asked.value);
        out.answer_spans.push_back({begin, begin + asked.value.size()});
      }
      text += sentence + " ";
    }
    if (i < sentences) {
      const auto& sentence = haystack.sentence(static_cast<std::size_t>(i));
      text += sentence.text + (sentence.ends_paragraph ? "\n\n" : " ");
    }
  }
  while (text.back() == ' ' || text.back() == '\n') text.pop_back();
  const std::string question =
      options.question.empty() ? grammar().at("question").get<std::string>() : options.question;
  out.sample.question = "\n\n" + fill_needle(question, asked);
  text += out.sample.question;
  out.sample.dataset = "niah";
  out.sample.id = "depth=" + format_double(options.depth) +
                  ",needles=" + std::to_string(options.needles) +
                  ",seed=" + std::to_string(options.seed);
  if (options.question.empty()) {
    out.sample.answer_prefix = fill_needle(grammar().at("answer_prefix").get<std::string>(), asked);
  }
  out.sample.answers = {asked.value};
  return out;
}

void check(const NiahOptions& options) {
  const auto refuse = [](const std::string& message, const std::string& hint) {
    throw Error(ErrorKind::kUsage, "needle in a haystack: " + message, hint);
  };
  if (!(options.depth >= 0 && options.depth <= 1)) {
    refuse("the depth " + format_double(options.depth) + " is not in 0..1",
           "0 puts the needle at the begin, 1 at the end");
  }
  if (options.needles < 1 || options.needles > max_niah_needles()) {
    refuse(std::to_string(options.needles) + " needles cannot be hidden",
           "choose 1 to " + std::to_string(max_niah_needles()));
  }
  if (options.length < 1 || options.length > kMaxLength) {
    refuse("the length " + std::to_string(options.length) + " is out of range",
           "choose at most " + std::to_string(kMaxLength));
  }
}

}  // namespace

std::int64_t count_words(const Sample& sample) {
  std::int64_t words = 0;
  bool inside = false;
  for (const char c : sample.prompt) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    words += !space && !inside;
    inside = !space;
  }
  return words;
}

NiahSample make_niah(const NiahOptions& options, const SampleMeasure& measure) {
  check(options);
  const std::vector<Needle> needles = draw_needles(options);
  Haystack haystack(options.seed);
  const auto length_of = [&](std::int64_t sentences) {
    return measure(assemble(options, needles, haystack, sentences).sample);
  };
  std::int64_t fits = 0;
  if (const std::int64_t least = length_of(0); least > options.length) {
    throw Error(ErrorKind::kUsage,
                "needle in a haystack: the length " + std::to_string(options.length) +
                    " has no room for the needles and the question",
                "choose at least " + std::to_string(least) + ", or fewer needles");
  }
  std::int64_t too_many = 1;
  while (length_of(too_many) <= options.length) fits = std::exchange(too_many, 2 * too_many);
  while (too_many - fits > 1) {
    const std::int64_t middle = fits + (too_many - fits) / 2;
    (length_of(middle) <= options.length ? fits : too_many) = middle;
  }
  return assemble(options, needles, haystack, fits);
}

std::int64_t max_niah_needles() { return std::ssize(grammar().at("key")); }

}  // namespace sw
