#include "model/chat_template.hpp"

#include "fuzz.hpp"

/// A chat template, by itself and as tokenizer_config.json, and a message to render.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const sw::fuzz::Folder folder;
  std::string_view rest = sw::fuzz::text_of(data, size);
  const std::string_view source = sw::fuzz::next_part(rest);
  const std::vector<sw::ChatMessage> messages = {
      {"system", "s"}, {"user", std::string(rest)}, {"assistant", std::string(rest)}};
  const auto render = [&](const sw::ChatTemplate& chat) {
    chat.render(messages, true);
    chat.render({messages.data() + 1, 1}, false);
  };
  sw::fuzz::parse([&] { render(sw::ChatTemplate::recognise(source)); });
  for (const char* name : {"qwen3", "llama3.1"}) render(sw::ChatTemplate(name));
  folder.write("tokenizer_config.json", source);
  sw::fuzz::parse([&] { render(sw::ChatTemplate::of_folder(folder.path())); });
  return 0;
}
