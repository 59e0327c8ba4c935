#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "trace/trace.hpp"

/// What the two containers of a trace (HDF5, safetensors) have in common, private to lib/trace. A
/// container hands over its attributes and tensor shapes; what they must be is said once, here.
namespace sw {

/// Messages of problems do not name the file; the reader puts its path in front.
using Problems = std::vector<Error>;

/// An open trace that tensors can be read from.
class TraceSource {
 public:
  virtual ~TraceSource() = default;
  /// Whether the tensor is there with the shape and dtype that the attributes promise.
  virtual bool has(std::int64_t layer, TraceTensor tensor) const = 0;
  /// Reads tokens [begin, end) of a tensor that `has` to out, [heads, end - begin, d] contiguous.
  virtual void read(std::int64_t layer, TraceTensor tensor, std::int64_t begin, std::int64_t end,
                    std::byte* out) const = 0;
};

struct OpenTrace {
  TraceInfo info;
  std::vector<std::int64_t> layers;  // of the run, those that are there
  std::unique_ptr<TraceSource> source;
  Problems problems;
};

/// Both throw Error(kInput) when nothing can be read at all; lesser problems are listed.
OpenTrace open_hdf5_trace(const std::string& path);
OpenTrace open_safetensors_trace(const std::string& path);

/// A trace being written to `temporary_path`; errors name `path`.
class TraceSink {
 public:
  virtual ~TraceSink() = default;
  /// part: contiguous [heads, tokens, d], the tokens from first_token on.
  virtual void write(std::int64_t layer, TraceTensor tensor, std::int64_t first_token,
                     const HeadsView& part) = 0;
  /// Writes everything else and closes the file.
  virtual void finish(const TraceInfo& info) = 0;
};

std::unique_ptr<TraceSink> create_hdf5_trace(const std::string& path,
                                             const std::string& temporary_path,
                                             const TraceInfo& info, int compression);
std::unique_ptr<TraceSink> create_safetensors_trace(const std::string& path,
                                                    const std::string& temporary_path,
                                                    const TraceInfo& info);

/// Error(kOutput) for a write that failed for `reason` (text of the system).
Error output_error(const std::string& path, const std::string& reason);

/// Attributes by name; a container throws Error(kInput) when a value has another type.
class AttributeReader {
 public:
  virtual ~AttributeReader() = default;
  virtual std::optional<std::string> text(const std::string& name) const = 0;
  virtual std::optional<std::int64_t> integer(const std::string& name) const = 0;
};

using AttributeValue = std::variant<std::string, std::int64_t>;
/// The attributes of `info` in the order of interfaces.md.
std::vector<std::pair<std::string, AttributeValue>> list_attributes(const TraceInfo& info);

/// Reads the attributes and checks that they are consistent with each other. Throws Error(kInput)
/// when the file is no trace, or its version or sizes leave nothing to read; other problems are
/// added to `problems`. `planted` gets its block only.
TraceInfo parse_attributes(const AttributeReader& attributes, Problems& problems);

/// Checks tokens, answer spans and planted blocks against the sizes.
void check_annotations(const TraceInfo& info, Problems& problems);

/// Checks that the layers [first_layer, first_layer + num_layers) are all there, and no others.
/// Returns those of the run that are there.
std::vector<std::int64_t> check_layers(const TraceInfo& info, const std::set<std::int64_t>& found,
                                       Problems& problems);

/// The index in two or more digits, as the HDF5 groups are named: "03".
std::string layer_group_name(std::int64_t layer);
/// "layer 3: q".
std::string tensor_title(std::int64_t layer, TraceTensor tensor);
/// {heads, total_tokens, d}.
std::vector<std::int64_t> tensor_shape(const TraceInfo& info, TraceTensor tensor);

}  // namespace sw
