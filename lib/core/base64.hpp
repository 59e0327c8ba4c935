#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Base64 (RFC 4648, with padding): bytes as text where only text can stand, a third longer.
namespace sw {

std::string to_base64(std::span<const std::byte> bytes);

/// The bytes, or nothing when the text is not canonical base64: another character, a length that is
/// no multiple of four, padding elsewhere than at the end, or bits set in what the padding drops.
std::optional<std::vector<std::byte>> from_base64(std::string_view text);

}  // namespace sw
