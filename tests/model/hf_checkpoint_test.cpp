#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/safetensors.hpp"
#include "kernels/cpu/backend.hpp"
#include "model/checkpoint.hpp"
#include "model/transformer.hpp"
#include "naive_attention.hpp"
#include "support.hpp"

// Checkpoints of every family as transformers writes them, two of them as GGUF, too
// (golden/hf_*, written by make_hf_goldens.py). Expected values: transformers in f32.

namespace sw {
namespace {

using Ids = std::vector<std::int32_t>;
using nlohmann::json;

template <class T>
std::vector<T> values(const Safetensors& file, const std::string& name) {
  const auto data = file.tensors().at(name).data;
  std::vector<T> result(data.size() / sizeof(T));
  std::memcpy(result.data(), data.data(), data.size());
  return result;
}

class HfModel : public ::testing::TestWithParam<const char*> {
 protected:
  HfModel()
      : file(GetParam()),
        family(file.substr(0, file.find('.'))),
        expected(test::golden_path("hf_" + family + ".expected")),
        prompt(values<std::int32_t>(expected, "prompt")),
        greedy(values<std::int32_t>(expected, "greedy")),
        logits(values<float>(expected, "logits")),
        checkpoint(Checkpoint::open(test::golden_path("hf_" + file))) {}

  void expect_text(std::int64_t chunk) const {
    const auto backend = make_cpu_backend();
    expect_text(chunk, test::naive_attention);
    expect_text(chunk, dense_attention(*backend));
  }

  /// The prompt's logits, then 64 greedy tokens, with the prompt in chunks of `chunk`.
  void expect_text(std::int64_t chunk, const AttentionFunction& attention) const {
    const Model model(checkpoint, DType::kF32);
    Session session(model, attention, {.capacity = 160, .chunk_tokens = chunk});
    std::vector<float> got;
    session.run(prompt, [&](std::int64_t, std::int64_t rows, const float* x) {
      got.insert(got.end(), x, x + rows * model.config().vocabulary);
    });
    ASSERT_EQ(got.size(), logits.size());
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      error = std::max(error, std::abs(double{got[i]} - logits[i]));
    }
    EXPECT_LE(error, 2e-4);
    Ids text;
    while (text.size() < greedy.size()) {
      text.push_back(argmax(session.last_logits()));
      session.run({&text.back(), 1});
    }
    EXPECT_EQ(text, greedy);
  }

  std::string file;
  std::string family;
  Safetensors expected;
  Ids prompt, greedy;
  std::vector<float> logits;  // [prompt, vocabulary]
  std::shared_ptr<const Checkpoint> checkpoint;
};

TEST_P(HfModel, LogitsAndGreedyTextInOnePrefill) { expect_text(96); }
TEST_P(HfModel, LogitsAndGreedyTextInChunks) { expect_text(7); }
TEST_P(HfModel, LogitsAndGreedyTextTokenByToken) { expect_text(1); }

TEST_P(HfModel, PrefillOfTheWholeTextChoosesTheSameTokens) {
  const Model model(checkpoint, DType::kF32);
  Ids all = prompt;
  all.insert(all.end(), greedy.begin(), greedy.end() - 1);
  for (const std::int64_t chunk : {160, 7}) {
    Session session(model, test::naive_attention, {.capacity = 160, .chunk_tokens = chunk});
    Ids chosen;
    session.run(all, [&](std::int64_t, std::int64_t rows, const float* x) {
      for (std::int64_t r = 0; r < rows; ++r, x += model.config().vocabulary) {
        chosen.push_back(argmax({x, static_cast<std::size_t>(model.config().vocabulary)}));
      }
    });
    EXPECT_EQ(Ids(chosen.begin() + 95, chosen.end()), greedy);
  }
}

TEST_P(HfModel, FrequenciesEqualHuggingFace) {
  const auto frequencies = values<float>(expected, "inverse_frequencies");
  const ModelConfig& c = checkpoint->config();
  ASSERT_EQ(c.inverse_frequencies.size(), frequencies.size());
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    EXPECT_NEAR(c.inverse_frequencies[i] / frequencies[i], 1.0, 1e-6);
  }
  EXPECT_EQ(c.rope_scaling, family == "llama" ? "llama3" : "none");
}

TEST_P(HfModel, WeightsAreCounted) {
  for (const DType compute : {DType::kF32, DType::kBf16}) {
    const Model model(checkpoint, compute);
    EXPECT_GE(model.weight_bytes(), estimated_weight_bytes(model.config(), compute));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, HfModel,
                         ::testing::Values("llama", "llama.gguf", "qwen3", "qwen3.gguf", "qwen2",
                                           "smollm2"),
                         [](const auto& param) {
                           std::string name = param.param;
                           if (const auto at = name.find('.'); at != std::string::npos)
                             name[at] = '_';
                           return name;
                         });

TEST(HfCheckpoint, TellsWhatItIs) {
  const std::string folder = test::golden_path("hf_qwen2");
  const auto qwen2 = Checkpoint::open(folder + "/");
  EXPECT_EQ(qwen2->format(), "Hugging Face");
  EXPECT_EQ(qwen2->path(), folder + "/");
  EXPECT_EQ(qwen2->files().size(), 5u);  // config.json, the index, three shards
  for (const std::string& file : qwen2->files()) EXPECT_TRUE(std::filesystem::exists(file)) << file;
  const ModelConfig& c = qwen2->config();
  EXPECT_EQ(c.architecture, "qwen2");
  EXPECT_EQ(c.name, "hf_qwen2");
  EXPECT_EQ(c.context_length, 256);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_TRUE(c.tied_embeddings);
  const auto qwen3 = Checkpoint::open(test::golden_path("hf_qwen3.gguf"));
  EXPECT_EQ(qwen3->format(), "GGUF");
  EXPECT_EQ(qwen3->files(), std::vector{test::golden_path("hf_qwen3.gguf")});
  EXPECT_EQ(qwen3->config().head_dim, 24);
  EXPECT_TRUE(qwen3->config().qk_norm);
  EXPECT_FALSE(qwen3->config().tied_embeddings);
}

/// A copy of a golden folder that a test can damage.
struct BentFolder : test::TemporaryFolder {
  explicit BentFolder(const std::string& name) {
    std::filesystem::copy(test::golden_path(name), path());
  }
  void edit_json(const std::string& name, const std::function<void(json&)>& edit) const {
    json value = json::parse(read(name));
    edit(value);
    write(name, value.dump());
  }
  /// Rewrites a safetensors file; a tensor whose value becomes null is left out, one that gets the
  /// key "like" is a copy of that one.
  void edit_tensors(const std::string& name, const std::function<void(json&)>& edit) const {
    const std::string bytes = read(name);
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), 8);
    json header = json::parse(bytes.substr(8, size));
    const std::string data = bytes.substr(8 + size);
    header.erase("__metadata__");
    edit(header);
    json written;
    std::string kept;
    for (auto& [tensor, value] : header.items()) {
      if (value.is_null()) continue;
      const auto begin = value["data_offsets"][0].get<std::size_t>();
      const auto end = value["data_offsets"][1].get<std::size_t>();
      value["data_offsets"] = {kept.size(), kept.size() + end - begin};
      kept += data.substr(begin, end - begin);
      written[tensor] = value;
    }
    const std::string text = written.dump();
    size = text.size();
    write(name, std::string(reinterpret_cast<const char*>(&size), 8) + text + kept);
  }
  void refuses(ErrorKind kind, const std::string& part) const {
    try {
      Checkpoint::open(path());
      ADD_FAILURE() << "no error, expected: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << error.what() << "\nexpected: " << part;
      EXPECT_FALSE(error.hint().empty());
    }
  }
};

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard = "model-00002-of-00003.safetensors";

TEST(HfShards, AMissingShardIsNamed) {
  const BentFolder folder("hf_qwen2");
  std::filesystem::remove(folder.file(kShard));
  folder.refuses(ErrorKind::kInput, std::string("has no '") + kShard);
}

TEST(HfShards, AnExtraShardIsNamed) {
  const BentFolder folder("hf_qwen2");
  folder.write("model-00004-of-00004.safetensors", folder.read(kShard));
  folder.refuses(ErrorKind::kInput, "'model-00004-of-00004.safetensors', which its index");
  const BentFolder single("hf_llama");
  single.write("model-00001-of-00002.safetensors", single.read("model.safetensors"));
  single.refuses(ErrorKind::kInput, "'model-00001-of-00002.safetensors', which no index");
}

TEST(HfShards, TheIndexMustFit) {
  const auto with_index = [](const std::function<void(json&)>& edit, const std::string& part) {
    const BentFolder folder("hf_qwen2");
    folder.edit_json(kIndex, edit);
    folder.refuses(ErrorKind::kInput, part);
  };
  const std::string norm = "model.norm.weight";
  with_index([&](json& j) { j["weight_map"]["model.absent"] = j["weight_map"][norm]; },
             "names the tensor 'model.absent'");
  with_index([&](json& j) { j["weight_map"].erase(norm); },
             "tensor 'model.norm.weight', which the index does not name");
  with_index([&](json& j) { j["weight_map"][norm] = kShard; },
             "names the tensor 'model.norm.weight', which '");
  with_index([](json& j) { j.erase("weight_map"); }, "weight_map' is missing");
  with_index([](json& j) { j["weight_map"] = json::array(); }, "weight_map' is not an object");
  with_index([](json& j) { j["weight_map"] = json::object(); }, "which its index does not name");
  for (const json& name : {json("../x.safetensors"), json("/x.safetensors"), json("model.bin"),
                           json(""), json(nullptr)}) {
    with_index([&](json& j) { j["weight_map"][norm] = name; }, "not the name of a safetensors");
  }
  with_index([&](json& j) { j["weight_map"][norm] = 1; }, "is not a text");
  with_index([&](json& j) { j["weight_map"][norm] = std::string(5000, 'x') + ".safetensors"; },
             "which its index names");
  const BentFolder folder("hf_qwen2");
  folder.write(kIndex, "{");
  folder.refuses(ErrorKind::kInput, "is not a JSON object");
}

TEST(HfShards, TheSameTensorInTwoShardsIsAnError) {
  const BentFolder folder("hf_qwen2");
  folder.edit_tensors(kShard, [](json& header) {
    header["model.norm.weight"] = header["model.layers.0.input_layernorm.weight"];
  });
  folder.refuses(ErrorKind::kInput, "the tensor 'model.norm.weight', which the index says");
}

TEST(HfShards, NoWeightsAreNamed) {
  const BentFolder folder("hf_llama");
  std::filesystem::remove(folder.file("model.safetensors"));
  folder.refuses(ErrorKind::kInput, "neither model.safetensors nor");
  std::filesystem::remove(folder.file("config.json"));
  folder.refuses(ErrorKind::kInput, "config.json");
  EXPECT_THROW(Checkpoint::open(folder.file("none")), Error);
}

TEST(HfTensors, AreExactlyThoseOfTheConfiguration) {
  const auto with_tensors = [](ErrorKind kind, const std::function<void(json&)>& edit,
                               const std::string& part) {
    const BentFolder folder("hf_smollm2");
    folder.edit_tensors("model.safetensors", edit);
    folder.refuses(kind, part);
  };
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  with_tensors(
      ErrorKind::kInput, [&](json& h) { h[q] = nullptr; }, "no tensor '" + q);
  with_tensors(
      ErrorKind::kUnsupported,
      [&](json& h) { h["model.layers.1.self_attn.q_norm.weight"] = h["model.norm.weight"]; },
      "'model.layers.1.self_attn.q_norm.weight', which its architecture does not use");
  with_tensors(
      ErrorKind::kUnsupported, [&](json& h) { h["model.layers.3.mlp.up_proj.weight"] = h[q]; },
      "'model.layers.3.mlp.up_proj.weight', which");
  with_tensors(
      ErrorKind::kInput,
      [&](json& h) {
        h[q]["shape"] = {16, 64};
      },
      q + "' has 16 rows of 64, but the configuration asks for 32 of 32");
  with_tensors(
      ErrorKind::kUnsupported,
      [&](json& h) {
        h[q]["shape"] = {32, 8, 4};
      },
      "the shape [32, 8, 4]");
  with_tensors(
      ErrorKind::kUnsupported, [&](json& h) { h[q]["dtype"] = "I32"; }, "stored as I32");
}

TEST(HfTensors, BuffersOfFrequenciesAreIgnored) {
  const BentFolder folder("hf_smollm2");
  folder.edit_tensors("model.safetensors", [](json& h) {
    h["model.layers.0.self_attn.rotary_emb.inv_freq"] = h["model.norm.weight"];
  });
  EXPECT_NO_THROW(Checkpoint::open(folder.path()));
}

TEST(HfTensors, ATiedOutputMayBeThereTwice) {
  const BentFolder folder("hf_smollm2");
  folder.edit_tensors("model.safetensors",
                      [](json& h) { h["lm_head.weight"] = h["model.embed_tokens.weight"]; });
  EXPECT_NO_THROW(Checkpoint::open(folder.path()));
  std::string bytes = folder.read("model.safetensors");
  bytes[8 + bytes.find("}}") + 64] ^= 1;  // among the first elements: those of lm_head
  folder.write("model.safetensors", bytes);
  folder.refuses(ErrorKind::kInput, "'lm_head.weight' is not 'model.embed_tokens.weight'");
  folder.edit_json("config.json", [](json& j) { j["tie_word_embeddings"] = false; });
  EXPECT_FALSE(Checkpoint::open(folder.path())->config().tied_embeddings);
}

TEST(HfTensors, AnUnevenAddressIsNoError) {
  const auto straight = Checkpoint::open(test::golden_path("hf_llama"));
  const BentFolder folder("hf_llama");
  std::string bytes = folder.read("model.safetensors");
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), 8);
  ++size;
  bytes.insert(static_cast<std::size_t>(size) + 7, " ");
  std::memcpy(bytes.data(), &size, 8);
  folder.write("model.safetensors", bytes);
  const auto bent = Checkpoint::open(folder.path());
  std::vector<float> a(48), b(48);
  for (std::int64_t row = 0; row < 288; ++row) {
    straight->weight(WeightRole::kEmbedding).load_row(row, a.data());
    bent->weight(WeightRole::kEmbedding).load_row(row, b.data());
    ASSERT_EQ(a, b);
  }
}

void refuses_config(const std::string& name, ErrorKind kind, const std::function<void(json&)>& edit,
                    const std::string& part) {
  const BentFolder folder(name);
  folder.edit_json("config.json", edit);
  folder.refuses(kind, part);
}

TEST(HfTensors, TheTokenizerMayNotHaveMoreTokensThanTheEmbedding) {
  const BentFolder folder("hf_smollm2");
  const auto write_tokenizer = [&](int tokens) {
    json vocabulary;
    for (int id = 0; id < tokens; ++id) {
      std::string word;  // 0 is "a", 26 is "ba", as numbers with 26 letters
      for (int rest = id; rest > 0 || word.empty(); rest /= 26) {
        word.insert(word.begin(), static_cast<char>('a' + rest % 26));
      }
      vocabulary[word] = id;
    }
    folder.write(
        "tokenizer.json",
        json{{"version", "1.0"},
             {"added_tokens", json::array()},
             {"normalizer", nullptr},
             {"pre_tokenizer",
              {{"type", "ByteLevel"},
               {"add_prefix_space", false},
               {"trim_offsets", true},
               {"use_regex", true}}},
             {"post_processor", nullptr},
             {"decoder",
              {{"type", "ByteLevel"},
               {"add_prefix_space", true},
               {"trim_offsets", true},
               {"use_regex", true}}},
             {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}}
            .dump());
  };
  write_tokenizer(288);
  EXPECT_EQ(Checkpoint::open(folder.path())->tokenizer().size(), 288);
  write_tokenizer(100);  // the other rows are padding
  EXPECT_EQ(Checkpoint::open(folder.path())->tokenizer().size(), 100);
  write_tokenizer(289);
  try {
    Checkpoint::open(folder.path())->tokenizer();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInput);
    EXPECT_NE(std::string(error.what()).find("289 tokens"), std::string::npos) << error.what();
  }
}

TEST(HfConfig, RefusesWhatIsNotComputed) {
  const auto refuses = [](const std::string& key, const json& value, const std::string& part) {
    refuses_config(
        "hf_llama", ErrorKind::kUnsupported, [&](json& j) { j[key] = value; }, part);
  };
  refuses("model_type", "mixtral", "'mixtral'");
  refuses("architectures", {"MixtralForCausalLM"}, "'MixtralForCausalLM'");
  refuses("architectures", {"LlamaForSequenceClassification"}, "SequenceClassification");
  refuses("attention_bias", true, "attention_bias = true");
  refuses("mlp_bias", true, "mlp_bias = true");
  refuses("hidden_act", "gelu", "hidden_act = \"gelu\"");
  refuses("num_local_experts", 8, "num_local_experts = 8");
  refuses("num_experts", 8, "num_experts = 8");
  refuses("quantization_config", {{"quant_method", "gptq"}}, "quantization_config");
  refuses("attn_logit_softcapping", 50.0, "attn_logit_softcapping = 50");
  refuses("final_logit_softcapping", 30.0, "final_logit_softcapping");
  refuses("partial_rotary_factor", 0.5, "part of the head");
  refuses("use_sliding_window", true, "use_sliding_window");
  refuses("sliding_window", 4096, "sliding_window = 4096");
  refuses("layer_types", {"full_attention", "sliding_attention"}, "sliding_attention");
  refuses("auto_map", {{"AutoModel", "x.py"}}, "auto_map");
  refuses("rope_interleaved", true, "rope_interleaved");
  for (const char* type : {"linear", "dynamic", "yarn", "longrope", "su", "mrope"}) {
    const std::string named = std::string("RoPE scaling '") + type + "'";
    refuses("rope_parameters", {{"rope_type", type}, {"factor", 4.0}, {"beta_fast", 32}}, named);
    refuses_config(
        "hf_smollm2", ErrorKind::kUnsupported,
        [&](json& j) {
          j["rope_scaling"] = {{"type", type}, {"factor", 4.0}};
        },
        named);
  }
  refuses_config(
      "hf_llama", ErrorKind::kUnsupported,
      [](json& j) { j["rope_parameters"]["attention_factor"] = 1.2; },
      "rope_parameters.attention_factor");
  refuses_config(
      "hf_smollm2", ErrorKind::kUnsupported,
      [](json& j) {
        j["rope_scaling"] = {{"factor", 4.0}};
      },
      "rope_scaling.factor");
  refuses_config(
      "hf_llama", ErrorKind::kUnsupported,
      [](json& j) { j["rope_parameters"]["partial_rotary_factor"] = 0.25; }, "part of the head");
}

TEST(HfConfig, AcceptsFieldsThatChangeNothing) {
  const BentFolder folder("hf_qwen2");
  folder.edit_json("config.json", [](json& j) {
    j["sliding_window"] = 131072;  // Qwen2.5 states one that is not used
    j["use_sliding_window"] = false;
    j["partial_rotary_factor"] = 1.0;
    j["num_experts"] = 0;
    j["quantization_config"] = nullptr;
    j["rope_scaling"] = nullptr;
    j.erase("layer_types");
    j.erase("architectures");
    j["an_unknown_field"] = {{"x", 1}};
  });
  EXPECT_NO_THROW(Checkpoint::open(folder.path()));
}

TEST(HfConfig, BothWaysToWriteRopeAreRead) {
  const auto expected = Checkpoint::open(test::golden_path("hf_llama"))->config();
  const BentFolder folder("hf_llama");
  folder.edit_json("config.json", [](json& j) {
    json rope = j["rope_parameters"];
    j.erase("rope_parameters");
    j["rope_theta"] = rope["rope_theta"];
    rope.erase("rope_theta");
    j["rope_scaling"] = rope;
  });
  const auto old = Checkpoint::open(folder.path())->config();
  EXPECT_EQ(old.inverse_frequencies, expected.inverse_frequencies);
  EXPECT_EQ(old.rope_base, expected.rope_base);
  EXPECT_EQ(old.rope_scaling, "llama3");
  folder.edit_json("config.json", [](json& j) {  // both, and the name of transformers before 4.43
    j["rope_parameters"] = j["rope_scaling"];
    j["rope_parameters"]["rope_theta"] = j["rope_theta"];
    j["rope_scaling"]["type"] = "llama3";
  });
  EXPECT_EQ(Checkpoint::open(folder.path())->config().inverse_frequencies,
            expected.inverse_frequencies);
}

TEST(HfConfig, ContradictionsAreErrors) {
  const auto refuses = [](const std::function<void(json&)>& edit, const std::string& part) {
    refuses_config("hf_llama", ErrorKind::kInput, edit, part);
  };
  refuses([](json& j) { j["rope_theta"] = 500000.0; }, "rope_parameters.rope_theta' contradicts");
  refuses([](json& j) { j["rope_scaling"] = {{"type", "linear"}}; }, "rope_scaling.type'");
  refuses(
      [](json& j) {
        j["rope_scaling"] = {{"rope_type", "llama3"}, {"factor", 4.0}};
      },
      "rope_scaling.factor' contradicts");
  refuses([](json& j) { j["rope_parameters"].erase("factor"); }, "no factor");
  refuses([](json& j) { j["rope_parameters"]["factor"] = 0; }, "factor");
  refuses([](json& j) { j["rope_parameters"]["high_freq_factor"] = 1.0; }, "high_freq_factor");
  refuses([](json& j) { j["num_key_value_heads"] = 2; }, "3 heads");
  refuses([](json& j) { j["head_dim"] = 15; }, "15, which is odd");
  refuses([](json& j) { j["head_dim"] = 32; }, "q_proj.weight' has 48 rows of 48");
  refuses([](json& j) { j["hidden_size"] = 64; }, "embed_tokens.weight' has 288 rows of 48");
  refuses([](json& j) { j["vocab_size"] = 300; }, "asks for 300 of 48");
  refuses([](json& j) { j["intermediate_size"] = 81; }, "asks for 81 of 48");
  refuses([](json& j) { j["num_hidden_layers"] = 3; }, "no tensor 'model.layers.2");
  refuses([](json& j) { j["layer_types"] = {"full_attention"}; }, "1 entries for 2 layers");
  refuses_config(
      "hf_llama", ErrorKind::kUnsupported, [](json& j) { j["num_hidden_layers"] = 1; },
      "'model.layers.1");
  refuses([](json& j) { j["tie_word_embeddings"] = true; }, "lm_head");
}

TEST(HfConfig, WrongTypesAndAbsurdSizesAreErrors) {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    for (const json& value :
         {json("48"), json(48.5), json(1e300), json(true), json::array(), json::object(), json(0),
          json(-1), json(INT64_MAX), json(INT64_MIN), json(UINT64_MAX), json(1 << 20)}) {
      if (std::string(key) == "max_position_embeddings" && (value == 0 || value == 1 << 20))
        continue;
      refuses_config(
          "hf_qwen3", ErrorKind::kInput, [&](json& j) { j[key] = value; }, "");
    }
    if (std::string(key) == "num_key_value_heads") continue;
    refuses_config(
        "hf_qwen3", ErrorKind::kInput, [&](json& j) { j.erase(key); },
        std::string(key) + "' is missing");
  }
  for (const json& value : {json("1e-6"), json(0), json(-1.0), json(true), json::array()}) {
    refuses_config(
        "hf_qwen3", ErrorKind::kInput, [&](json& j) { j["rms_norm_eps"] = value; }, "rms_norm_eps");
    refuses_config(
        "hf_qwen3", ErrorKind::kInput, [&](json& j) { j["rope_parameters"]["rope_theta"] = value; },
        "rope_theta");
  }
  refuses_config(
      "hf_qwen3", ErrorKind::kInput, [](json& j) { j["rope_parameters"] = 3; },
      "rope_parameters' is not an object");
  refuses_config(
      "hf_qwen3", ErrorKind::kInput, [](json& j) { j["architectures"] = "x"; },
      "architectures' is not a list");
  refuses_config(
      "hf_qwen3", ErrorKind::kInput,
      [](json& j) {
        j["layer_types"] = {1, 2, 3};
      },
      "not a list of texts");
  refuses_config(
      "hf_qwen3", ErrorKind::kInput, [](json& j) { j.erase("model_type"); },
      "model_type' is missing");
  refuses_config(
      "hf_qwen3", ErrorKind::kInput, [](json& j) { j["tie_word_embeddings"] = 1; },
      "tie_word_embeddings");
}

TEST(HfConfig, MustBeAJsonObject) {
  const BentFolder folder("hf_llama");
  const std::string whole = folder.read("config.json");
  std::string twice = whole;
  twice.insert(1, "\"head_dim\": 16,");
  for (const auto& [text, part] : std::vector<std::pair<std::string, std::string>>{
           {"", "not a JSON object"},
           {"[1]", "not a JSON object"},
           {"{\"hidden_size\": NaN}", "not a JSON object"},
           {std::string("\0\1\2", 3), "not a JSON object"},
           {std::string(100000, '['), "nested too deeply"},
           {"{\"a\":" + std::string(100000, '['), "nested too deeply"},
           {twice, "names 'head_dim' twice"}}) {
    folder.write("config.json", text);
    folder.refuses(ErrorKind::kInput, part);
  }
}

/// Opens and runs what is left of a folder; true when nothing was noticed.
bool survives(const BentFolder& folder) {
  try {
    const auto checkpoint = Checkpoint::open(folder.path());
    std::vector<float> row(static_cast<std::size_t>(checkpoint->config().hidden));
    checkpoint->weight(WeightRole::kEmbedding).load_row(0, row.data());
    return true;
  } catch (const Error& error) {
    EXPECT_STRNE(error.what(), "");
    return false;
  }
}

TEST(HostileHf, EveryTruncationIsAnError) {
  const BentFolder folder("hf_qwen2");
  for (const std::string name : {"config.json", kIndex, kShard}) {
    const std::string bytes = folder.read(name);
    const std::size_t step = name == kShard ? 97 : 7;
    for (std::size_t size = 0; size + 2 < bytes.size(); size += step) {
      folder.write(name, bytes.substr(0, size));
      ASSERT_FALSE(survives(folder)) << name << " with " << size << " bytes";
    }
    folder.write(name, bytes);
  }
  EXPECT_TRUE(survives(folder));
}

TEST(HostileHf, EveryChangedByteIsSurvived) {
  const BentFolder folder("hf_qwen2");
  for (const std::string name : {"config.json", kIndex, kShard}) {
    const std::string bytes = folder.read(name);
    const std::size_t end = std::min<std::size_t>(bytes.size(), 1500);
    for (std::size_t i = 0; i < end; ++i) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ (1 << i % 8));
      folder.write(name, changed);
      survives(folder);
    }
    folder.write(name, bytes);
  }
}

}  // namespace
}  // namespace sw
