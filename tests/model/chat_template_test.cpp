#include "model/chat_template.hpp"

#include "core/error.hpp"
#include "support.hpp"

namespace sw {
namespace {

// Expected values: the templates rendered by Jinja.
TEST(ChatTemplate, RendersAsJinjaDoes) {
  const auto cases = test::golden("chat.json");
  ASSERT_EQ(cases.size(), 5u * 4 * 2);
  for (const auto& c : cases) {
    const ChatTemplate chat = ChatTemplate::recognise(c["jinja"].get<std::string>());
    EXPECT_EQ(chat.name(), c["name"]);
    std::vector<ChatMessage> messages;
    for (const auto& m : c["messages"]) messages.push_back({m["role"], m["content"]});
    EXPECT_EQ(chat.render(messages, c["prompt"]), c["rendered"]);
    EXPECT_EQ(ChatTemplate(chat.name()).render(messages, c["prompt"]), c["rendered"]);
  }
}

TEST(ChatTemplate, RendersThoughtsAndDatesAsJinjaDoes) {
  const auto templates = test::golden("tokenizers/chats.json");
  ASSERT_EQ(templates.size(), 5u);
  for (const auto& t : templates) {
    // No template text says qwen3-nothink: it is qwen3 with enable_thinking=false.
    const std::string name = t["name"];
    const ChatTemplate found = ChatTemplate::recognise(t["jinja"].get<std::string>());
    EXPECT_EQ(found.name(), name == "qwen3-nothink" ? "qwen3" : name);
    const ChatTemplate chat(name);
    for (const auto& c : t["cases"]) {
      std::vector<ChatMessage> messages;
      for (const auto& m : c["messages"]) messages.push_back({m["role"], m["content"]});
      EXPECT_EQ(chat.render(messages, c["prompt"]), c["rendered"]) << name << c["messages"];
    }
  }
  EXPECT_EQ(ChatTemplate("qwen").name(), "qwen2.5");
}

TEST(ChatTemplate, ComesFromTheFolder) {
  const auto templates = test::golden("tokenizers/chats.json");
  const std::string qwen3 = templates[0]["jinja"];
  const std::string llama31 = templates[3]["jinja"];
  const test::TemporaryFolder folder;
  EXPECT_THROW(ChatTemplate::of_folder(folder.path()), Error);
  const auto config = [&](const nlohmann::json& chat) {
    folder.write("tokenizer_config.json", nlohmann::json{{"chat_template", chat}}.dump());
  };
  config(qwen3);
  EXPECT_EQ(ChatTemplate::of_folder(folder.path()).name(), "qwen3");
  config({{{"name", "tool_use"}, {"template", "x"}}, {{"name", "default"}, {"template", qwen3}}});
  EXPECT_EQ(ChatTemplate::of_folder(folder.path()).name(), "qwen3");
  for (const char* chat : {"null", "1", "[]", "[1]", "{}", R"([{"name": "default"}])",
                           R"([{"name": 1}, {"name": "default", "template": 3}])", "\"other\""}) {
    config(nlohmann::json::parse(chat));
    EXPECT_THROW(ChatTemplate::of_folder(folder.path()), Error) << chat;
  }
  folder.write("tokenizer_config.json", "{");
  EXPECT_THROW(ChatTemplate::of_folder(folder.path()), Error);
  folder.write("chat_template.jinja", llama31);
  EXPECT_EQ(ChatTemplate::of_folder(folder.path()).name(), "llama3.1");
}

TEST(ChatTemplate, RefusesWhatItDoesNotKnow) {
  for (const char* jinja :
       {"", "{{ messages }}", "[INST] {{ messages[0].content }} [/INST]",
        "<|im_start|>{{ '<think>' }}<|im_end|>", "<|im_start|>system\nAnother default<|im_end|>",
        "<|start_header_id|> Today Date: {{ strftime_now() }} <|eot_id|> trim"}) {
    try {
      ChatTemplate::recognise(jinja);
      ADD_FAILURE() << jinja;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      for (const std::string& name : ChatTemplate::names()) {
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      }
    }
  }
  // Templates of a family, changed so that they render something else.
  const auto chats = test::golden("chat.json");
  const auto thoughts = test::golden("tokenizers/chats.json");
  const auto bent = [&](const std::string& name, const std::string& from, const std::string& to) {
    std::string jinja;
    for (const auto& list : {chats, thoughts}) {
      for (const auto& c : list) {
        if (c["name"] == name && jinja.empty()) jinja = c["jinja"];
      }
    }
    const std::size_t at = jinja.find(from);
    ASSERT_NE(at, std::string::npos) << name << ": " << from;
    jinja.replace(at, from.size(), to);
    EXPECT_THROW(ChatTemplate::recognise(jinja), Error) << jinja;
  };
  bent("smollm2", "named SmolLM", "named Somebody");
  bent("qwen2.5", "Alibaba Cloud", "somebody");
  bent("qwen2", "message['content']", "message['content'] | trim");
  bent("chatml", "message['content']", "message['content'].strip()");
  bent("chatml", "{{'<|im_start|>'", "{{bos_token + '<|im_start|>'");
  bent("chatml", "{% for", "{% if messages[0].role != 'system' %}{{ kind }}{% endif %}{% for");
  bent("chatml", "add_generation_prompt", "true");
  bent("llama3", "add_generation_prompt", "true");
  bent("llama3", "{% for", "{{ '<|start_header_id|>system<|end_header_id|>' }}{% for");
  bent("llama3", "{% for", "{{ functions }}{% for");
  bent("llama3.1", "system_message = \"\"", "system_message = \"Be kind.\"");
  bent("llama3.1", "26 Jul 2024", "27 Jul 2024");
  bent("qwen3", "enable_thinking is false", "enable_thinking is true");
  try {
    const ChatTemplate unknown("llama33");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_EQ(error.hint(), "did you mean 'llama3'?");
  }
  const ChatTemplate chat("chatml");
  EXPECT_THROW(chat.render({}, true), Error);
  EXPECT_THROW(chat.render(std::vector<ChatMessage>{{"tool", "x"}}, true), Error);
}

TEST(ChatTemplate, ComesFromTheFile) {
  const Gguf gguf(test::golden_path("tiny_llama.gguf"));
  EXPECT_EQ(ChatTemplate::of(gguf).name(), "chatml");
  const test::TemporaryFile file;
  file.write(test::GgufBuilder().bytes());
  EXPECT_THROW(ChatTemplate::of(Gguf(file.path())), Error);
}

}  // namespace
}  // namespace sw
