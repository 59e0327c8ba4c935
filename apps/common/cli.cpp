#include "common/cli.hpp"

#include <algorithm>
#include <csignal>
#include <exception>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/parallel.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

void print_error(const std::string& message, const std::string& hint) {
  std::cerr << "error: " << message << "\n";
  if (!hint.empty()) std::cerr << "hint: " << hint << "\n";
}

/// All long options of a command, with their dashes.
std::vector<std::string> option_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

/// The value of the last --config, or "".
std::string config_path(const std::vector<std::string>& arguments) {
  std::string path;
  for (std::size_t i = 0; i < arguments.size() && arguments[i] != "--"; ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) path = arguments[i + 1];
    if (arguments[i].starts_with("--config=")) path = arguments[i].substr(9);
  }
  return path;
}

bool is_given(const CLI::Option& option, const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument == "--") break;
    for (const std::string& name : option.get_lnames()) {
      if (argument == "--" + name || argument.starts_with("--" + name + "=")) return true;
    }
    for (const std::string& name : option.get_snames()) {
      if (argument.starts_with("-" + name) && !argument.starts_with("--")) return true;
    }
  }
  return false;
}

/// The options of a JSON file as arguments, without those that the command line gives itself.
std::vector<std::string> config_arguments(const std::string& path, const CLI::App& command,
                                          const std::vector<std::string>& arguments) {
  const auto config = nlohmann::ordered_json::parse(read_file(path, 1 << 24), nullptr, false);
  if (!config.is_object()) {
    throw Error(ErrorKind::kUsage, "'" + path + "' is not a JSON object",
                "write options as {\"tokens\": 4096, \"dtype\": \"bf16\"}");
  }
  std::vector<std::string> added;
  for (const auto& [key, value] : config.items()) {
    const CLI::Option* option = command.get_option_no_throw("--" + key);
    if (option == nullptr || key == "config" || key == "help") {
      throw Error(ErrorKind::kUsage, "'" + path + "': unknown option '" + key + "'",
                  suggestion("--" + key, option_names(command)));
    }
    if (is_given(*option, arguments)) continue;
    const auto add = [&](const nlohmann::ordered_json& item) {
      if (item.is_boolean()) {
        if (item.get<bool>()) added.push_back("--" + key);
      } else if (item.is_string()) {
        added.push_back("--" + key + "=" + item.get<std::string>());
      } else if (item.is_number()) {
        added.push_back("--" + key + "=" + item.dump());
      } else {
        throw Error(ErrorKind::kUsage, "'" + path + "': the value of '" + key +
                                           "' is not a text, number, boolean or list of these");
      }
    };
    if (value.is_array()) {
      for (const auto& item : value) add(item);
    } else {
      add(value);
    }
  }
  return added;
}

/// Turns what CLI11 objects to into an Error with the nearest name.
Error usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const auto chosen = app.get_subcommands();
  const CLI::App& command = chosen.empty() ? app : *chosen.front();
  const std::string help =
      "see '" + app.get_name() + (chosen.empty() ? "" : " " + command.get_name()) + " --help'";
  const auto rest = app.remaining(true);
  if (!rest.empty()) {
    const std::string name = rest.front().substr(0, rest.front().find('='));
    if (name.starts_with("-")) {
      const std::string near = nearest_name(name, option_names(command));
      return Error(ErrorKind::kUsage, "unknown option '" + name + "'",
                   near.empty() ? help : "did you mean '" + near + "'?");
    }
    if (chosen.empty()) {
      return Error(ErrorKind::kUsage, "unknown command '" + name + "'",
                   suggestion(name, command_names(app)));
    }
    return Error(ErrorKind::kUsage, "unexpected argument '" + name + "'", help);
  }
  return Error(ErrorKind::kUsage, error.what(), help);
}

}  // namespace

std::string program_version(const std::string& name) { return name + " " + SW_VERSION; }

Program::Program(const std::string& name, const std::string& description)
    : app_(description, name) {
  app_.require_subcommand(1);
  app_.set_version_flag("--version", program_version(name));
  app_.set_help_flag("-h,--help", "Show this help and exit");
  app_.get_formatter()->column_width(34);
}

CLI::App& Program::add_command(const std::string& name, const std::string& description,
                               const std::vector<std::string>& examples,
                               std::function<int(const CommonOptions&)> run) {
  CLI::App* command = app_.add_subcommand(name, description);
  if (!examples.empty()) {
    std::string text = "Examples:";
    for (const std::string& example : examples) text += "\n  " + example;
    command->footer(text);
  }
  const auto common = [&](CLI::Option* option) { option->group("Common options"); };
  command->set_help_flag("-h,--help", "Show this help and exit")->group("Common options");
  common(command->set_version_flag("--version", program_version(app_.get_name())));
  common(command->add_option("--config", config_,
                             "JSON file with options, named as here; the command line wins"));
  common(command->add_option("--threads", common_.threads, "Threads (default: all CPUs)")
             ->check(CLI::Range(1, 1024)));
  common(command->add_option("--backend", common_.backend, "Who computes attention; auto is cpu")
             ->check(CLI::IsMember({"auto", "reference", "cpu", "cuda"}))
             ->capture_default_str());
  common(command
             ->add_option("--cpu-isa", common_.cpu_isa,
                          "Widest instruction set of the CPU's attention and model (oneDNN, which "
                          "takes products that have no kernel here, chooses its own): amx_bf16, "
                          "avx512_bf16, avx512, avx2, portable")
             ->capture_default_str());
  common(command->add_option("--seed", common_.seed, "Seed of everything random")
             ->capture_default_str());
  common(command->add_flag("--force", common_.force, "Replace existing output"));
  common(command->add_flag("--quiet", common_.quiet, "No progress on stderr"));
  command->callback(
      [this, run = std::move(run)] { chosen_ = [this, run] { return run(common_); }; });
  return *command;
}

int Program::parse_and_run(std::vector<std::string> arguments) {
  if (const std::string path = config_path(arguments); !path.empty()) {
    const auto names = command_names(app_);
    const auto command = std::ranges::find_first_of(arguments, names);
    if (command != arguments.end()) {
      const auto added = config_arguments(path, *app_.get_subcommand(*command), arguments);
      arguments.insert(std::ranges::find(arguments, "--"), added.begin(), added.end());
    }
  }
  try {
    std::ranges::reverse(arguments);  // as CLI11 wants them
    app_.parse(arguments);
  } catch (const CLI::Success& success) {
    return app_.exit(success);
  } catch (const CLI::ParseError& error) {
    throw usage_error(app_, error);
  }
  if (common_.threads == 0) common_.threads = num_threads();
  set_num_threads(common_.threads);
  const int code = chosen_();
  std::cout.flush();
  if (!std::cout) throw Error(ErrorKind::kOutput, "cannot write to the standard output");
  return code;
}

int Program::run(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return parse_and_run({argv + 1, argv + argc});
  } catch (const Error& error) {
    print_error(error.what(), error.hint());
    return error.exit_code();
  } catch (const std::bad_alloc&) {
    print_error("out of memory", "use fewer tokens or a machine with more memory");
    return 1;
  } catch (const std::exception& error) {
    print_error(std::string("internal error: ") + error.what(), "please report this as a bug");
    return 1;
  }
}

}  // namespace sw
