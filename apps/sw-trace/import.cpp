#include <algorithm>
#include <memory>
#include <optional>

#include "commands.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/progress.hpp"
#include "trace/trace.hpp"

namespace sw {
namespace {

/// Tokens read, converted and written at a time.
constexpr std::int64_t kTokens = 4096;

struct ImportOptions {
  std::string input;
  std::string output;
  std::string dtype;
  TraceWriteOptions write;
};

HeadsTensor convert(const HeadsTensor& in, DType dtype) {
  HeadsTensor out(dtype, in.heads(), in.tokens(), in.dim());
  parallel_for(in.heads() * in.tokens(), [&](std::int64_t row, int) {
    const auto offset = static_cast<std::size_t>(row * in.dim());
    thread_local std::vector<float> values;
    values.resize(static_cast<std::size_t>(in.dim()));
    convert_to_float(in.data() + offset * dtype_size(in.dtype()), in.dtype(), in.dim(),
                     values.data());
    convert_from_float(values.data(), dtype, in.dim(), out.data() + offset * dtype_size(dtype));
  });
  return out;
}

int run_import(ImportOptions options, const CommonOptions& common) {
  const TraceReader reader(options.input);
  TraceInfo info = reader.info();
  if (!options.dtype.empty()) info.dtype = parse_dtype(options.dtype);
  options.write.force = common.force;
  TraceWriter writer(options.output, info, options.write);

  const std::int64_t parts = (info.total_tokens + kTokens - 1) / kTokens;
  Progress progress("writing " + options.output, info.num_layers * parts, common.quiet);
  for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
    for (std::int64_t begin = 0; begin < info.total_tokens; begin += kTokens) {
      const std::int64_t end = std::min(begin + kTokens, info.total_tokens);
      for (const TraceTensor tensor : kTraceTensors) {
        HeadsTensor part = reader.read(layer, tensor, begin, end);
        if (part.dtype() != info.dtype) part = convert(part, info.dtype);
        if (const auto bad = find_non_finite(part.view())) {
          throw Error(ErrorKind::kUnsupported,
                      "layer " + std::to_string(layer) + ": " +
                          std::string(trace_tensor_name(tensor)) + " at head " +
                          std::to_string(bad->head) + ", token " +
                          std::to_string(begin + bad->token) + " exceeds the range of " +
                          std::string(dtype_name(info.dtype)),
                      "convert to bf16 or f32, or leave the dtype as it is");
        }
        writer.append(layer, tensor, part.view());
      }
      progress.advance();
    }
  }
  writer.commit();
  return 0;
}

}  // namespace

void setup_import(Program& program) {
  const auto options = std::make_shared<ImportOptions>();
  CLI::App& command = program.add_command(
      "import", "Convert a trace between HDF5 and safetensors, or to another dtype",
      {"sw-trace import trace.safetensors -o trace.h5",
       "sw-trace import trace.h5 --dtype f32 -o trace.safetensors"},
      [options](const CommonOptions& common) { return run_import(*options, common); });
  command.add_option("file", options->input, "Trace to read")->required();
  command.add_option("-o,--output", options->output, "Trace to write, .h5 or .safetensors")
      ->required();
  command.add_option("--dtype", options->dtype, "bf16, f16 or f32 (default: as it is)")
      ->check(CLI::IsMember({"bf16", "f16", "f32"}));
  command.add_option("--compression", options->write.compression, "Deflate level of HDF5, 0: off")
      ->check(CLI::Range(0, 9))
      ->capture_default_str();
}

}  // namespace sw
