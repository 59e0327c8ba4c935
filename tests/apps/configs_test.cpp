// The files in configs and the list of `sw-eval methods`: what is documented is what the code does.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/text.hpp"
#include "eval/experiment.hpp"
#include "eval/grid.hpp"
#include "policy/list.hpp"
#include "policy/method_file.hpp"
#include "support/command.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// The JSON files of a folder of configs, by name without ".json".
std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(SW_CONFIGS "/" + folder)) {
    EXPECT_EQ(entry.path().extension(), ".json") << entry.path();
    files[entry.path().stem().string()] = entry.path().string();
  }
  return files;
}

std::string spec_of(const std::string& spec) { return make_policy(spec, 0)->spec(); }

bool is_taken(const std::string& spec) {
  try {
    make_policy(spec, 0);
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    return false;
  }
}

json listed_methods() {
  const auto result = testing::run_command("'" SW_BIN_DIR "/sw-eval' methods --json");
  EXPECT_EQ(result.code, 0) << result.output;
  return json::parse(result.output);
}

/// Values that a range as `sw-eval methods` prints it takes, and values that it does not.
struct Range {
  std::vector<std::string> inside;
  std::vector<std::string> outside;
};

/// "[0, inf)", "(0, 1]" or "a | b".
Range parse_range(const std::string& text, const std::string& type) {
  if (type == "bool" || type == "choice") {
    Range range{{}, {"maybe", "", "TRUE"}};
    for (std::string part : split(text, '|')) {
      part.erase(std::remove(part.begin(), part.end(), ' '), part.end());
      range.inside.push_back(part);
    }
    return range;
  }
  const auto bounds = split(text.substr(1, text.size() - 2), ',');
  EXPECT_EQ(bounds.size(), 2u) << text;
  const bool whole = type == "int";
  const double step = whole ? 1.0 : 1e-6;
  const auto number = [](double x) { return format_double(x); };
  Range range{{}, {"x", "", "nan", "inf"}};
  if (whole) range.outside.emplace_back("1.5");
  const double low = parse_double(bounds[0], text);
  (text.front() == '[' ? range.inside : range.outside).push_back(number(low));
  range.inside.push_back(number(low + step));
  range.outside.push_back(number(low - step));
  const std::string end = bounds[1].substr(1);
  if (end == "inf") {
    range.inside.emplace_back("1000000");
  } else {
    const double high = parse_double(end, text);
    range.inside.push_back(number(high));
    range.outside.push_back(number(high + step));
  }
  return range;
}

/// What a range cannot say, and the help does: SPECs that are refused, and one beside that is not.
const std::map<std::string, std::string> kAsTheHelpSays = {
    {"vertical_slash:budget=top_p", "vertical_slash:budget=top_p,unit=block"},
    {"vertical_slash:budget=calibrated", "vertical_slash:budget=calibrated,unit=block"},
    {"twilight:rounding=steps", "twilight:rounding=steps,budget=matched,unit=block"},
    {"adamas:rounding=steps", "adamas:rounding=steps,unit=block"},
    {"magicpig:rounding=steps", "magicpig:rounding=steps,unit=block"},
    {"snapkv:rounding=steps", "snapkv:rounding=steps,unit=block"},
    {"h2o:rounding=steps", "h2o:rounding=steps,unit=block"},
    {"tova:rounding=steps", "tova:rounding=steps,unit=block"},
    {"snapkv:kernel=2", "snapkv:kernel=3"},
    {"snapkv:kernel=1000000", "snapkv:kernel=999999"}};

/// Options that choose another one, as their help says, and what that one needs.
const std::map<std::string, std::string> kImplied = {{"top_p", ":budget=top_p"}};
const std::map<std::string, std::string> kNeeded = {{"vertical_slash:top_p", ",unit=block"}};

// Each option of each method stands in the list once, and what the list says of it holds: the
// default is what is taken when it is left out, the range is what is taken at all, and two values
// are two methods.
TEST(Methods, TheListAgreesWithTheCode) {
  const json methods = listed_methods();
  ASSERT_EQ(methods.size(), list_methods().size());
  std::set<std::string> names;
  int options = 0;
  for (const json& method : methods) {
    const auto name = method.at("name").get<std::string>();
    SCOPED_TRACE(name);
    EXPECT_TRUE(names.insert(name).second);
    for (const char* key : {"summary", "source", "granularity"}) {
      EXPECT_FALSE(method.at(key).get<std::string>().empty()) << key;
    }
    const std::string method_alone = spec_of(name);
    std::set<std::string> keys;
    std::set<std::string> helps;
    for (const json& option : method.at("options")) {
      const auto key = option.at("name").get<std::string>();
      const auto usual = option.at("default").get<std::string>();
      SCOPED_TRACE(key);
      ++options;
      EXPECT_TRUE(keys.insert(key).second);
      EXPECT_TRUE(helps.insert(option.at("help").get<std::string>()).second);
      EXPECT_FALSE(option.at("help").get<std::string>().empty());
      const auto needed = kNeeded.find(name + ":" + key);
      const std::string also = needed == kNeeded.end() ? "" : needed->second;
      const auto with = [&](const std::string& value) {
        return name + ":" + key + "=" + value + also;
      };
      const auto implied = kImplied.find(key);
      const std::string plain =
          implied == kImplied.end() ? method_alone : spec_of(name + implied->second + also);
      EXPECT_EQ(spec_of(with(usual)), plain);
      const Range range =
          parse_range(option.at("range").get<std::string>(), option.at("type").get<std::string>());
      std::set<std::string> specs;
      for (const std::string& value : range.inside) {
        if (const auto found = kAsTheHelpSays.find(with(value)); found != kAsTheHelpSays.end()) {
          EXPECT_FALSE(is_taken(with(value)));
          EXPECT_TRUE(is_taken(found->second));
          continue;
        }
        ASSERT_TRUE(is_taken(with(value))) << value;
        EXPECT_TRUE(specs.insert(spec_of(with(value))).second) << value;
        EXPECT_EQ(spec_of(with(value)) == plain, value == usual) << value;
      }
      for (const std::string& value : range.outside) EXPECT_FALSE(is_taken(with(value))) << value;
    }
    // What the code takes is in the list: the error for an unknown option names all of them.
    EXPECT_FALSE(is_taken(name + ":no_such_option=1"));
  }
  EXPECT_GE(options, 100);
}

TEST(Configs, EveryMethodIsWhatItSays) {
  std::set<std::string> methods;
  std::set<std::string> presets;
  std::set<std::string> meanings;
  for (const auto& [name, path] : files_of("methods")) {
    SCOPED_TRACE(name);
    const json file = json::parse(read_file(path));
    EXPECT_FALSE(file.at("description").get<std::string>().empty());
    EXPECT_FALSE(file.at("source").get<std::string>().empty());
    const std::string spec = resolve_method(path);
    ASSERT_EQ(expand_method(spec), std::vector<std::string>{spec});
    const auto method = file.at("method").get<std::string>();
    EXPECT_TRUE(meanings.insert(spec_of(spec)).second) << "twice";
    methods.insert(method);
    if (method == "sketchwalk") presets.insert(file.at("options").at("preset").get<std::string>());
    // The paper that the file names is the one that the method names.
    for (const MethodInfo& info : list_methods()) {
      if (info.name != method) continue;
      const auto source = file.at("source").get<std::string>();
      const std::size_t at = source.find("arXiv ");
      if (at == std::string::npos) continue;
      EXPECT_NE(info.source.find(source.substr(at, 16)), std::string::npos) << source;
    }
    // Nothing else than the file decides: an option that it names is given once, with its value.
    for (const auto& [key, value] : file.at("options").items()) {
      const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      EXPECT_NE(("," + spec.substr(spec.find(':') + 1) + ",").find("," + key + "=" + text + ","),
                std::string::npos)
          << key;
    }
  }
  EXPECT_EQ(presets, (std::set<std::string>{"preprint", "release", "tuned"}));
  // Every method that somebody published has a file.
  for (const MethodInfo& info : list_methods()) {
    const bool published =
        info.source.find("arXiv") != std::string::npos && !info.source.starts_with("after ");
    EXPECT_EQ(methods.contains(info.name), published) << info.name;
  }
}

TEST(Configs, EveryExperimentLoads) {
  const auto files = files_of("experiments");
  EXPECT_GE(files.size(), 5u);
  for (const auto& [name, path] : files) {
    SCOPED_TRACE(name);
    const Experiment experiment = parse_experiment(read_file(path), path);
    EXPECT_FALSE(json::parse(read_file(path)).at("description").get<std::string>().empty());
    const auto [methods, densities] =
        std::visit([](const auto& e) { return std::pair(e.methods, e.densities); }, experiment);
    EXPECT_FALSE(parse_densities(densities).empty());
    for (const std::string& grid : methods) {
      for (const std::string& spec : expand_method(resolve_method(grid))) make_policy(spec, 0);
    }
  }
}

TEST(Configs, EveryModelLoads) {
  const auto files = files_of("models");
  EXPECT_GE(files.size(), 2u);
  for (const auto& [name, path] : files) {
    SCOPED_TRACE(name);
    const json model = json::parse(read_file(path));
    EXPECT_EQ(model.at("name"), name);
    for (const char* key : {"title", "license", "file"}) {
      EXPECT_FALSE(model.at(key).get<std::string>().empty()) << key;
    }
    EXPECT_GE(model.at("context").get<int>(), 1);
    EXPECT_GE(model.at("bytes").get<std::int64_t>(), 1);
    const auto hash = model.at("sha256").get<std::string>();
    EXPECT_EQ(hash.size(), 64u);
    EXPECT_EQ(hash.find_first_not_of("0123456789abcdef"), std::string::npos);
    EXPECT_FALSE(model.at("parts").empty());
    for (const json& part : model.at("parts")) {
      EXPECT_NE(part.at("package").get<std::string>().find("=="), std::string::npos);
      EXPECT_FALSE(part.at("member").get<std::string>().empty());
    }
  }
}

// Where a SPEC is accepted, a file is; the report has the SPEC, and does not depend on the file.
TEST(Configs, AMethodFileStandsForItsSpec) {
  const testing::TemporaryFolder folder;
  testing::TinyTrace tiny;
  tiny.layers = 3;
  tiny.first_layer = 0;
  const std::string trace = tiny.write(folder.file("t.h5"));
  const std::string methods = SW_CONFIGS "/methods/";
  const auto run = [&](const std::string& program, const std::string& method,
                       const std::string& out) {
    return testing::run_command(
        "'" SW_BIN_DIR "/" + program + "' trace '" + trace + "' --method '" + method +
        "' --density 0.3 --quiet --backend reference --block 16 -o '" + folder.file(out) + "'");
  };
  for (const char* program : {"sw-eval", "sw-sweep"}) {
    const std::string out = std::string(program) + "-out";
    const auto result = run(program, methods + "sketchwalk-preprint.json", out);
    ASSERT_EQ(result.code, 0) << result.output;
    const json report = json::parse(read_file(folder.file(out + ".json")));
    EXPECT_EQ(report.at("cells").at(0).at("method"), "sketchwalk:preset=preprint,budget=fixed");
  }
  write_file(folder.file("list.json"), R"({"method": "oracle", "options":
             {"granularity": ["layer", "head"]}})",
             false);
  const auto list = run("sw-eval", folder.file("list.json"), "list-out");
  ASSERT_EQ(list.code, 0) << list.output;
  EXPECT_EQ(json::parse(read_file(folder.file("list-out.json"))).at("cells").size(), 4u);
  write_file(folder.file("bad.json"), R"({"method": "oracle", "options": {"granularty": "head"}})",
             false);
  const auto bad = run("sw-eval", folder.file("bad.json"), "bad");
  EXPECT_EQ(bad.code, 2);
  EXPECT_NE(bad.output.find("bad.json'"), std::string::npos) << bad.output;
  EXPECT_NE(bad.output.find("did you mean 'granularity'?"), std::string::npos) << bad.output;
  EXPECT_EQ(run("sw-eval", folder.file("none.json"), "none").code, 1);
}

}  // namespace
}  // namespace sw
