#pragma once

#include <string>
#include <string_view>

/// A method with its settings as a JSON file, for what is too long to type and worth a name:
///
///   {"description": "...", "source": "...", "method": "NAME", "options": {"option": value, ...}}
///
/// Values are texts, numbers or booleans, or lists of them, which stand for `value|value` in a
/// SPEC. configs/methods holds the published settings.
namespace sw {

/// Whether a SPEC names such a file: it ends with ".json", which no method does.
bool is_method_file(std::string_view spec);

/// The SPEC that stands in the text of a file. `title` begins the messages. Throws Error(kInput)
/// for what is no such object and Error(kUsage) for keys that it cannot have, with the nearest one;
/// options are checked where the SPEC is used.
std::string parse_method_file(std::string_view text, const std::string& title);

/// A SPEC as it is, or that of the file which it names. Throws as above, and Error(kInput) when the
/// file cannot be read.
std::string resolve_method(const std::string& spec);

}  // namespace sw
