#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>

#include "core/file.hpp"
#include "core/parallel.hpp"
#include "trace/container.hpp"

namespace sw {
namespace {

static_assert(std::endian::native == std::endian::little, "traces are little-endian");

/// Errors of the system name the path already.
Error with_path(const std::string& path, const Error& error) {
  if (std::string_view(error.what()).find("'" + path + "'") != std::string_view::npos) return error;
  return Error(error.kind(), "'" + path + "': " + error.what(), error.hint());
}

/// HDF5 may start after a user block of 512 bytes, or that times a power of two.
bool is_hdf5(std::span<const std::byte> bytes) {
  static constexpr char kMagic[] = "\x89HDF\r\n\x1a\n";
  for (std::size_t at = 0; at + 8 <= bytes.size(); at = std::max<std::size_t>(512, at * 2)) {
    if (std::memcmp(bytes.data() + at, kMagic, 8) == 0) return true;
  }
  return false;
}

TraceFormat detect_format(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  const std::string_view head(reinterpret_cast<const char*>(bytes.data()),
                              std::min<std::size_t>(bytes.size(), 64));
  if (is_hdf5(bytes)) return TraceFormat::kHdf5;
  if (head.size() > 8 && head[8] == '{') return TraceFormat::kSafetensors;
  std::string hint =
      "make traces with sw-trace capture, sw-trace make or the exporter in datasets/";
  if (head.starts_with("GGUF")) hint = "this is a model; sw-trace capture makes a trace with it";
  if (head.starts_with("version https://git-lfs")) hint = "fetch the file itself with git lfs pull";
  throw Error(ErrorKind::kInput,
              bytes.empty() ? "the file is empty" : "neither an HDF5 nor a safetensors file", hint);
}

OpenTrace open_trace(const std::string& path, TraceFormat& format) {
  format = detect_format(path);
  return format == TraceFormat::kHdf5 ? open_hdf5_trace(path) : open_safetensors_trace(path);
}

template <class Bits>
bool any_non_finite(const Bits* values, std::int64_t count, Bits exponent) {
  Bits found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    found |= static_cast<Bits>((values[i] & exponent) == exponent);
  }
  return found != 0;
}

bool row_non_finite(const HeadsView& tensor, std::int64_t head, std::int64_t token) {
  const void* row = tensor.row(head, token);
  switch (tensor.dtype) {
    case DType::kBf16:
      return any_non_finite<std::uint16_t>(static_cast<const std::uint16_t*>(row), tensor.dim,
                                           0x7f80);
    case DType::kF16:
      return any_non_finite<std::uint16_t>(static_cast<const std::uint16_t*>(row), tensor.dim,
                                           0x7c00);
    default:
      return any_non_finite<std::uint32_t>(static_cast<const std::uint32_t*>(row), tensor.dim,
                                           0x7f800000);
  }
}

/// Reads tokens [begin, end) and refuses NaN and infinities.
HeadsTensor read_tensor(const TraceSource& source, const TraceInfo& info, std::int64_t layer,
                        TraceTensor tensor, std::int64_t begin, std::int64_t end) {
  HeadsTensor values(info.dtype, info.heads(tensor), end - begin, info.head_dim);
  source.read(layer, tensor, begin, end, values.data());
  if (const auto bad = find_non_finite(values.view())) {
    throw Error(ErrorKind::kInput,
                tensor_title(layer, tensor) + " holds a NaN or an infinity at head " +
                    std::to_string(bad->head) + ", token " + std::to_string(begin + bad->token),
                info.dtype == DType::kF16
                    ? "the values may exceed the range of f16; export the trace as bf16 or f32"
                    : "check the model that made the trace; no number can be computed from it");
  }
  return values;
}

}  // namespace

std::string_view trace_format_name(TraceFormat format) {
  return format == TraceFormat::kHdf5 ? "HDF5" : "safetensors";
}

std::string_view trace_tensor_name(TraceTensor tensor) {
  return tensor == TraceTensor::kQ ? "q" : tensor == TraceTensor::kK ? "k" : "v";
}

std::optional<NonFinite> find_non_finite(const HeadsView& tensor) {
  std::vector<std::int64_t> first(static_cast<std::size_t>(tensor.heads), -1);
  parallel_for(tensor.heads, [&](std::int64_t head, int) {
    for (std::int64_t token = 0; token < tensor.tokens; ++token) {
      if (row_non_finite(tensor, head, token)) {
        first[static_cast<std::size_t>(head)] = token;
        return;
      }
    }
  });
  for (std::int64_t head = 0; head < tensor.heads; ++head) {
    if (first[static_cast<std::size_t>(head)] >= 0) {
      return NonFinite{head, first[static_cast<std::size_t>(head)]};
    }
  }
  return std::nullopt;
}

TraceReader::TraceReader(const std::string& path) : path_(path) {
  try {
    OpenTrace trace = open_trace(path, format_);
    if (!trace.problems.empty()) {
      const Error& first = trace.problems.front();
      const std::size_t more = trace.problems.size() - 1;
      throw Error(first.kind(),
                  more == 0 ? first.what()
                            : std::string(first.what()) + " (and " + std::to_string(more) +
                                  " more; sw-trace validate lists them)",
                  first.hint());
    }
    info_ = std::move(trace.info);
    source_ = std::move(trace.source);
  } catch (const Error& error) {
    throw with_path(path, error);
  }
}

TraceReader::~TraceReader() = default;
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;

HeadsTensor TraceReader::read(std::int64_t layer, TraceTensor tensor, std::int64_t begin,
                              std::int64_t end) const {
  if (layer < info_.first_layer || layer > info_.last_layer()) {
    throw Error(ErrorKind::kUsage, "'" + path_ + "' has no layer " + std::to_string(layer),
                "it holds layers " + std::to_string(info_.first_layer) + " .. " +
                    std::to_string(info_.last_layer()));
  }
  assert(0 <= begin && begin <= end && end <= info_.total_tokens);
  try {
    return read_tensor(*source_, info_, layer, tensor, begin, end);
  } catch (const Error& error) {
    throw with_path(path_, error);
  }
}

TraceLayer TraceReader::layer(std::int64_t layer) const {
  const auto all = [&](TraceTensor tensor) { return read(layer, tensor, 0, info_.total_tokens); };
  return {layer, all(TraceTensor::kQ), all(TraceTensor::kK), all(TraceTensor::kV)};
}

std::vector<Error> validate_trace(const std::string& path) {
  Problems problems;
  try {
    TraceFormat format{};
    const OpenTrace trace = open_trace(path, format);
    problems = trace.problems;
    const TraceInfo& info = trace.info;
    for (const std::int64_t layer : trace.layers) {
      for (const TraceTensor tensor : kTraceTensors) {
        if (!trace.source->has(layer, tensor)) continue;
        try {
          read_tensor(*trace.source, info, layer, tensor, 0, info.total_tokens);
        } catch (const Error& error) {
          problems.push_back(error);
        }
      }
    }
  } catch (const Error& error) {
    problems.push_back(error);
  }
  return problems;
}

}  // namespace sw
