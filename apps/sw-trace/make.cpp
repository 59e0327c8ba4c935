#include <algorithm>
#include <iostream>
#include <memory>

#include "commands.hpp"
#include "core/progress.hpp"
#include "trace/synthetic.hpp"
#include "trace/trace.hpp"

namespace sw {
namespace {

/// Tokens made and written at a time.
constexpr std::int64_t kTokens = 4096;

struct MakeOptions {
  std::string output;
  std::string dtype;
  SyntheticOptions synthetic;
  TraceWriteOptions write;
};

int run_make(MakeOptions options, const CommonOptions& common) {
  SyntheticOptions& synthetic = options.synthetic;
  synthetic.seed = common.seed;
  synthetic.dtype = parse_dtype(options.dtype);
  TraceInfo info = plan_synthetic_trace(synthetic);
  info.created_by = program_version("sw-trace");
  options.write.force = common.force;
  TraceWriter writer(options.output, info, options.write);

  const std::int64_t parts = (info.total_tokens + kTokens - 1) / kTokens;
  Progress progress("making " + options.output, info.num_layers * parts, common.quiet);
  for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
    for (std::int64_t begin = 0; begin < info.total_tokens; begin += kTokens) {
      const std::int64_t end = std::min(begin + kTokens, info.total_tokens);
      for (const TraceTensor tensor : kTraceTensors) {
        writer.append(layer, tensor,
                      synthetic_tokens(synthetic, info, layer, tensor, begin, end).view());
      }
      progress.advance();
    }
  }
  writer.commit();
  return 0;
}

}  // namespace

void setup_make(Program& program) {
  const auto options = std::make_shared<MakeOptions>();
  CLI::App& command = program.add_command(
      "make", "Make a synthetic trace with planted blocks that matter",
      {"sw-trace make -o tiny.h5", "sw-trace make --preset medium --hops 2 -o chains.h5",
       "sw-trace make --preset l8b-128k --compression 0 -o long.h5",
       "sw-trace make --tokens 4096 --heads 8 --kv-heads 2 --dtype f32 -o trace.safetensors"},
      [options](const CommonOptions& common) { return run_make(*options, common); });
  SyntheticOptions& s = options->synthetic;
  options->dtype = std::string(dtype_name(s.dtype));
  command.add_option("-o,--output", options->output, "Trace to write, .h5 or .safetensors")
      ->required();
  // The preset fills in the defaults before the other options, which come later, overwrite them.
  command
      .add_option_function<std::string>(
          "--preset", [&s](const std::string& name) { s = synthetic_preset(name); },
          "Sizes: small (default), medium or l8b-128k; other options change it")
      ->trigger_on_parse()
      ->check(CLI::IsMember(synthetic_presets()));
  command.add_option("--layers", s.num_layers, "Layers in the trace")->capture_default_str();
  command.add_option("--first-layer", s.first_layer, "Index of the first one")
      ->capture_default_str();
  command.add_option("--heads", s.num_heads, "Query heads")->capture_default_str();
  command.add_option("--kv-heads", s.num_kv_heads, "KV heads")->capture_default_str();
  command.add_option("--head-dim", s.head_dim, "Dimensions of a head")->capture_default_str();
  command.add_option("--tokens", s.prefill_tokens, "Tokens of the prefill")->capture_default_str();
  command.add_option("--decode-tokens", s.decode_tokens, "Decode steps after it")
      ->capture_default_str();
  command.add_option("--dtype", options->dtype, "bf16, f16 or f32")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}))
      ->capture_default_str();
  command.add_option("--block", s.block, "Tokens of a block")->capture_default_str();
  command.add_option("--heavy-blocks", s.heavy_blocks, "Blocks planted for each block of queries")
      ->capture_default_str();
  command.add_option("--heavy-strength", s.heavy_strength, "Logit of their keys")
      ->capture_default_str();
  command
      .add_option("--hops", s.hops,
                  "Layers of a chain: blocks that block means show only through others (1: none)")
      ->capture_default_str();
  command.add_option("--sink-strength", s.sink_strength, "Logit of the first 4 tokens")
      ->capture_default_str();
  command.add_option("--local-strength", s.local_strength, "Logit within the block of the query")
      ->capture_default_str();
  command.add_option("--noise", s.noise, "Norm of the random part of q, k and v")
      ->capture_default_str();
  command.add_option("--compression", options->write.compression, "Deflate level of HDF5, 0: off")
      ->check(CLI::Range(0, 9))
      ->capture_default_str();
}

}  // namespace sw
