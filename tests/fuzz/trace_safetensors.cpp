#include "fuzz.hpp"
#include "trace/trace.hpp"

/// A trace as safetensors: attributes, annotations and every value.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("trace.safetensors", sw::fuzz::text_of(data, size));
  const bool good = sw::validate_trace(path).empty();
  sw::fuzz::parse([&] {
    const sw::TraceReader reader(path);
    if (good) reader.layer(reader.info().first_layer);
  });
  return 0;
}
