#include "eval/experiment.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/json.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

/// The one list of fields: visit(name of the long option, field).
template <class Visit>
void visit_fields(TraceExperiment& e, Visit&& visit) {
  visit("files", e.files);
  visit("method", e.methods);
  visit("density", e.densities);
  visit("phase", e.phase);
  visit("layers", e.layers);
  visit("block", e.block);
  visit("no-output-error", e.no_output_error);
  visit("no-attribution", e.no_attribution);
  visit("save-selection", e.save_selection);
}

template <class Visit>
void visit_fields(ModelExperiment& e, Visit&& visit) {
  visit("model", e.model);
  visit("task", e.tasks);
  visit("method", e.methods);
  visit("density", e.densities);
  visit("phase", e.phase);
  visit("context", e.context);
  visit("limit", e.limit);
  visit("max-new-tokens", e.max_new_tokens);
  visit("block", e.block);
  visit("stride", e.stride);
  visit("decode-tokens", e.decode_tokens);
  visit("kl", e.kl);
  visit("protocol", e.protocol);
  visit("chat-template", e.chat_template);
  visit("compute", e.compute);
  visit("longbench-dir", e.longbench_dir);
  visit("prompts", e.prompts);
}

/// Whether a field stands without a name on a command line.
bool positional(std::string_view name) { return name == "files" || name == "model"; }

class FieldReader {
 public:
  explicit FieldReader(const JsonFields& fields) : fields_(fields) {}

  void operator()(std::string_view name, std::string& field) const {
    if (const auto text = fields_.text(name)) field = *text;
  }
  void operator()(std::string_view name, std::int64_t& field) const {
    if (const auto number = fields_.integer(name)) field = *number;
  }
  void operator()(std::string_view name, bool& field) const {
    field = fields_.boolean(name, field);
  }
  /// A list of texts and numbers, or one of them.
  void operator()(std::string_view name, std::vector<std::string>& field) const {
    const nlohmann::json* value = fields_.find(name);
    if (value == nullptr) return;
    field.clear();
    const auto add = [&](const nlohmann::json& item) {
      if (item.is_string()) {
        field.push_back(item.get<std::string>());
      } else if (item.is_number()) {
        field.push_back(item.dump());
      } else {
        throw Error(ErrorKind::kUsage, fields_.name(name) + " holds neither texts nor numbers",
                    "write [\"0.05:0.5:0.05\", 0.7] or the like");
      }
    };
    if (value->is_array()) {
      for (const auto& item : *value) add(item);
    } else {
      add(*value);
    }
    if (field.empty()) {
      throw Error(ErrorKind::kUsage, fields_.name(name) + " is empty", "leave it out, or fill it");
    }
  }

 private:
  const JsonFields& fields_;
};

template <class E>
Experiment read_fields(const JsonFields& fields) {
  E experiment;
  std::vector<std::string> known = {"command", "description"};
  visit_fields(experiment, [&](std::string_view name, auto&) { known.emplace_back(name); });
  for (const std::string& key : fields.keys()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw Error(ErrorKind::kUsage, fields.name(key) + " is not a key of an experiment",
                  suggestion(key, known));
    }
  }
  visit_fields(experiment, FieldReader(fields));
  check(experiment);
  return experiment;
}

void require_choice(const std::string& name, const std::string& value,
                    const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  throw Error(ErrorKind::kUsage, name + " cannot be '" + value + "'", suggestion(value, choices));
}

void require_count(const std::string& name, std::int64_t value, std::int64_t least,
                   std::int64_t most = std::int64_t{1} << 40) {
  if (least <= value && value <= most) return;
  throw Error(ErrorKind::kUsage, name + " cannot be " + std::to_string(value),
              "it goes from " + std::to_string(least) + " to " + std::to_string(most));
}

constexpr std::int64_t kLargestBlock = std::int64_t{1} << 20;

class ArgumentWriter {
 public:
  void operator()(std::string_view name, const std::string& value, const std::string& usual) {
    if (value != usual) add(name, {value});
  }
  void operator()(std::string_view name, std::int64_t value, std::int64_t usual) {
    if (value != usual) add(name, {std::to_string(value)});
  }
  void operator()(std::string_view name, bool value, bool usual) {
    if (value != usual) add(name, {});
  }
  void operator()(std::string_view name, const std::vector<std::string>& values,
                  const std::vector<std::string>& /*usual*/) {
    if (!values.empty()) add(name, values);
  }

  std::vector<std::string> arguments;

 private:
  void add(std::string_view name, const std::vector<std::string>& values) {
    if (!positional(name)) arguments.push_back("--" + std::string(name));
    arguments.insert(arguments.end(), values.begin(), values.end());
  }
};

}  // namespace

Experiment parse_experiment(std::string_view text, const std::string& title) {
  constexpr int kDeepest = 3;
  const JsonFields fields(parse_json_object(text, title, kDeepest), title);
  const std::string command = fields.text("command").value_or("");
  fields.text("description");
  if (command == "trace") return read_fields<TraceExperiment>(fields);
  if (command == "model") return read_fields<ModelExperiment>(fields);
  throw Error(
      ErrorKind::kUsage,
      title + " has " + (command.empty() ? "no 'command'" : "the command '" + command + "'"),
      "write \"command\": \"trace\" or \"model\"");
}

void check(const TraceExperiment& e) {
  require_choice("phase", e.phase, {"prefill", "decode", "both"});
  require_count("block", e.block, 1, kLargestBlock);
}

void check(const ModelExperiment& e) {
  require_choice("phase", e.phase, {"prefill", "decode", "both"});
  require_choice("protocol", e.protocol, {"longbench", "release"});
  require_choice("compute", e.compute, {"f32", "bf16"});
  require_count("block", e.block, 1, kLargestBlock);
  require_count("context", e.context, 0);
  require_count("limit", e.limit, 0);
  require_count("max-new-tokens", e.max_new_tokens, 0);
  require_count("stride", e.stride, 0);
  require_count("decode-tokens", e.decode_tokens, 1);
}

std::vector<std::string> to_arguments(const Experiment& experiment) {
  ArgumentWriter writer;
  std::visit(
      [&](auto actual) {
        using E = decltype(actual);
        writer.arguments.push_back(std::is_same_v<E, TraceExperiment> ? "trace" : "model");
        // Both lists of fields are the same, so they are walked side by side.
        E usual;
        visit_fields(actual, [&](std::string_view name, auto& field) {
          visit_fields(usual, [&](std::string_view other, auto& value) {
            if constexpr (std::is_same_v<decltype(field), decltype(value)>) {
              if (name == other) writer(name, field, value);
            }
          });
        });
      },
      experiment);
  return writer.arguments;
}

}  // namespace sw
