#include "core/safetensors.hpp"

#include "fuzz.hpp"

/// A safetensors file, header and tensors, as models and traces are stored in.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("model.safetensors", sw::fuzz::text_of(data, size));
  sw::fuzz::parse([&] {
    const sw::Safetensors file(path);
    unsigned sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      for (const std::byte b : tensor.data) sum += std::to_integer<unsigned>(b);
    }
    sw::fuzz::require(sum <= 255 * size);
  });
  return 0;
}
