#include "core/safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/tensor.hpp"

namespace sw {
namespace {

/// The format's own limit for the header.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

Error wrong(const std::string& message) {
  return Error(ErrorKind::kInput, message,
               "the file is damaged or incomplete; copy or export it again");
}

/// Bytes of one element; nothing for a dtype that the format does not know.
std::optional<std::int64_t> dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
      {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};
  const auto it = kBytes.find(dtype);
  return it == kBytes.end() ? std::nullopt : std::optional(it->second);
}

SafetensorsTensor parse_tensor(const std::string& title, const nlohmann::json& value,
                               std::span<const std::byte> data) {
  const auto fail = [&](const std::string& what) { return wrong(title + " " + what); };
  if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() ||
      !value.contains("shape") || !value["shape"].is_array() || !value.contains("data_offsets") ||
      !value["data_offsets"].is_array() || value["data_offsets"].size() != 2) {
    throw fail("lacks dtype, shape or data_offsets");
  }
  SafetensorsTensor tensor;
  tensor.dtype = value["dtype"].get<std::string>();
  for (const auto& extent : value["shape"]) {
    if (!extent.is_number_unsigned()) throw fail("has a shape that is not of whole numbers");
    const auto number = extent.get<std::uint64_t>();
    if (number > std::uint64_t{1} << 62) throw fail("has a shape that overflows");
    tensor.shape.push_back(static_cast<std::int64_t>(number));
  }
  for (const auto& offset : value["data_offsets"]) {
    if (!offset.is_number_unsigned()) throw fail("has data_offsets that are not whole numbers");
  }
  const auto begin = value["data_offsets"][0].get<std::uint64_t>();
  const auto end = value["data_offsets"][1].get<std::uint64_t>();
  if (begin > end || end > data.size()) {
    throw fail("lies at bytes " + std::to_string(begin) + " .. " + std::to_string(end) + " of " +
               std::to_string(data.size()) + " bytes of data");
  }
  const auto element = dtype_bytes(tensor.dtype);
  if (!element) throw fail("has the unknown dtype '" + tensor.dtype.substr(0, 20) + "'");
  auto factors = tensor.shape;
  factors.push_back(*element);
  const auto bytes = checked_product(factors);
  if (!bytes || static_cast<std::uint64_t>(*bytes) != end - begin) {
    throw fail("has the shape " + shape_text(tensor.shape) + " of " + tensor.dtype + ", but " +
               std::to_string(end - begin) + " bytes");
  }
  tensor.data = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(*bytes));
  return tensor;
}

}  // namespace

Safetensors::Safetensors(const std::string& path) : file_(path) {
  const std::string file = "'" + path + "': ";
  const auto bytes = file_.bytes();
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes) throw wrong(file + "the file is too short for a header");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - sizeof header_bytes) {
    throw wrong(file + "the header of the safetensors file would have " +
                std::to_string(header_bytes) + " bytes, more than the file or the format allows");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof header_bytes,
                              static_cast<std::size_t>(header_bytes));
  const auto data = bytes.subspan(sizeof header_bytes + static_cast<std::size_t>(header_bytes));

  const auto header = parse_json_object(text, file + "the header of the safetensors file", 3);
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      tensors_.emplace(name,
                       parse_tensor(file + "tensor '" + name.substr(0, 60) + "'", value, data));
      continue;
    }
    if (!value.is_object()) throw wrong(file + "__metadata__ is not an object");
    for (const auto& [key, entry] : value.items()) {
      if (!entry.is_string()) {
        throw wrong(file + "metadata '" + key.substr(0, 60) + "' is not a string");
      }
      metadata_.emplace(key, entry.get<std::string>());
    }
  }

  // The tensors must cover the data without gaps and overlaps, as the format demands.
  std::vector<std::pair<std::span<const std::byte>, const std::string*>> order;
  for (const auto& [name, tensor] : tensors_) order.emplace_back(tensor.data, &name);
  std::ranges::sort(
      order, {}, [](const auto& part) { return std::pair(part.first.data(), part.first.size()); });
  const std::byte* at = data.data();
  for (const auto& [part, name] : order) {
    if (part.data() != at) {
      throw wrong(file + "tensor '" + name->substr(0, 60) + "' starts at byte " +
                  std::to_string(part.data() - data.data()) +
                  " of the data, where the tensors before it end at byte " +
                  std::to_string(at - data.data()));
    }
    at += part.size();
  }
  if (at != data.data() + data.size()) {
    throw wrong(file + "the tensors end at byte " + std::to_string(at - data.data()) + " of " +
                std::to_string(data.size()) + " bytes of data");
  }
}

}  // namespace sw
