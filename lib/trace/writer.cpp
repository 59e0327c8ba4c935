#include <cassert>
#include <cstring>
#include <map>
#include <stdexcept>

#include "core/file.hpp"
#include "core/text.hpp"
#include "trace/container.hpp"

namespace sw {
namespace {

TraceFormat format_of(const std::string& path) {
  if (path.ends_with(".safetensors")) return TraceFormat::kSafetensors;
  if (path.ends_with(".h5") || path.ends_with(".hdf5")) return TraceFormat::kHdf5;
  throw Error(ErrorKind::kUsage, "the name of '" + path + "' does not say what to write",
              "end it in .h5 or .safetensors");
}

/// A trace is checked before it is written by the same rules as when it is read.
class OwnAttributes : public AttributeReader {
 public:
  explicit OwnAttributes(const TraceInfo& info) {
    for (auto& [name, value] : list_attributes(info)) values_.emplace(name, value);
  }
  std::optional<std::string> text(const std::string& name) const override {
    return get<std::string>(name);
  }
  std::optional<std::int64_t> integer(const std::string& name) const override {
    return get<std::int64_t>(name);
  }

 private:
  template <class T>
  std::optional<T> get(const std::string& name) const {
    const auto it = values_.find(name);
    return it == values_.end() ? std::nullopt : std::optional(std::get<T>(it->second));
  }
  std::map<std::string, AttributeValue> values_;
};

void check_info(const TraceInfo& info) {
  Problems problems;
  try {
    parse_attributes(OwnAttributes(info), problems);
    check_annotations(info, problems);
  } catch (const Error& error) {
    problems.insert(problems.begin(), error);
  }
  if (!problems.empty()) throw Error(ErrorKind::kUsage, problems.front().what());
  for (const std::string* text : {&info.model, &info.source, &info.created_by, &info.text}) {
    if (text->find('\0') != std::string::npos) {
      throw Error(ErrorKind::kUsage, "a trace cannot hold text with a zero byte",
                  "is the prompt a binary file?");
    }
  }
}

}  // namespace

struct TraceWriter::State {
  PendingFile file;
  TraceInfo info;
  std::map<std::pair<std::int64_t, TraceTensor>, std::int64_t> written;
  std::unique_ptr<TraceSink> sink;  // closed before `file` goes
};

TraceWriter::TraceWriter(const std::string& path, TraceInfo info,
                         const TraceWriteOptions& options) {
  const TraceFormat format = format_of(path);
  check_info(info);
  state_ = std::make_unique<State>(
      State{PendingFile(path, options.force), std::move(info), {}, nullptr});
  const std::string& aside = state_->file.temporary_path();
  state_->sink = format == TraceFormat::kHdf5
                     ? create_hdf5_trace(path, aside, state_->info, options.compression)
                     : create_safetensors_trace(path, aside, state_->info);
}

TraceWriter::~TraceWriter() = default;
TraceWriter::TraceWriter(TraceWriter&&) noexcept = default;
TraceWriter& TraceWriter::operator=(TraceWriter&&) noexcept = default;

const TraceInfo& TraceWriter::info() const { return state_->info; }

void TraceWriter::append(std::int64_t layer, TraceTensor tensor, const HeadsView& part) {
  const TraceInfo& info = state_->info;
  std::int64_t& written = state_->written[{layer, tensor}];
  if (layer < info.first_layer || layer > info.last_layer() || part.dtype != info.dtype ||
      part.heads != info.heads(tensor) || part.dim != info.head_dim ||
      part.tokens > info.total_tokens - written) {
    throw std::logic_error(tensor_title(layer, tensor) + ": appended tokens do not fit the trace");
  }
  if (part.tokens == 0) return;
  if (part.token_stride == part.dim && part.head_stride == part.tokens * part.dim) {
    state_->sink->write(layer, tensor, written, part);
  } else {
    HeadsTensor packed(part.dtype, part.heads, part.tokens, part.dim);
    const std::size_t row_bytes = static_cast<std::size_t>(part.dim) * dtype_size(part.dtype);
    std::byte* out = packed.data();
    for (std::int64_t head = 0; head < part.heads; ++head) {
      for (std::int64_t token = 0; token < part.tokens; ++token, out += row_bytes) {
        std::memcpy(out, part.row(head, token), row_bytes);
      }
    }
    state_->sink->write(layer, tensor, written, packed.view());
  }
  written += part.tokens;
}

void TraceWriter::append(std::int64_t layer, const HeadsView& q, const HeadsView& k,
                         const HeadsView& v) {
  append(layer, TraceTensor::kQ, q);
  append(layer, TraceTensor::kK, k);
  append(layer, TraceTensor::kV, v);
}

void TraceWriter::set_tokens(std::vector<std::int32_t> tokens) {
  state_->info.tokens = std::move(tokens);
}

void TraceWriter::set_answer_spans(std::vector<TokenSpan> spans) {
  state_->info.answer_spans = std::move(spans);
}

void TraceWriter::set_perplexity(double perplexity) { state_->info.perplexity = perplexity; }

void TraceWriter::commit() {
  const TraceInfo& info = state_->info;
  check_info(info);
  for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
    for (const TraceTensor tensor : kTraceTensors) {
      if (state_->written[{layer, tensor}] != info.total_tokens) {
        throw std::logic_error(tensor_title(layer, tensor) + ": the trace lacks tokens");
      }
    }
  }
  state_->sink->finish(info);
  state_->file.commit();
}

}  // namespace sw
