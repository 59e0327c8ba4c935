#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "trace/container.hpp"

namespace sw {
namespace {

/// The header comes first and depends on tokens and answer spans, which may be known only at the
/// end. So its room is reserved for the longest one that this trace can get and filled with spaces,
/// which the format allows; what may be missing lies behind the layers.
class SafetensorsSink : public TraceSink {
 public:
  SafetensorsSink(const std::string& path, const std::string& temporary_path, const TraceInfo& info)
      : path_(path), info_(info) {
    info_.tokens.assign(1, 0);
    info_.answer_spans.assign(1, {});
    info_.perplexity = std::numeric_limits<double>::lowest();  // as long as a number's text can be
    std::uint64_t data_bytes = 0;
    header_room_ = header_text(info_, kManySpans, data_bytes).size();
    header_room_ = (header_room_ + sizeof(std::uint64_t) + 63) / 64 * 64 - sizeof(std::uint64_t);
    do {
      file_ = open(temporary_path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
    } while (file_ < 0 && errno == EINTR);
    if (file_ < 0) throw output_error(path_, std::strerror(errno));
  }

  ~SafetensorsSink() override {
    if (file_ >= 0) close(file_);
  }

  void write(std::int64_t layer, TraceTensor tensor, std::int64_t first_token,
             const HeadsView& part) override {
    const std::uint64_t token_bytes = tensor_bytes(TraceTensor::kK) /
                                      static_cast<std::uint64_t>(info_.num_kv_heads) /
                                      static_cast<std::uint64_t>(info_.total_tokens);
    const std::uint64_t start = data_start() + tensor_offset(layer, tensor);
    for (std::int64_t head = 0; head < part.heads; ++head) {
      const std::uint64_t token =
          static_cast<std::uint64_t>(head * info_.total_tokens + first_token);
      write_at(start + token * token_bytes, part.row(head, 0),
               static_cast<std::uint64_t>(part.tokens) * token_bytes);
    }
  }

  void finish(const TraceInfo& info) override {
    std::uint64_t data_bytes = 0;
    std::string header =
        header_text(info, static_cast<std::int64_t>(info.answer_spans.size()), data_bytes);
    header.resize(header_room_, ' ');
    const std::uint64_t header_bytes = header.size();
    write_at(0, &header_bytes, sizeof header_bytes);
    write_at(sizeof header_bytes, header.data(), header.size());

    std::uint64_t at = data_start() + layer_bytes() * static_cast<std::uint64_t>(info.num_layers);
    const auto add = [&](const auto& values) {
      const std::uint64_t bytes = values.size() * sizeof values[0];
      if (bytes > 0) write_at(at, values.data(), bytes);
      at += bytes;
    };
    add(info.answer_spans);
    if (info.planted) add(info.planted->blocks);
    add(info.tokens);
    // An interrupted close has closed.
    if (close(std::exchange(file_, -1)) != 0 && errno != EINTR) {
      throw output_error(path_, std::strerror(errno));
    }
  }

 private:
  static constexpr std::int64_t kManySpans = 1'000'000'000;

  std::uint64_t tensor_bytes(TraceTensor tensor) const {
    return static_cast<std::uint64_t>(info_.heads(tensor) * info_.total_tokens * info_.head_dim) *
           dtype_size(info_.dtype);
  }
  std::uint64_t layer_bytes() const {
    return tensor_bytes(TraceTensor::kQ) + 2 * tensor_bytes(TraceTensor::kK);
  }
  std::uint64_t tensor_offset(std::int64_t layer, TraceTensor tensor) const {
    std::uint64_t at = layer_bytes() * static_cast<std::uint64_t>(layer - info_.first_layer);
    if (tensor != TraceTensor::kQ) at += tensor_bytes(TraceTensor::kQ);
    if (tensor == TraceTensor::kV) at += tensor_bytes(TraceTensor::kK);
    return at;
  }
  std::uint64_t data_start() const { return sizeof(std::uint64_t) + header_room_; }

  std::string header_text(const TraceInfo& info, std::int64_t spans, std::uint64_t& data_bytes) {
    nlohmann::ordered_json header;
    auto& metadata = header["__metadata__"];
    for (const auto& [name, value] : list_attributes(info)) {
      const auto* text = std::get_if<std::string>(&value);
      metadata[name] = text ? *text : std::to_string(std::get<std::int64_t>(value));
    }
    if (!info.text.empty()) metadata["text"] = info.text;
    data_bytes = 0;
    const auto add = [&](const std::string& name, std::string_view dtype,
                         const std::vector<std::int64_t>& shape, std::uint64_t bytes) {
      header[name] = {
          {"dtype", dtype}, {"shape", shape}, {"data_offsets", {data_bytes, data_bytes + bytes}}};
      data_bytes += bytes;
    };
    const std::string_view dtype = info.dtype == DType::kBf16  ? "BF16"
                                   : info.dtype == DType::kF16 ? "F16"
                                                               : "F32";
    for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
      for (const TraceTensor tensor : kTraceTensors) {
        add("layers." + std::to_string(layer) + "." + std::string(trace_tensor_name(tensor)), dtype,
            tensor_shape(info, tensor), tensor_bytes(tensor));
      }
    }
    if (!info.answer_spans.empty()) {
      add("answer_span", "I64", {spans, 2}, static_cast<std::uint64_t>(spans) * sizeof(TokenSpan));
    }
    if (const auto& planted = info.planted) {
      add("planted", "I32", {planted->layers, planted->rows, planted->width},
          planted->blocks.size() * sizeof(std::int32_t));
    }
    if (!info.tokens.empty()) {
      add("tokens", "I32", {info.total_tokens},
          static_cast<std::uint64_t>(info.total_tokens) * sizeof(std::int32_t));
    }
    return header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  void write_at(std::uint64_t offset, const void* data, std::uint64_t bytes) {
    const auto* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = pwrite(file_, next, bytes, static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) throw output_error(path_, std::strerror(written < 0 ? errno : ENOSPC));
      next += written;
      offset += static_cast<std::uint64_t>(written);
      bytes -= static_cast<std::uint64_t>(written);
    }
  }

  std::string path_;
  TraceInfo info_;
  std::uint64_t header_room_ = 0;
  int file_ = -1;
};

}  // namespace

std::unique_ptr<TraceSink> create_safetensors_trace(const std::string& path,
                                                    const std::string& temporary_path,
                                                    const TraceInfo& info) {
  return std::make_unique<SafetensorsSink>(path, temporary_path, info);
}

}  // namespace sw
