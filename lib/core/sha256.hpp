#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace sw {

/// SHA-256 as 64 hexadecimal digits.
std::string sha256(std::span<const std::byte> bytes);

/// The same of a file, read in pieces. Throws Error(kInput) when it cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace sw
