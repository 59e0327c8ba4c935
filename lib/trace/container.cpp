#include "trace/container.hpp"

#include <algorithm>

#include "core/text.hpp"

namespace sw {
namespace {

constexpr const char* kFormatName = "sketchwalk-trace";
constexpr std::int64_t kVersion = 1;
constexpr const char* kExportHint =
    "export the trace again; interfaces.md lists the attributes and tensors of a trace";

Error problem(const std::string& message, const std::string& hint = kExportHint) {
  return Error(ErrorKind::kInput, message, hint);
}

std::int64_t required(const AttributeReader& attributes, const std::string& name) {
  if (const auto value = attributes.integer(name)) return *value;
  throw problem("attribute '" + name + "' is missing");
}

/// At least `minimum`, which is 0 or 1.
std::int64_t required(const AttributeReader& attributes, const std::string& name,
                      std::int64_t minimum) {
  const std::int64_t value = required(attributes, name);
  if (value < minimum) {
    throw problem("attribute '" + name + "' is " + std::to_string(value) + ", but must be " +
                  (minimum == 1 ? "positive" : "zero or more"));
  }
  return value;
}

}  // namespace

Error output_error(const std::string& path, const std::string& reason) {
  return Error(ErrorKind::kOutput, "cannot write '" + path + "': " + reason,
               "check the free space, the folder and its permissions, or choose another place");
}

std::vector<std::pair<std::string, AttributeValue>> list_attributes(const TraceInfo& info) {
  std::vector<std::pair<std::string, AttributeValue>> list = {
      {"format", kFormatName},
      {"version", kVersion},
      {"model", info.model},
      {"num_layers", info.num_layers},
      {"num_heads", info.num_heads},
      {"num_kv_heads", info.num_kv_heads},
      {"head_dim", info.head_dim},
      {"prefill_tokens", info.prefill_tokens},
      {"total_tokens", info.total_tokens},
      {"dtype", std::string(dtype_name(info.dtype))},
      {"rope_applied", std::int64_t{info.rope_applied}},
      {"source", info.source},
      {"created_by", info.created_by},
      {"first_layer", info.first_layer},
  };
  if (info.model_layers) list.emplace_back("model_layers", *info.model_layers);
  if (info.perplexity) list.emplace_back("perplexity", format_double(*info.perplexity));
  if (info.planted) list.emplace_back("planted_block", info.planted->block);
  return list;
}

TraceInfo parse_attributes(const AttributeReader& attributes, Problems& problems) {
  const auto format = attributes.text("format");
  if (format != kFormatName) {
    throw problem("not a trace: attribute 'format' is " +
                      (format ? "'" + format->substr(0, 40) + "'" : std::string("missing")) +
                      ", not '" + kFormatName + "'",
                  "make traces with sw-trace capture, sw-trace make or the exporter in datasets/");
  }
  const std::int64_t version = required(attributes, "version");
  if (version > kVersion) {
    throw problem("version " + std::to_string(version) + " of the trace format is newer than " +
                      std::to_string(kVersion) + ", the newest that this program reads",
                  "update this program, or export the trace in version 1");
  }
  if (version < 1) throw problem("version " + std::to_string(version) + " does not exist");

  TraceInfo info;
  info.num_layers = required(attributes, "num_layers", 1);
  info.num_heads = required(attributes, "num_heads", 1);
  info.num_kv_heads = required(attributes, "num_kv_heads", 1);
  info.head_dim = required(attributes, "head_dim", 1);
  info.prefill_tokens = required(attributes, "prefill_tokens", 0);
  info.total_tokens = required(attributes, "total_tokens", 1);
  info.first_layer = attributes.integer("first_layer").value_or(0);
  info.model_layers = attributes.integer("model_layers");
  info.model = attributes.text("model").value_or("");
  info.source = attributes.text("source").value_or("");
  info.created_by = attributes.text("created_by").value_or("");
  if (const auto perplexity = attributes.text("perplexity")) {
    try {
      info.perplexity = parse_double(*perplexity, "attribute 'perplexity'");
    } catch (const Error& error) {
      throw problem(error.what());
    }
  }

  const auto dtype = attributes.text("dtype");
  if (!dtype) throw problem("attribute 'dtype' is missing");
  try {
    info.dtype = parse_dtype(*dtype);
  } catch (const Error&) {
    throw problem("attribute 'dtype' is '" + dtype->substr(0, 40) + "', not bf16, f16 or f32");
  }

  if (info.first_layer < 0 || info.first_layer > (std::int64_t{1} << 32) ||
      info.num_layers > (std::int64_t{1} << 32)) {
    throw problem("a run of " + std::to_string(info.num_layers) + " layers from layer " +
                  std::to_string(info.first_layer) + " cannot be");
  }
  for (const TraceTensor tensor : {TraceTensor::kQ, TraceTensor::kK}) {
    auto factors = tensor_shape(info, tensor);
    factors.push_back(static_cast<std::int64_t>(dtype_size(info.dtype)));
    if (!checked_product(factors)) {
      throw problem("the sizes overflow: " + std::string(trace_tensor_name(tensor)) +
                    " would have the shape " + shape_text(tensor_shape(info, tensor)));
    }
  }

  // What follows does not keep the tensors from being read.
  if (info.num_heads % info.num_kv_heads != 0) {
    problems.push_back(problem("num_heads " + std::to_string(info.num_heads) +
                               " is not a multiple of num_kv_heads " +
                               std::to_string(info.num_kv_heads)));
  }
  if (info.prefill_tokens < 1 || info.prefill_tokens > info.total_tokens) {
    problems.push_back(problem("prefill_tokens " + std::to_string(info.prefill_tokens) +
                               " is not in 1 .. total_tokens " +
                               std::to_string(info.total_tokens)));
  }
  if (info.model_layers && (*info.model_layers < 1 || info.last_layer() >= *info.model_layers)) {
    problems.push_back(problem("layers " + std::to_string(info.first_layer) + " .. " +
                               std::to_string(info.last_layer()) + " do not exist in a model of " +
                               std::to_string(*info.model_layers) + " layers"));
  }
  const auto rope = attributes.integer("rope_applied");
  info.rope_applied = rope == 1;
  if (!info.rope_applied) {
    problems.push_back(problem(
        rope ? "rope_applied is " + std::to_string(*rope) +
                   ": q and k were taken before the rotary embedding"
             : std::string("attribute 'rope_applied' is missing"),
        "hook the attention call itself, after apply_rotary_pos_emb (and after QK-norm where the "
        "model has it), dump q and k there and set rope_applied = 1"));
  }
  if (const auto block = attributes.integer("planted_block")) info.planted.emplace().block = *block;
  return info;
}

void check_annotations(const TraceInfo& info, Problems& problems) {
  if (!info.tokens.empty()) {
    if (static_cast<std::int64_t>(info.tokens.size()) != info.total_tokens) {
      problems.push_back(problem("tokens holds " + std::to_string(info.tokens.size()) +
                                 " ids for total_tokens " + std::to_string(info.total_tokens)));
    }
    const auto bad = std::ranges::find_if(info.tokens, [](std::int32_t id) { return id < 0; });
    if (bad != info.tokens.end()) {
      problems.push_back(problem("tokens[" + std::to_string(bad - info.tokens.begin()) + "] is " +
                                 std::to_string(*bad) + ", not a token id"));
    }
  }
  for (std::size_t i = 0; i < info.answer_spans.size(); ++i) {
    const TokenSpan span = info.answer_spans[i];
    if (span.begin < 0 || span.begin >= span.end || span.end > info.total_tokens) {
      problems.push_back(problem("answer_span[" + std::to_string(i) + "] is [" +
                                 std::to_string(span.begin) + ", " + std::to_string(span.end) +
                                 "), not a range within the " + std::to_string(info.total_tokens) +
                                 " tokens"));
    }
  }
  if (const auto& planted = info.planted) {
    const std::int64_t block = planted->block;
    const std::int64_t rows =
        block < 1 ? 0 : info.total_tokens / block + (info.total_tokens % block ? 1 : 0);
    if (block < 1 || planted->layers != info.num_layers || planted->rows != rows) {
      problems.push_back(problem(
          "planted has the shape " + shape_text({planted->layers, planted->rows, planted->width}) +
          " for " + std::to_string(info.num_layers) + " layers and " + std::to_string(rows) +
          " blocks of planted_block = " + std::to_string(block) + " tokens"));
    } else if (std::ranges::any_of(planted->blocks,
                                   [&](std::int32_t b) { return b < -1 || b >= rows; })) {
      problems.push_back(problem("planted names a block that does not exist"));
    }
  }
}

std::vector<std::int64_t> check_layers(const TraceInfo& info, const std::set<std::int64_t>& found,
                                       Problems& problems) {
  std::vector<std::int64_t> present;
  std::string outside;
  for (const std::int64_t layer : found) {
    if (layer >= info.first_layer && layer <= info.last_layer()) {
      present.push_back(layer);
    } else if (outside.empty()) {
      outside = std::to_string(layer);
    }
  }
  const std::string run = "layers " + std::to_string(info.first_layer) + " .. " +
                          std::to_string(info.last_layer()) +
                          " (attributes first_layer and num_layers)";
  const std::int64_t missing = info.num_layers - static_cast<std::int64_t>(present.size());
  if (missing > 0) {
    std::int64_t first = info.first_layer;
    for (const std::int64_t layer : present) first += layer == first ? 1 : 0;
    problems.push_back(
        problem("layer " + std::to_string(first) + " is missing" +
                (missing > 1 ? " with " + std::to_string(missing - 1) + " more" : "") +
                "; the trace says that it holds " + run));
  }
  if (!outside.empty()) {
    problems.push_back(problem("layer " + outside + " is outside " + run));
  }
  return present;
}

std::string layer_group_name(std::int64_t layer) {
  std::string name = std::to_string(layer);
  if (layer < 10) name.insert(name.begin(), '0');
  return name;
}

std::string tensor_title(std::int64_t layer, TraceTensor tensor) {
  return "layer " + std::to_string(layer) + ": " + std::string(trace_tensor_name(tensor));
}

std::vector<std::int64_t> tensor_shape(const TraceInfo& info, TraceTensor tensor) {
  return {info.heads(tensor), info.total_tokens, info.head_dim};
}

}  // namespace sw
