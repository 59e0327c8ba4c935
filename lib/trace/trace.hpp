#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "core/error.hpp"
#include "core/tensor.hpp"

/// Traces: the queries, keys and values of a model after RoPE, dumped for a run of layers, with the
/// tokens they belong to. One format in two containers, HDF5 and safetensors (interfaces.md, "Trace
/// file"), read and written a layer or a few tokens at a time, so that a trace may be larger than
/// memory. Files are not trusted: every size is checked against the file before it is used, and
/// whatever is wrong becomes one `sw::Error`.
///
/// Attributes beyond the fixed ones: `num_layers` is the number of layers that the file holds, a
/// contiguous run starting at `first_layer`; `model_layers` (optional) is the number of layers of
/// the whole model. `perplexity` (optional, a number as text) is that of the prefill tokens.
/// `planted` (optional, int32 [num_layers, query blocks, width], with attribute `planted_block`) is
/// the truth of a synthetic trace, see synthetic.hpp.
///
/// HDF5 is not thread-safe: only one thread of a process may use readers and writers at a time.
namespace sw {

enum class TraceFormat : std::uint8_t { kHdf5, kSafetensors };
/// "HDF5" or "safetensors".
std::string_view trace_format_name(TraceFormat format);

enum class TraceTensor : std::uint8_t { kQ, kK, kV };
inline constexpr TraceTensor kTraceTensors[] = {TraceTensor::kQ, TraceTensor::kK, TraceTensor::kV};
/// "q", "k" or "v".
std::string_view trace_tensor_name(TraceTensor tensor);

/// Tokens [begin, end).
struct TokenSpan {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool operator==(const TokenSpan&) const = default;
};

/// Key blocks that a synthetic trace makes important: row-major [layers, rows, width], -1 where
/// there is none. `block` is the number of tokens of a block.
struct PlantedBlocks {
  std::int64_t block = 0;
  std::int64_t layers = 0;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::vector<std::int32_t> blocks;
  bool operator==(const PlantedBlocks&) const = default;
};

/// Everything in a trace but q, k and v.
struct TraceInfo {
  std::string model;
  std::int64_t first_layer = 0;
  std::int64_t num_layers = 0;               ///< layers in this file
  std::optional<std::int64_t> model_layers;  ///< layers of the model, where known
  std::int64_t num_heads = 0;                ///< H
  std::int64_t num_kv_heads = 0;             ///< Hkv, divides H
  std::int64_t head_dim = 0;                 ///< d
  std::int64_t prefill_tokens = 0;
  std::int64_t total_tokens = 0;  ///< the tokens after the prefill are decode steps
  DType dtype = DType::kBf16;
  bool rope_applied = true;  ///< a trace before RoPE is refused
  std::string source;        ///< free text: dataset and sample
  std::string created_by;
  std::string text;                  ///< "" when there is none
  std::optional<double> perplexity;  ///< of the prefill under the model, where known
  std::vector<std::int32_t> tokens;  ///< [total_tokens] or empty
  std::vector<TokenSpan> answer_spans;
  std::optional<PlantedBlocks> planted;

  std::int64_t heads(TraceTensor tensor) const {
    return tensor == TraceTensor::kQ ? num_heads : num_kv_heads;
  }
  std::int64_t last_layer() const { return first_layer + num_layers - 1; }
  bool operator==(const TraceInfo&) const = default;
};

/// One layer: q [H, total_tokens, d], k and v [Hkv, total_tokens, d].
struct TraceLayer {
  std::int64_t layer = 0;  ///< index in the model
  HeadsTensor q;
  HeadsTensor k;
  HeadsTensor v;
};

class TraceSource;
class TraceSink;

class TraceReader {
 public:
  /// Opens a trace; the format is told by the content, not by the name. Checks everything but the
  /// values of q, k and v. Throws Error(kInput), with a hint on how to export the trace again.
  explicit TraceReader(const std::string& path);
  ~TraceReader();
  TraceReader(TraceReader&&) noexcept;
  TraceReader& operator=(TraceReader&&) noexcept;

  const std::string& path() const { return path_; }
  TraceFormat format() const { return format_; }
  const TraceInfo& info() const { return info_; }

  /// The layer with index `layer` in the model (first_layer <= layer <= last_layer). Throws
  /// Error(kInput) when the file is damaged or holds a NaN or an infinity (the message says where),
  /// Error(kUsage) when the trace has no such layer, Error(kResource) when memory runs out.
  TraceLayer layer(std::int64_t layer) const;

  /// Tokens [begin, end) of one tensor: [heads, end - begin, d]. Errors as in `layer`.
  HeadsTensor read(std::int64_t layer, TraceTensor tensor, std::int64_t begin,
                   std::int64_t end) const;

 private:
  std::string path_;
  TraceFormat format_ = TraceFormat::kHdf5;
  TraceInfo info_;
  std::unique_ptr<TraceSource> source_;
};

/// Where the first NaN or infinity of a tensor is.
struct NonFinite {
  std::int64_t head = 0;
  std::int64_t token = 0;
};
/// First in order of heads, then tokens; nothing when all values are finite. Parallel over heads.
std::optional<NonFinite> find_non_finite(const HeadsView& tensor);

/// Every problem of a trace, in the order of the file; empty when the trace is good. Reads all of
/// it, the values too. Never throws for what is wrong with the file.
std::vector<Error> validate_trace(const std::string& path);

struct TraceWriteOptions {
  int compression = 1;  ///< deflate level 0 (off) .. 9, HDF5 only
  bool force = false;   ///< replace an existing file
};

/// Writes a trace aside and renames it in `commit`; a writer that is destroyed without a commit
/// leaves nothing behind. Every failure to write, a full disk included, is an Error(kOutput) that
/// names the path. Layers and tensors may be written in any order and in turns (the model runs all
/// layers over one chunk of tokens, then over the next); within a tensor tokens come in order.
class TraceWriter {
 public:
  /// The container follows the extension: .safetensors, or .h5 / .hdf5. `info` must hold
  /// everything but tokens and answer_spans, which may also be set later. Throws Error(kUsage) for
  /// another extension or an inconsistent `info`.
  TraceWriter(const std::string& path, TraceInfo info, const TraceWriteOptions& options = {});
  ~TraceWriter();
  TraceWriter(TraceWriter&&) noexcept;
  TraceWriter& operator=(TraceWriter&&) noexcept;

  const TraceInfo& info() const;

  /// Appends the next tokens of one tensor: part is [heads, any number of tokens, d] in the dtype
  /// of the trace, with any strides.
  void append(std::int64_t layer, TraceTensor tensor, const HeadsView& part);
  /// Appends to q, k and v of a layer at once.
  void append(std::int64_t layer, const HeadsView& q, const HeadsView& k, const HeadsView& v);

  /// [total_tokens]; for runs whose decode tokens are known only at the end.
  void set_tokens(std::vector<std::int32_t> tokens);
  void set_answer_spans(std::vector<TokenSpan> spans);
  void set_perplexity(double perplexity);

  /// Tensors that lack tokens are the caller's bug and throw std::logic_error.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sw
