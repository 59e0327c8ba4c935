#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "core/file.hpp"
#include "core/text.hpp"
#include "trace/container.hpp"

namespace sw {
namespace {

/// The format's own limit for the header.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

Error wrong(const std::string& message) {
  return Error(ErrorKind::kInput, message,
               "the file is damaged or incomplete; copy or export it again");
}

std::string_view safetensors_dtype(DType dtype) {
  return dtype == DType::kBf16 ? "BF16" : dtype == DType::kF16 ? "F16" : "F32";
}

struct Entry {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes within the data
  std::uint64_t end = 0;
};

std::optional<std::uint64_t> dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> kBytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
      {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};
  const auto it = kBytes.find(dtype);
  return it == kBytes.end() ? std::nullopt : std::optional(it->second);
}

/// The header as JSON: depth, names and types are checked while it is read, so that a hostile one
/// cannot make a deep or ambiguous value.
nlohmann::json parse_header(std::string_view text) {
  std::set<std::string> names;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (depth > 3) throw wrong("the header of the safetensors file is nested too deeply");
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !names.insert(value.get<std::string>()).second) {
      throw wrong("the header of the safetensors file names '" +
                  value.get<std::string>().substr(0, 60) + "' twice");
    }
    return true;
  };
  try {
    auto header = nlohmann::json::parse(text, watch);
    if (header.is_object()) return header;
  } catch (const nlohmann::json::exception&) {
    // Told below.
  }
  throw wrong("the header of the safetensors file is not a JSON object");
}

Entry parse_entry(const std::string& name, const nlohmann::json& value, std::uint64_t data_bytes) {
  const auto fail = [&](const std::string& what) -> Error {
    return wrong("tensor '" + name.substr(0, 60) + "' " + what);
  };
  if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() ||
      !value.contains("shape") || !value["shape"].is_array() || !value.contains("data_offsets") ||
      !value["data_offsets"].is_array() || value["data_offsets"].size() != 2) {
    throw fail("lacks dtype, shape or data_offsets");
  }
  Entry entry;
  entry.dtype = value["dtype"].get<std::string>();
  for (const auto& extent : value["shape"]) {
    if (!extent.is_number_unsigned()) throw fail("has a shape that is not of whole numbers");
    const auto number = extent.get<std::uint64_t>();
    if (number > std::uint64_t{1} << 62) throw fail("has a shape that overflows");
    entry.shape.push_back(static_cast<std::int64_t>(number));
  }
  for (const auto& offset : value["data_offsets"]) {
    if (!offset.is_number_unsigned()) throw fail("has data_offsets that are not whole numbers");
  }
  entry.begin = value["data_offsets"][0].get<std::uint64_t>();
  entry.end = value["data_offsets"][1].get<std::uint64_t>();
  if (entry.begin > entry.end || entry.end > data_bytes) {
    throw fail("lies at bytes " + std::to_string(entry.begin) + " .. " + std::to_string(entry.end) +
               " of " + std::to_string(data_bytes) + " bytes of data");
  }
  const auto element = dtype_bytes(entry.dtype);
  if (!element) throw fail("has the unknown dtype '" + entry.dtype.substr(0, 20) + "'");
  auto factors = entry.shape;
  factors.push_back(static_cast<std::int64_t>(*element));
  const auto bytes = checked_product(factors);
  if (!bytes || static_cast<std::uint64_t>(*bytes) != entry.end - entry.begin) {
    throw fail("has the shape " + shape_text(entry.shape) + " of " + entry.dtype + ", but " +
               std::to_string(entry.end - entry.begin) + " bytes");
  }
  return entry;
}

/// The tensors must cover the data without gaps and overlaps, as the format demands.
void check_coverage(const std::map<std::string, Entry>& entries, std::uint64_t data_bytes) {
  std::vector<const std::pair<const std::string, Entry>*> order;
  for (const auto& named : entries) order.push_back(&named);
  std::ranges::sort(order, {}, [](const auto* named) {
    return std::pair(named->second.begin, named->second.end);
  });
  std::uint64_t at = 0;
  for (const auto* named : order) {
    if (named->second.begin != at) {
      throw wrong("tensor '" + named->first.substr(0, 60) + "' starts at byte " +
                  std::to_string(named->second.begin) + " of the data, where the tensors before " +
                  "it end at byte " + std::to_string(at));
    }
    at = named->second.end;
  }
  if (at != data_bytes) {
    throw wrong("the tensors end at byte " + std::to_string(at) + " of " +
                std::to_string(data_bytes) + " bytes of data");
  }
}

class Metadata : public AttributeReader {
 public:
  explicit Metadata(const nlohmann::json& header) {
    const auto it = header.find("__metadata__");
    if (it == header.end()) return;
    if (!it->is_object()) throw wrong("__metadata__ is not an object");
    for (const auto& [name, value] : it->items()) {
      if (!value.is_string()) {
        throw wrong("metadata '" + name.substr(0, 60) + "' is not a string");
      }
      values_.emplace(name, value.get<std::string>());
    }
  }
  std::optional<std::string> text(const std::string& name) const override {
    const auto it = values_.find(name);
    return it == values_.end() ? std::nullopt : std::optional(it->second);
  }
  std::optional<std::int64_t> integer(const std::string& name) const override {
    const auto it = values_.find(name);
    if (it == values_.end()) return std::nullopt;
    const std::string& text = it->second;
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) {
      throw wrong("metadata '" + name + "' is '" + text.substr(0, 40) + "', not a whole number");
    }
    return value;
  }

 private:
  std::map<std::string, std::string> values_;
};

class SafetensorsSource : public TraceSource {
 public:
  SafetensorsSource(MappedFile file, std::span<const std::byte> data, const TraceInfo& info)
      : file_(std::move(file)), data_(data), info_(info) {}

  void add(std::int64_t layer, TraceTensor tensor, const Entry& entry) {
    const std::string title = tensor_title(layer, tensor);
    const auto expected = tensor_shape(info_, tensor);
    if (entry.shape != expected) {
      throw wrong(title + " has the shape " + shape_text(entry.shape) + ", but the metadata say " +
                  shape_text(expected) + " (heads, total_tokens, head_dim)");
    }
    if (entry.dtype != safetensors_dtype(info_.dtype)) {
      throw wrong(title + " is stored as " + entry.dtype + ", but the metadata say dtype " +
                  std::string(dtype_name(info_.dtype)));
    }
    tensors_[{layer, tensor}] = data_.data() + entry.begin;
  }

  bool has(std::int64_t layer, TraceTensor tensor) const override {
    return tensors_.contains({layer, tensor});
  }

  void read(std::int64_t layer, TraceTensor tensor, std::int64_t begin, std::int64_t end,
            std::byte* out) const override {
    const std::size_t token_bytes =
        static_cast<std::size_t>(info_.head_dim) * dtype_size(info_.dtype);
    const std::size_t bytes = static_cast<std::size_t>(end - begin) * token_bytes;
    const std::byte* in =
        tensors_.at({layer, tensor}) + static_cast<std::size_t>(begin) * token_bytes;
    for (std::int64_t head = 0; head < info_.heads(tensor); ++head) {
      std::memcpy(out, in, bytes);
      out += bytes;
      in += static_cast<std::size_t>(info_.total_tokens) * token_bytes;
    }
  }

 private:
  MappedFile file_;
  std::span<const std::byte> data_;
  TraceInfo info_;
  std::map<std::pair<std::int64_t, TraceTensor>, const std::byte*> tensors_;
};

/// The values of an integer tensor; nothing when it is absent.
template <class T>
std::optional<std::vector<T>> read_integers(const std::map<std::string, Entry>& entries,
                                            std::span<const std::byte> data,
                                            const std::string& name, const char* dtype,
                                            std::size_t rank) {
  const auto it = entries.find(name);
  if (it == entries.end()) return std::nullopt;
  const Entry& entry = it->second;
  if (entry.dtype != dtype || entry.shape.size() != rank) {
    throw wrong(name + " is " + entry.dtype + " " + shape_text(entry.shape) + ", but should be " +
                dtype + " with " + std::to_string(rank) + " axes");
  }
  std::vector<T> values((entry.end - entry.begin) / sizeof(T));
  if (!values.empty()) {
    std::memcpy(values.data(), data.data() + entry.begin, values.size() * sizeof(T));
  }
  return values;
}

void read_annotations(const std::map<std::string, Entry>& entries, std::span<const std::byte> data,
                      TraceInfo& info, Problems& problems) {
  const auto attempt = [&](auto&& body) {
    try {
      body();
    } catch (const Error& error) {
      problems.push_back(error);
    }
  };
  attempt([&] {
    info.tokens = read_integers<std::int32_t>(entries, data, "tokens", "I32", 1)
                      .value_or(std::vector<std::int32_t>());
  });
  attempt([&] {
    const auto values = read_integers<std::int64_t>(entries, data, "answer_span", "I64", 2);
    if (!values) return;
    if (const auto& shape = entries.at("answer_span").shape; shape[1] != 2) {
      throw wrong("answer_span has the shape " + shape_text(shape) + ", not [k, 2]");
    }
    for (std::size_t i = 0; i < values->size(); i += 2) {
      info.answer_spans.push_back({(*values)[i], (*values)[i + 1]});
    }
  });
  attempt([&] {
    if (!info.planted) return;
    if (auto values = read_integers<std::int32_t>(entries, data, "planted", "I32", 3)) {
      const auto& shape = entries.at("planted").shape;
      *info.planted = {info.planted->block, shape[0], shape[1], shape[2], std::move(*values)};
    }
  });
}

}  // namespace

OpenTrace open_safetensors_trace(const std::string& path) {
  MappedFile file(path);
  const auto bytes = file.bytes();
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof header_bytes) throw wrong("the file is too short for a header");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - sizeof header_bytes) {
    throw wrong("the header of the safetensors file would have " + std::to_string(header_bytes) +
                " bytes, more than the file or the format allows");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof header_bytes,
                              static_cast<std::size_t>(header_bytes));
  const auto data = bytes.subspan(sizeof header_bytes + static_cast<std::size_t>(header_bytes));

  const nlohmann::json header = parse_header(text);
  OpenTrace trace;
  const Metadata metadata(header);
  trace.info = parse_attributes(metadata, trace.problems);
  trace.info.text = metadata.text("text").value_or("");

  std::map<std::string, Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") entries.emplace(name, parse_entry(name, value, data.size()));
  }
  check_coverage(entries, data.size());
  read_annotations(entries, data, trace.info, trace.problems);
  check_annotations(trace.info, trace.problems);

  std::set<std::int64_t> found;
  for (const auto& [name, entry] : entries) {
    const auto parts = split(name, '.');
    if (parts.size() != 3 || parts[0] != "layers") continue;
    std::int64_t layer = -1;
    std::from_chars(parts[1].data(), parts[1].data() + parts[1].size(), layer);
    if (layer < 0 || parts[1] != std::to_string(layer)) {
      trace.problems.push_back(wrong("tensor '" + name.substr(0, 60) + "' has no layer index"));
    } else {
      found.insert(layer);
    }
  }
  auto source = std::make_unique<SafetensorsSource>(std::move(file), data, trace.info);
  trace.layers = check_layers(trace.info, found, trace.problems);
  for (const std::int64_t layer : trace.layers) {
    for (const TraceTensor tensor : kTraceTensors) {
      const auto it = entries.find("layers." + std::to_string(layer) + "." +
                                   std::string(trace_tensor_name(tensor)));
      try {
        if (it == entries.end()) throw wrong(tensor_title(layer, tensor) + " is missing");
        source->add(layer, tensor, it->second);
      } catch (const Error& error) {
        trace.problems.push_back(error);
      }
    }
  }
  trace.source = std::move(source);
  return trace;
}

}  // namespace sw
