#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

#include "core/safetensors.hpp"
#include "core/text.hpp"
#include "trace/container.hpp"

namespace sw {
namespace {

Error wrong(const std::string& message) {
  return Error(ErrorKind::kInput, message,
               "the file is damaged or incomplete; copy or export it again");
}

std::string_view safetensors_dtype(DType dtype) {
  return dtype == DType::kBf16 ? "BF16" : dtype == DType::kF16 ? "F16" : "F32";
}

class Metadata : public AttributeReader {
 public:
  explicit Metadata(const std::map<std::string, std::string>& values) : values_(values) {}
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
  const std::map<std::string, std::string>& values_;
};

class SafetensorsSource : public TraceSource {
 public:
  SafetensorsSource(Safetensors file, const TraceInfo& info)
      : file_(std::move(file)), info_(info) {}

  void add(std::int64_t layer, TraceTensor tensor) {
    const auto it = file_.tensors().find("layers." + std::to_string(layer) + "." +
                                         std::string(trace_tensor_name(tensor)));
    const std::string title = tensor_title(layer, tensor);
    if (it == file_.tensors().end()) throw wrong(title + " is missing");
    const SafetensorsTensor& entry = it->second;
    const auto expected = tensor_shape(info_, tensor);
    if (entry.shape != expected) {
      throw wrong(title + " has the shape " + shape_text(entry.shape) + ", but the metadata say " +
                  shape_text(expected) + " (heads, total_tokens, head_dim)");
    }
    if (entry.dtype != safetensors_dtype(info_.dtype)) {
      throw wrong(title + " is stored as " + entry.dtype + ", but the metadata say dtype " +
                  std::string(dtype_name(info_.dtype)));
    }
    tensors_[{layer, tensor}] = entry.data.data();
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
  Safetensors file_;
  TraceInfo info_;
  std::map<std::pair<std::int64_t, TraceTensor>, const std::byte*> tensors_;
};

/// The values of an integer tensor; nothing when it is absent.
template <class T>
std::optional<std::vector<T>> read_integers(const Safetensors& file, const std::string& name,
                                            const char* dtype, std::size_t rank) {
  const auto it = file.tensors().find(name);
  if (it == file.tensors().end()) return std::nullopt;
  const SafetensorsTensor& entry = it->second;
  if (entry.dtype != dtype || entry.shape.size() != rank) {
    throw wrong(name + " is " + entry.dtype + " " + shape_text(entry.shape) + ", but should be " +
                dtype + " with " + std::to_string(rank) + " axes");
  }
  std::vector<T> values(entry.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), entry.data.data(), entry.data.size());
  return values;
}

void read_annotations(const Safetensors& file, TraceInfo& info, Problems& problems) {
  const auto attempt = [&](auto&& body) {
    try {
      body();
    } catch (const Error& error) {
      problems.push_back(error);
    }
  };
  attempt([&] {
    info.tokens =
        read_integers<std::int32_t>(file, "tokens", "I32", 1).value_or(std::vector<std::int32_t>());
  });
  attempt([&] {
    const auto values = read_integers<std::int64_t>(file, "answer_span", "I64", 2);
    if (!values) return;
    if (const auto& shape = file.tensors().at("answer_span").shape; shape[1] != 2) {
      throw wrong("answer_span has the shape " + shape_text(shape) + ", not [k, 2]");
    }
    for (std::size_t i = 0; i < values->size(); i += 2) {
      info.answer_spans.push_back({(*values)[i], (*values)[i + 1]});
    }
  });
  attempt([&] {
    if (!info.planted) return;
    if (auto values = read_integers<std::int32_t>(file, "planted", "I32", 3)) {
      const auto& shape = file.tensors().at("planted").shape;
      *info.planted = {info.planted->block, shape[0], shape[1], shape[2], std::move(*values)};
    }
  });
}

}  // namespace

OpenTrace open_safetensors_trace(const std::string& path) {
  Safetensors file(path);
  OpenTrace trace;
  const Metadata metadata(file.metadata());
  trace.info = parse_attributes(metadata, trace.problems);
  trace.info.text = metadata.text("text").value_or("");

  read_annotations(file, trace.info, trace.problems);
  check_annotations(trace.info, trace.problems);

  std::set<std::int64_t> found;
  for (const auto& [name, tensor] : file.tensors()) {
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
  auto source = std::make_unique<SafetensorsSource>(std::move(file), trace.info);
  trace.layers = check_layers(trace.info, found, trace.problems);
  for (const std::int64_t layer : trace.layers) {
    for (const TraceTensor tensor : kTraceTensors) {
      try {
        source->add(layer, tensor);
      } catch (const Error& error) {
        trace.problems.push_back(error);
      }
    }
  }
  trace.source = std::move(source);
  return trace;
}

}  // namespace sw
