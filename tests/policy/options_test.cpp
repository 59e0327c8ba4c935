#include <gtest/gtest.h>

#include "core/error.hpp"
#include "policy/list.hpp"
#include "policy/method_file.hpp"

namespace sw {
namespace {

/// The error of making `spec`, as "message | hint".
std::string error_of(const std::string& spec) {
  try {
    make_policy(spec, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return std::string(error.what()) + " | " + error.hint();
  }
  return "no error";
}

TEST(MethodSpec, CanonicalFormNamesWhatDiffersFromThePreset) {
  EXPECT_EQ(make_policy("dense", 0)->spec(), "dense");
  EXPECT_EQ(make_policy("oracle", 0)->spec(), "oracle");
  EXPECT_EQ(make_policy("oracle:granularity=layer,forced=true", 0)->spec(), "oracle:forced=true");
  EXPECT_EQ(make_policy("sketchwalk", 0)->spec(), "sketchwalk:preset=release");
  EXPECT_EQ(make_policy("sketchwalk:temperature=100", 0)->spec(), "sketchwalk:preset=release");
  EXPECT_EQ(make_policy("sketchwalk:sketch_dim=64,preset=preprint,sharpness=4", 0)->spec(),
            "sketchwalk:preset=preprint,sketch_dim=64,sharpness=4");
  EXPECT_EQ(make_policy("sketchwalk:key_pool=8,preset=tuned,temperature=1.2", 0)->spec(),
            "sketchwalk:preset=tuned,key_pool=8");
}

TEST(MethodSpec, CanonicalFormReadsBackAsItself) {
  for (const std::string spec :
       {"sketchwalk:preset=preprint,walk=damped,damping=0.5", "random:dense_layers=0",
        "sketchwalk:budget=release,release_sink_bug=false,kfrac=0.25", "sink_window"}) {
    const std::string canonical = make_policy(spec, 0)->spec();
    EXPECT_EQ(make_policy(canonical, 0)->spec(), canonical);
  }
}

TEST(MethodSpec, EveryListedOptionTakesItsDefault) {
  for (const MethodInfo& method : list_methods()) {
    EXPECT_FALSE(method.summary.empty());
    EXPECT_FALSE(method.source.empty());
    const std::string plain = make_policy(method.name, 0)->spec();
    for (const OptionInfo& option : method.options) {
      EXPECT_FALSE(option.help.empty()) << option.name;
      if (option.name == "top_p") continue;  // asks for the budget of that name
      EXPECT_EQ(
          make_policy(method.name + ":" + option.name + "=" + option.default_value, 0)->spec(),
          plain);
    }
  }
}

TEST(MethodSpec, MistakesAreNamedWithTheNearestName) {
  EXPECT_EQ(error_of("sketchwlk"),
            "unknown method 'sketchwlk' | did you mean 'sketchwalk'? (sw-eval methods lists all)");
  EXPECT_EQ(error_of("sketchwalk:tempreature=3"),
            "method 'sketchwalk': unknown option 'tempreature' | did you mean 'temperature'?");
  EXPECT_EQ(
      error_of("sketchwalk:preset=relaese"),
      "method 'sketchwalk': option 'preset' has no value 'relaese' | did you mean 'release'?");
  EXPECT_EQ(error_of("dense:x=1"),
            "method 'dense': unknown option 'x' | this method has no options");
  EXPECT_EQ(error_of("zzz").rfind("unknown method 'zzz' | known: dense, ", 0), 0u);
}

TEST(MethodSpec, ValuesAreChecked) {
  for (const char* spec :
       {"", ":", "sketchwalk:", "sketchwalk:damping", "sketchwalk:=1", "sketchwalk:damping=",
        "sketchwalk:damping=1.5", "sketchwalk:damping=nan", "sketchwalk:damping=0x1p-1",
        "sketchwalk:temperature=0", "sketchwalk:temperature=-1", "sketchwalk:temperature=inf",
        "sketchwalk:degree=1.5", "sketchwalk:degree=99999999999999999999", "sketchwalk:degree=-1",
        "sketchwalk:damping=0.1,damping=0.2", "sketchwalk:causal_sketch=yes",
        "oracle:granularity=token", "sketchwalk:query_window=0"}) {
    EXPECT_THROW(make_policy(spec, 0), Error) << spec;
  }
}

TEST(MethodSpec, OptionsOfWhichNothingWouldComeAreRefused) {
  const auto refused = [](const std::string& spec, const std::string& words) {
    const std::string error = error_of(spec);
    EXPECT_NE(error.find(words), std::string::npos) << spec << ": " << error;
    EXPECT_NE(error.find("| leave it out"), std::string::npos) << spec << ": " << error;
  };
  for (const char* spec :
       {"sketchwalk:budget=release,rounding=steps", "sketchwalk:budget=fixed,rounding=steps",
        "twilight:rounding=steps,unit=block", "quest:top_p=0.9,rounding=steps"}) {
    refused(spec, "'rounding=steps' has a meaning with budget=matched only");
  }
  for (const char* spec : {"tri_shape:rounding=steps", "vertical_slash:rounding=steps"}) {
    // Their decode is dense, so they have no such option.
    EXPECT_NE(error_of(spec).find("unknown option 'rounding'"), std::string::npos) << spec;
  }
  for (const char* spec : {"snapkv:rounding=steps", "oracle:unit=token,rounding=steps",
                           "twilight:budget=matched,rounding=steps"}) {
    refused(spec, "these select single keys");
  }
  for (const char* spec :
       {"sketchwalk:budget=release,min_blocks=2", "flexprefill:budget=gamma,min_blocks=2",
        "magicpig:budget=sampled,min_blocks=2"}) {
    refused(spec, "'min_blocks' has a meaning with the budgets matched, top_p and calibrated only");
  }
  for (const char* spec :
       {"sketchwalk:rounding=steps,min_blocks=2", "snapkv:unit=block,rounding=steps",
        "twilight:min_blocks=2", "quest:top_p=0.9,min_blocks=2",
        "sketchwalk:budget=release,min_blocks=1,rounding=row"}) {
    EXPECT_EQ(error_of(spec), "no error") << spec;
  }
}

/// The error of a method file, as "message | hint".
std::string error_of_file(const std::string& text) {
  try {
    parse_method_file(text, "'m.json'");
  } catch (const Error& error) {
    return std::string(error.what()) + " | " + error.hint();
  }
  return "no error";
}

TEST(MethodFile, StandsForASpec) {
  EXPECT_EQ(parse_method_file(R"({"method": "dense"})", "m"), "dense");
  EXPECT_EQ(parse_method_file(R"({"method": "sketchwalk", "description": "d", "source": "s",
                               "options": {"preset": "preprint", "sketch_dim": 64,
                                           "damping": 0.25, "causal_sketch": true}})",
                              "m"),
            "sketchwalk:causal_sketch=true,damping=0.25,preset=preprint,sketch_dim=64");
  EXPECT_EQ(parse_method_file(R"({"method": "quest", "options": {"page": [16, "32"]}})", "m"),
            "quest:page=16|32");
  EXPECT_EQ(resolve_method("sketchwalk:degree=1|2"), "sketchwalk:degree=1|2");
}

TEST(MethodFile, MistakesAreNamed) {
  for (const char* text :
       {"", "[]", "{", R"({"options": {}})", R"({"method": ""})", R"({"method": "a:b=c"})",
        R"({"method": 1})", R"({"method": "a", "options": []})",
        R"({"method": "a", "options": {"b": null}})", R"({"method": "a", "options": {"b": {}}})",
        R"({"method": "a", "options": {"b": "1,c=2"}})",
        R"({"method": "a", "options": {"b=1,c": 2}})",
        R"({"method": "a", "options": {"b": [[1]]}})",
        R"({"method": "a", "options": {"b": 1, "b": 2}})"}) {
    EXPECT_NE(error_of_file(text), "no error") << text;
  }
  EXPECT_EQ(error_of_file(R"({"method": "a", "option": {}})"),
            "'m.json': 'option' is not a key of a method | did you mean 'options'?");
}

}  // namespace
}  // namespace sw
