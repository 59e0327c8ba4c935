#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Small text functions shared by parsers and error messages.
namespace sw {

/// Splits at every `separator`; "a,,b" gives three parts, "" gives one empty part.
std::vector<std::string> split(std::string_view text, char separator);

/// The candidate with the smallest edit distance to `name`, or "" when none is near (more than a
/// third of the letters differ). For "did you mean" hints.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// "did you mean 'x'?" or, when nothing is near, "known: a, b, c".
std::string suggestion(std::string_view name, const std::vector<std::string>& candidates);

/// The whole text as a number; throws Error(kUsage) that names `what` otherwise. Not-a-number and
/// infinite values are refused.
double parse_double(std::string_view text, std::string_view what);
std::int64_t parse_int(std::string_view text, std::string_view what);

/// Seconds of "90s", "30m", "1.5h", "1h30m" or a plain number of seconds; throws Error(kUsage) that
/// names `what` for anything else and for what is not above 0.
double parse_duration(std::string_view text, std::string_view what);

/// Shortest text that reads back as the same double ("0.2", not "0.20000000000000001").
std::string format_double(double value);

/// "1.5 GiB", "312 MiB", "17 bytes".
std::string format_bytes(std::uint64_t bytes);

/// Bytes of the well-formed UTF-8 sequence at the begin of `text`, 0 when there is none (Unicode
/// Standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
std::size_t utf8_length(std::string_view text);
/// Code point of a well-formed sequence of `length` bytes.
std::uint32_t code_point(std::string_view text, std::size_t length);
/// Offset of the first byte that does not continue valid UTF-8 (overlong forms, surrogates and code
/// points above U+10FFFF are invalid); nothing when the whole text is valid.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);
/// `text` with U+FFFD for every maximal invalid part, as Unicode recommends and Python's
/// decode(errors="replace") does.
std::string to_valid_utf8(std::string_view text);

}  // namespace sw
