#include "model/tokenizer.hpp"

#include "fuzz.hpp"

/// A Hugging Face tokenizer: tokenizer.json, tokenizer_config.json, generation_config.json and a
/// text to encode, with a byte 0xFF between them. What is encoded decodes to valid ids' bytes.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  std::string_view rest = sw::fuzz::text_of(data, size);
  folder.write("tokenizer.json", sw::fuzz::next_part(rest));
  folder.write_or_remove("tokenizer_config.json", sw::fuzz::next_part(rest));
  folder.write_or_remove("generation_config.json", sw::fuzz::next_part(rest));
  sw::fuzz::parse([&] {
    const auto tokenizer = sw::Tokenizer::from_folder(folder.path());
    const std::string_view text = rest.substr(0, 256);
    for (const auto special : {sw::SpecialText::kPlain, sw::SpecialText::kParse}) {
      tokenizer.decode(tokenizer.encode(text, special));
    }
  });
  return 0;
}
