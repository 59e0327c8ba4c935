#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "core/dtype.hpp"
#include "dataset/dataset.hpp"
#include "trace/trace.hpp"

/// sw-trace capture: runs a model over a prompt and writes the queries, keys and values of its
/// attention, of the prefill and of greedy decode steps. A chunk of tokens goes through all layers
/// and to the file before the next one, so that memory does not hold the trace.
namespace sw {

struct CaptureOptions {
  std::string model;                    ///< a .gguf file
  std::string output;                   ///< .h5 or .safetensors
  std::string dataset;                  ///< one of dataset_kinds()
  SampleRequest sample;                 ///< its length and measure are set by `capture`
  std::optional<std::int64_t> context;  ///< most tokens of the prompt
  std::int64_t decode = 0;              ///< greedy steps after the prompt
  std::string layers;                   ///< "a:b", either end may be missing; empty: all
  DType dtype = DType::kBf16;           ///< of the trace
  DType compute = DType::kF32;          ///< of the model's matrix products and KV cache
  std::string chat_template = "auto";   ///< auto, none, or a name of ChatTemplate
  std::vector<std::string> answers;     ///< more texts whose tokens are stored as answer spans
  bool perplexity = false;
  TraceWriteOptions write;
  bool quiet = false;  ///< no progress
};

struct CaptureResult {
  TraceInfo info;                    ///< as written
  std::int64_t untruncated = 0;      ///< tokens that the whole prompt has
  std::string reply;                 ///< text of the decode steps, up to the end of the turn
  std::optional<double> perplexity;  ///< of the prompt: exp of the mean over tokens 1 .. n-1
};

/// Writes the trace. Throws Error(kUsage) when the context exceeds the model's, a layer range or
/// an answer is not there, Error(kUnsupported) when values exceed the range of the trace's dtype,
/// and the errors of the model, dataset and trace libraries.
CaptureResult capture(CaptureOptions options, const Backend& backend);

}  // namespace sw
