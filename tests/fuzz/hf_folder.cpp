#include "model/hf_folder.hpp"

#include "fuzz.hpp"
#include "model/checkpoint.hpp"

/// A Hugging Face folder: config.json, the index of the weights (or nothing) and the weights of
/// model.safetensors, with a byte 0xFF between the first three.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  std::string_view rest = sw::fuzz::text_of(data, size);
  folder.write("config.json", sw::fuzz::next_part(rest));
  folder.write_or_remove("model.safetensors.index.json", sw::fuzz::next_part(rest));
  folder.write("model.safetensors", rest);
  sw::fuzz::parse([&] {
    const sw::HfFolder model(folder.path());
    sw::read_config(model.config());
    sw::Checkpoint::open(folder.path());
  });
  return 0;
}
