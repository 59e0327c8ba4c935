#include "model/gguf.hpp"

#include <algorithm>

#include "fuzz.hpp"
#include "model/checkpoint.hpp"

/// A GGUF file: header, rows of every tensor, tokenizer, configuration and weights of the model.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  const std::string path = folder.write("model.gguf", sw::fuzz::text_of(data, size));
  sw::fuzz::parse([&] {
    const sw::Gguf gguf(path);
    for (const sw::GgufTensor& tensor : gguf.tensors()) {
      std::vector<float> row(static_cast<std::size_t>(tensor.row_elements()));
      tensor.matrix().load_row(0, row.data());
      tensor.matrix().load_row(tensor.rows() - 1, row.data());
    }
    sw::fuzz::parse([&] { sw::ChatTemplate::of(gguf); });
    sw::fuzz::parse([&] {
      const sw::Tokenizer tokenizer(gguf);
      tokenizer.decode(tokenizer.encode("abba <a>12 \xc3\xa9", sw::SpecialText::kParse));
    });
    sw::Checkpoint::open(path);
  });
  return 0;
}
