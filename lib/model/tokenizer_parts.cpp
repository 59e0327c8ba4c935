#include "model/tokenizer_parts.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <new>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

// White_Space of Unicode, spelled out because \s of PCRE2 includes U+180E.
#define SW_SPACE                                                                     \
  "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
  "\\x{202f}\\x{205f}\\x{3000}"
// The complement, because a class cannot hold a negated one.
#define SW_NOT_SPACE                                                             \
  "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"   \
  "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}" \
  "\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}"

// The tokenizers library knows Unicode 16 in regular expressions, PCRE2 10.42 knows Unicode 14.
// These are the characters of each category that came in between, as parts of a class.
#define SW_NEW_UPPER "\\x{1c89}\\x{a7cb}-\\x{a7cc}\\x{a7da}\\x{a7dc}\\x{10d50}-\\x{10d65}"
#define SW_NEW_LOWER "\\x{1c8a}\\x{a7cd}\\x{a7db}\\x{10d70}-\\x{10d85}\\x{1df25}-\\x{1df2a}"
#define SW_NEW_MODIFIERS                                                                \
  "\\x{10d4e}\\x{10d6f}\\x{16d40}-\\x{16d42}\\x{16d6b}-\\x{16d6c}\\x{1e030}-\\x{1e06d}" \
  "\\x{1e4eb}"
#define SW_NEW_OTHER                                                                    \
  "\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d4d}\\x{10d4f}\\x{10ec2}-\\x{10ec4}"           \
  "\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}" \
  "\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}"  \
  "\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"           \
  "\\x{16100}-\\x{1611d}\\x{16d43}-\\x{16d6a}\\x{18cff}\\x{1b132}\\x{1b155}"            \
  "\\x{1e4d0}-\\x{1e4ea}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}" \
  "\\x{31350}-\\x{323af}"
#define SW_NEW_MARKS                                                                    \
  "\\x{897}\\x{cf3}\\x{ece}\\x{10d69}-\\x{10d6d}\\x{10efc}-\\x{10eff}\\x{11241}"        \
  "\\x{113b8}-\\x{113c0}\\x{113c2}\\x{113c5}\\x{113c7}-\\x{113ca}\\x{113cc}-\\x{113d0}" \
  "\\x{113d2}\\x{113e1}-\\x{113e2}\\x{11f00}-\\x{11f01}\\x{11f03}\\x{11f34}-\\x{11f3a}" \
  "\\x{11f3e}-\\x{11f42}\\x{11f5a}\\x{13440}\\x{13447}-\\x{13455}\\x{1611e}-\\x{1612f}" \
  "\\x{1e08f}\\x{1e4ec}-\\x{1e4ef}\\x{1e5ee}-\\x{1e5ef}"
#define SW_NEW_DIGITS                                                                    \
  "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}" \
  "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e4f0}-\\x{1e4f9}" \
  "\\x{1e5f1}-\\x{1e5fa}"
#define SW_NEW_NUMBERS "\\x{1d2c0}-\\x{1d2d3}"
#define SW_NEW_PUNCTUATION                                                           \
  "\\x{1b4e}-\\x{1b4f}\\x{1b7f}\\x{10d6e}\\x{113d4}-\\x{113d5}\\x{113d7}-\\x{113d8}" \
  "\\x{11b00}-\\x{11b09}\\x{11be1}\\x{11f43}-\\x{11f4f}\\x{16d6d}-\\x{16d6f}\\x{1e5ff}"
#define SW_NEW_SYMBOLS                                                        \
  "\\x{2427}-\\x{2429}\\x{2ffc}-\\x{2fff}\\x{31e4}-\\x{31e5}\\x{31ef}"        \
  "\\x{10d8e}-\\x{10d8f}\\x{1cc00}-\\x{1ccef}\\x{1cd00}-\\x{1ceb3}\\x{1f6dc}" \
  "\\x{1f774}-\\x{1f776}\\x{1f77b}-\\x{1f77f}\\x{1f7d9}\\x{1f8b2}-\\x{1f8bb}" \
  "\\x{1f8c0}-\\x{1f8c1}\\x{1fa75}-\\x{1fa77}\\x{1fa87}-\\x{1fa89}\\x{1fa8f}" \
  "\\x{1faad}-\\x{1faaf}\\x{1fabb}-\\x{1fabf}\\x{1fac6}\\x{1face}-\\x{1facf}" \
  "\\x{1fada}-\\x{1fadc}\\x{1fadf}\\x{1fae8}-\\x{1fae9}\\x{1faf7}-\\x{1faf8}" \
  "\\x{1fbcb}-\\x{1fbef}"

struct Property {
  std::string_view name;   ///< in the pattern
  std::string_view known;  ///< as PCRE2 has it
  std::string_view newer;  ///< members that PCRE2 may not know yet
};

// Without its extensions, PCRE2 has a script as sc:.
constexpr Property kProperties[] = {
    {"L", "\\p{L}", SW_NEW_UPPER SW_NEW_LOWER SW_NEW_MODIFIERS SW_NEW_OTHER},
    {"Lu", "\\p{Lu}", SW_NEW_UPPER},
    {"Ll", "\\p{Ll}", SW_NEW_LOWER},
    {"Lt", "\\p{Lt}", ""},
    {"Lm", "\\p{Lm}", SW_NEW_MODIFIERS},
    {"Lo", "\\p{Lo}", SW_NEW_OTHER},
    {"M", "\\p{M}", SW_NEW_MARKS},
    {"N", "\\p{N}", SW_NEW_DIGITS SW_NEW_NUMBERS},
    {"Nd", "\\p{Nd}", SW_NEW_DIGITS},
    {"Nl", "\\p{Nl}", ""},
    {"No", "\\p{No}", SW_NEW_NUMBERS},
    {"P", "\\p{P}", SW_NEW_PUNCTUATION},
    {"S", "\\p{S}", SW_NEW_SYMBOLS},
    {"Z", "\\p{Z}", ""},
    {"Han", "\\p{sc:Han}", "\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"},
};

struct Range {
  std::uint32_t first;
  std::uint32_t last;
};

// The library's normal forms are those of Unicode 9. What the standard has added since (up to
// Unicode 16) to decompositions, compositions and marks with an order, with neighbours that no
// normal form of Unicode 9 touches.
constexpr Range kNewerThanUnicode9[] = {
    {0x7fd, 0x7fd},     {0x897, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1aff},   {0x1df6, 0x1dfa},   {0x32ff, 0x32ff},   {0xa7f1, 0xa7f4},
    {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x105c0, 0x105ff}, {0x10780, 0x107bf},
    {0x10d00, 0x10d8f}, {0x10e80, 0x10fff}, {0x11070, 0x11070}, {0x1133b, 0x1133b},
    {0x11380, 0x113ff}, {0x1145e, 0x1145e}, {0x11800, 0x1189f}, {0x11900, 0x11aff},
    {0x11d00, 0x11dff}, {0x11f00, 0x11f5f}, {0x16100, 0x1613f}, {0x16d40, 0x16d7f},
    {0x16ff0, 0x16ff6}, {0x1ccd6, 0x1ccf9}, {0x1e030, 0x1e14f}, {0x1e290, 0x1e2ff},
    {0x1e4d0, 0x1e5ff}, {0x1f16c, 0x1f16c}, {0x1fb00, 0x1fbff}};

bool is_newer_than_unicode9(std::uint32_t c) {
  const auto* range =
      std::partition_point(std::begin(kNewerThanUnicode9), std::end(kNewerThanUnicode9),
                           [&](const Range& r) { return r.last < c; });
  return range != std::end(kNewerThanUnicode9) && range->first <= c;
}

bool is_space(std::uint32_t c) {
  return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

/// The last character of `text`, empty when there is no valid one.
std::string_view last_character(std::string_view text) {
  for (std::size_t n = 1; n <= std::min<std::size_t>(4, text.size()); ++n) {
    const std::string_view tail = text.substr(text.size() - n);
    if (utf8_length(tail) == n) return tail;
  }
  return {};
}

std::string_view first_character(std::string_view text) {
  return text.substr(0, utf8_length(text));
}

bool is_space(std::string_view character) {
  return !character.empty() && is_space(code_point(character, character.size()));
}

/// \w of Rust's regular expressions.
bool is_word(std::string_view character) {
  static const Regex word(
      "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}" SW_NEW_UPPER SW_NEW_LOWER
          SW_NEW_MODIFIERS SW_NEW_OTHER SW_NEW_MARKS SW_NEW_DIGITS "]",
      Regex::Syntax::kPcre2);
  bool found = false;
  word.each(character, [&](std::string_view, bool matched) { found = matched; });
  return found;
}

/// Rewrites a pattern of Oniguruma (Ruby's syntax) for PCRE2. What both read alike is copied, what
/// they read differently is translated or refused.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string translate() {
    while (at_ < pattern_.size()) step();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw Error(ErrorKind::kUnsupported,
                "'" + std::string(what) + "' at byte " + std::to_string(at_) + " of the pattern '" +
                    std::string(pattern_.substr(0, 200)) + "' is not implemented");
  }
  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void copy(std::size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void step() {
    const char c = peek();
    if (c == '\\') return escape();
    if (in_class_) return class_character(c);
    if (c == '^' || c == '$') refuse(std::string(1, c));  // line anchors there, text anchors here
    if (c == '(') return group();
    if (c == '{') return repeat();
    if (c == '[') {
      in_class_ = true;
      class_begin_ = at_ + (peek(1) == '^' ? 1 : 0);
      copy(peek(1) == '^' ? 2 : 1);
      if (peek() == ']') refuse("[]");
      return;
    }
    copy(1);
  }

  void class_character(char c) {
    if (c == '[') refuse("a class in a class");
    if (next_is("&&")) refuse("&&");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void group() {
    if (next_is("(*")) refuse("(*");
    if (!next_is("(?")) return copy(1);
    for (const std::string_view form : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (next_is(form)) return copy(form.size());
    }
    if (at_ == 0 && next_is("(?i)")) return copy(4);
    refuse(pattern_.substr(at_, 4));
  }

  void repeat() {
    const std::size_t end = pattern_.find('}', at_);
    const std::string_view counts =
        end == std::string_view::npos ? "" : pattern_.substr(at_ + 1, end - at_ - 1);
    const bool digits = counts.find_first_not_of("0123456789,") == std::string_view::npos;
    const bool one_comma = std::count(counts.begin(), counts.end(), ',') <= 1;
    if (counts.empty() || counts[0] == ',' || !digits || !one_comma) refuse("{");
    copy(counts.size() + 2);
    if (peek() == '+' || peek() == '?') refuse(std::string("}") + peek());
  }

  void escape() {
    const char c = peek(1);
    const auto put = [&](std::string_view text) {
      out_ += text;
      at_ += 2;
    };
    const bool alphanumeric =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == 's') return put_class(SW_SPACE, false, 2);
    if (c == 'S') {
      return in_class_ ? put_class(SW_NOT_SPACE, false, 2) : put_class(SW_SPACE, true, 2);
    }
    if (c == 'd' || c == 'D') return put_class("\\p{Nd}" SW_NEW_DIGITS, c == 'D', 2);
    if (c == 'v') return put("\\x{b}");
    if (c == 'p' || c == 'P') return property();
    if (c == 'u' || c == 'x') return hexadecimal();
    if (std::string_view("rntfae").find(c) != std::string_view::npos || !alphanumeric) {
      return copy(2);
    }
    refuse(std::string("\\") + c);
  }

  /// Writes a class of `content` for the next `size` bytes of the pattern. Neither end of a range
  /// can be a class.
  void put_class(std::string_view content, bool complement, std::size_t size) {
    if (in_class_) {
      if (complement) refuse(pattern_.substr(at_, size));  // PCRE2 has no class in a class
      const bool first = at_ == class_begin_ + 2;          // a dash there is a character
      const bool behind_dash = out_.ends_with('-') && !out_.ends_with("\\-") && !first;
      at_ += size;
      if (behind_dash || (peek() == '-' && peek(1) != ']')) refuse("a range of classes");
      out_ += content;
      return;
    }
    out_.append(complement ? "[^" : "[").append(content).append("]");
    at_ += size;
  }

  void property() {
    const std::size_t end = pattern_.find('}', at_);
    if (peek(2) != '{' || end == std::string_view::npos) refuse(pattern_.substr(at_, 2));
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    bool complement = peek(1) == 'P';
    if (name.starts_with('^')) {
      complement = !complement;
      name.remove_prefix(1);
    }
    const auto* property = std::find_if(std::begin(kProperties), std::end(kProperties),
                                        [&](const Property& p) { return p.name == name; });
    if (property == std::end(kProperties)) refuse(pattern_.substr(at_, end + 1 - at_));
    put_class(std::string(property->known).append(property->newer), complement, end + 1 - at_);
  }

  void hexadecimal() {
    const bool braces = peek(1) == 'x' && peek(2) == '{';
    const std::size_t begin = at_ + (braces ? 3 : 2);
    const std::size_t end = std::min(
        pattern_.size(), braces ? pattern_.find('}', at_) : begin + (peek(1) == 'u' ? 4 : 2));
    const std::string_view digits =
        pattern_.substr(std::min(begin, end), end - std::min(begin, end));
    const bool byte = !braces && peek(1) == 'x';
    if (digits.empty() || digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos ||
        (byte && (digits.size() != 2 || digits[0] > '7')) ||
        (peek(1) == 'u' && digits.size() != 4)) {
      refuse(pattern_.substr(at_, 2));
    }
    out_.append("\\x{").append(digits).append("}");
    at_ = end + (braces ? 1 : 0);
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::size_t class_begin_ = 0;  // of its '[', or '^' behind it
  std::string out_;
};

/// Appends the normal form of `text`, all of whose characters Unicode 9 knows.
void append_normalized(std::string_view text, NormalForm form, std::string& out) {
  const bool compat = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto options =
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0) |
                                     (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE));
  constexpr std::size_t kLongest = 32;  // the longest decomposition has 18 code points
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size() + kLongest);
  std::size_t count = 0;
  int boundary = 0;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    points.resize(count + kLongest);
    const utf8proc_ssize_t written = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(code_point(text, length)), points.data() + count, kLongest,
        static_cast<utf8proc_option_t>((options & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE),
        &boundary);
    if (written < 0 || written > static_cast<utf8proc_ssize_t>(kLongest)) {
      throw Error(ErrorKind::kInput, "the text cannot be brought into a Unicode normal form");
    }
    count += static_cast<std::size_t>(written);
    text.remove_prefix(length);
  }
  points.resize(count);
  // Canonical order. utf8proc's own sort takes quadratic time for long runs of combining marks.
  const auto combining = [](utf8proc_int32_t c) {
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    if (combining(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, points.end(), [&](auto c) { return combining(c) == 0; });
    if (end - begin > 1) {
      std::stable_sort(begin, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    }
    begin = end;
  }
  if (compose) {
    const utf8proc_ssize_t kept = utf8proc_normalize_utf32(
        points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
    points.resize(static_cast<std::size_t>(kept));
  }
  for (const utf8proc_int32_t c : points) {
    utf8proc_uint8_t bytes[4];
    out.append(reinterpret_cast<const char*>(bytes),
               static_cast<std::size_t>(utf8proc_encode_char(c, bytes)));
  }
}

struct FreeContext {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};

struct FreeMatch {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};

void each_word_from(const std::vector<PreTokenizerStep>& steps, std::size_t index,
                    std::string_view text, const std::function<void(std::string_view)>& visit) {
  if (text.empty()) return;
  if (index == steps.size()) return visit(text);
  const PreTokenizerStep& step = steps[index];
  std::string prefixed;
  if (step.prefix_space && text[0] != ' ') {
    prefixed.append(" ").append(text);
    text = prefixed;
  }
  if (!step.pattern) return each_word_from(steps, index + 1, text, visit);
  step.pattern->each(text, [&](std::string_view piece, bool matched) {
    if (matched ? step.drop_matches : step.drop_others) return;
    each_word_from(steps, index + 1, piece, visit);
  });
}

}  // namespace

std::string normalize(std::string_view text, NormalForm form) {
  const auto ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), ascii)) return std::string(text);
  std::string out;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length(text.substr(at));
    if (is_newer_than_unicode9(code_point(text.substr(at), length))) {
      append_normalized(text.substr(begin, at - begin), form, out);
      out += text.substr(at, length);
      begin = at + length;
    }
    at += length;
  }
  append_normalized(text.substr(begin), form, out);
  return out;
}

Regex::Regex(std::string_view pattern, Syntax syntax) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::uint32_t options =
      syntax == Syntax::kLiteral ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options, &error, &offset, nullptr);
  const std::string shown = "'" + std::string(pattern.substr(0, 200)) + "'";
  if (!code) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof message);
    throw Error(ErrorKind::kInput, "the pattern " + shown + " is not a regular expression: " +
                                       reinterpret_cast<const char*>(message));
  }
  code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
  std::uint32_t empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &empty);
  if (empty != 0) {
    throw Error(ErrorKind::kUnsupported, "the pattern " + shown + " can match the empty text");
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

Regex Regex::oniguruma(std::string_view pattern) {
  return {Translator(pattern).translate(), Syntax::kPcre2};
}

void Regex::each(std::string_view text, const Visit& visit) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create_from_pattern(code, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(
      pcre2_match_context_create(nullptr));
  if (!match || !context) throw std::bad_alloc();
  // A run takes some steps for each of its characters, so the limit grows with the text.
  const std::uint64_t steps = std::max<std::uint64_t>(10'000'000, std::uint64_t{8} * text.size());
  pcre2_set_match_limit(context.get(),
                        static_cast<std::uint32_t>(std::min<std::uint64_t>(steps, UINT32_MAX)));
  pcre2_set_heap_limit(context.get(), 1 << 20);  // KiB
  std::size_t done = 0;
  while (done < text.size()) {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), done,
                         PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | options, match.get(), context.get());
    };
    int found = run(0);
    // The interpreter keeps its state on the heap.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = run(PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw Error(ErrorKind::kResource,
                  "the text cannot be cut into words: the pre-tokenizer's pattern takes too many "
                  "steps on it (PCRE2 error " +
                      std::to_string(found) + ")",
                  "use a shorter text");
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    if (range[0] > done) visit(text.substr(done, range[0] - done), false);
    visit(text.substr(range[0], range[1] - range[0]), true);
    done = range[1];
  }
  if (done < text.size()) visit(text.substr(done), false);
}

void each_word(const std::vector<PreTokenizerStep>& steps, std::string_view text,
               const std::function<void(std::string_view)>& visit) {
  each_word_from(steps, 0, text, visit);
}

PreTokenizerStep digits_step(bool individual) {
  // Rust's numeric characters are those of Unicode 17.
  std::string pattern =
      "[\\p{N}" SW_NEW_DIGITS SW_NEW_NUMBERS "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}]";
  if (!individual) pattern += '+';
  return {Regex(pattern, Regex::Syntax::kPcre2)};
}

PreTokenizerStep gpt2_step() {
  return {
      Regex::oniguruma("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                       "|\\s+(?!\\S)|\\s+")};
}

void AddedTokens::add(AddedToken token) {
  if (token.text.empty()) return;
  begins_[static_cast<unsigned char>(token.text[0])] = true;
  tokens_.push_back(std::move(token));
}

void AddedTokens::finish() {
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(),
                            [](const auto& a, const auto& b) { return a.text == b.text; }),
                tokens_.end());
}

std::optional<std::int32_t> AddedTokens::find(std::string_view text) const {
  const auto it =
      std::lower_bound(tokens_.begin(), tokens_.end(), text,
                       [](const auto& token, std::string_view t) { return token.text < t; });
  if (it == tokens_.end() || it->text != text) return std::nullopt;
  return it->id;
}

const AddedToken* AddedTokens::match(std::string_view text) const {
  if (text.empty() || !begins_[static_cast<unsigned char>(text[0])]) return nullptr;
  const AddedToken* best = nullptr;
  // [low, high) are the tokens that agree with text[0, length).
  auto low = tokens_.begin();
  auto high = tokens_.end();
  for (std::size_t length = 0; low != high; ++length) {
    if (low->text.size() == length) {
      best = &*low;
      ++low;  // the others of the range are longer
    }
    if (length == text.size()) break;
    const auto next = static_cast<unsigned char>(text[length]);
    const auto letter = [&](const AddedToken& token) {
      return static_cast<unsigned char>(token.text[length]);
    };
    low = std::partition_point(low, high, [&](const auto& t) { return letter(t) < next; });
    high = std::partition_point(low, high, [&](const auto& t) { return letter(t) <= next; });
  }
  return best;
}

void AddedTokens::each(std::string_view text, bool parse_special,
                       const std::function<void(std::string_view)>& on_text,
                       const std::function<void(std::int32_t)>& on_token) const {
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token = match(text.substr(at));
    if (!token) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + token->text.size();
    at = end;  // also past a match that does not count
    if (token->special && !parse_special) continue;
    if (token->single_word && (is_word(last_character(text.substr(0, begin))) ||
                               is_word(first_character(text.substr(end))))) {
      continue;
    }
    if (token->lstrip) {
      while (begin > done && is_space(last_character(text.substr(0, begin)))) {
        begin -= last_character(text.substr(0, begin)).size();
      }
    }
    if (token->rstrip) {
      while (is_space(first_character(text.substr(end)))) {
        end += first_character(text.substr(end)).size();
      }
    }
    if (begin > done) on_text(text.substr(done, begin - done));
    on_token(token->id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done));
}

ByteAlphabet::ByteAlphabet() {
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    letters_[printable ? b : next++] = static_cast<char>(b);
  }
}

std::optional<std::string> ByteAlphabet::bytes(std::string_view text) const {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const auto it = length == 0 ? letters_.end() : letters_.find(code_point(text, length));
    if (it == letters_.end()) return std::nullopt;
    out += it->second;
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace sw
