#include "common/evaluation.hpp"

#include <CLI/Version.hpp>
#include <algorithm>
#include <filesystem>
#include <tuple>

#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/grid.hpp"
#include "policy/list.hpp"
#include "policy/method_file.hpp"

namespace sw {
namespace {

/// Context when none is asked for: short enough to be tried on a laptop.
constexpr std::int64_t kDefaultContext = 4096;

constexpr const char* kMethodHelp =
    "Methods: NAME, NAME:option=value,... (see sw-eval methods; value|value runs both), or "
    "FILE.json of "
    "configs/methods";
constexpr const char* kDensityHelp =
    "Shares of the causal pairs to keep, in (0, 1]: numbers, or first:last:step";

/// Options that both kinds have.
template <class E>
void add_grid(CLI::App& command, E& e, const std::string& phase_help) {
  command.add_option("--method", e.methods, kMethodHelp)->capture_default_str();
  command.add_option("--density", e.densities, kDensityHelp)->capture_default_str();
  command.add_option("--phase", e.phase, phase_help)
      ->check(CLI::IsMember({"prefill", "decode", "both"}))
      ->capture_default_str();
  command.add_option("--block", e.block, "Tokens of a block")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
}

/// "A:B" is [A, B), "A" is [A, A + 1).
std::pair<std::int64_t, std::int64_t> parse_layers(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  const std::int64_t first = parse_int(parts.front(), "--layers");
  if (parts.size() == 1 && first >= 0) return {first, first + 1};
  if (parts.size() == 2) {
    const std::int64_t end = parse_int(parts.back(), "--layers");
    if (0 <= first && first < end) return {first, end};
  }
  throw Error(ErrorKind::kUsage, "--layers '" + text + "' is not a range of layers",
              "write first:end, where end is not included, or one layer");
}

SparsePhase parse_phase(const std::string& name) {
  if (name == "prefill") return SparsePhase::kPrefill;
  return name == "decode" ? SparsePhase::kDecode : SparsePhase::kBoth;
}

/// The dense arm first, then every method at every density.
std::vector<Arm> make_arms(const ModelExperiment& e, std::uint64_t seed) {
  std::vector<std::string> specs = {"dense"};
  specs.insert(specs.end(), e.methods.begin(), e.methods.end());
  const std::vector<double> densities = parse_densities(e.densities);
  std::vector<Arm> arms;
  for (auto& policy : make_policies(specs, seed)) {
    const std::shared_ptr<const Policy> shared = std::move(policy);
    if (!shared->takes_density()) {
      arms.push_back({shared, std::nullopt, parse_phase(e.phase)});
      continue;
    }
    for (const double density : densities) arms.push_back({shared, density, parse_phase(e.phase)});
  }
  return arms;
}

std::vector<ArmInfo> describe(const std::vector<Arm>& arms) {
  std::vector<ArmInfo> infos;
  for (const Arm& arm : arms) {
    infos.push_back({arm.label(), arm.policy->spec(), arm.policy->name(), arm.density});
  }
  return infos;
}

std::vector<TaskInfo> describe(const std::vector<Task>& tasks) {
  std::vector<TaskInfo> infos;
  for (const Task& task : tasks) {
    if (task.scorer() == nullptr) {
      infos.push_back({task.name(), "perplexity", false});
    } else {
      infos.push_back({task.name(), std::string(task.scorer()->name), task.scorer()->binary});
    }
  }
  return infos;
}

std::vector<Task> open_tasks(const ModelExperiment& e) {
  std::vector<Task> tasks;
  for (const std::string& spec : e.tasks) {
    Task task = Task::open(spec, {e.longbench_dir, e.prompts});
    const bool known = std::any_of(tasks.begin(), tasks.end(),
                                   [&](const Task& t) { return t.name() == task.name(); });
    if (known) {
      throw Error(ErrorKind::kUsage, "the task '" + task.name() + "' is given twice",
                  "run the second one by itself, with another -o");
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

std::optional<ChatTemplate> choose_template(const std::string& name, const Checkpoint& checkpoint,
                                            const std::vector<Task>& tasks) {
  const bool wanted = std::any_of(tasks.begin(), tasks.end(), [](const Task& task) {
    return task.kind() != TaskKind::kPerplexity;
  });
  if (name == "none" || !wanted) return std::nullopt;
  return name == "auto" ? checkpoint.chat_template() : ChatTemplate(name);
}

std::vector<SourceFile> hash_inputs(const Checkpoint& checkpoint, const std::vector<Task>& tasks) {
  std::vector<SourceFile> files;
  const auto add = [&](const std::string& role, const std::string& path) {
    files.push_back({role, path, std::filesystem::file_size(path), sha256_of_file(path)});
  };
  for (const std::string& path : checkpoint.files()) add("model", path);
  for (const Task& task : tasks) {
    for (const std::string& path : task.files()) add(task.name(), path);
  }
  return files;
}

}  // namespace

void add_options(CLI::App& command, TraceExperiment& e) {
  add_grid(command, e, "Which part of the traces");
  command.add_option("--layers", e.layers, "Layers first:end (end not included), or one");
  command.add_flag("--no-output-error", e.no_output_error,
                   "Skip the sparse attention where block masses give the recall");
  command.add_flag("--no-attribution", e.no_attribution,
                   "Do not split the loss of sketchwalk into its parts");
  command.add_flag("--save-selection", e.save_selection,
                   "Store selections and scores in the HDF5 file");
}

void add_options(CLI::App& command, ModelExperiment& e) {
  command.add_option("--task", e.tasks, "Tasks: " + task_forms());
  add_grid(command, e, "Where attention is sparse; dense always runs too");
  command.add_option(
      "--context", e.context,
      "Tokens of prompt and reply, or of a window of text; longer prompts lose their "
      "middle (default: 4096, or the model's own if that is shorter)");
  command.add_option("--limit", e.limit, "Samples of a task, the first ones (default: all)");
  command.add_option("--max-new-tokens", e.max_new_tokens,
                     "Tokens of a reply (default: as each task says)");
  command.add_flag(
      "--kl", e.kl,
      "Texts: KL divergence, same-top-1, delta-p and hidden-state error against dense");
  command.add_option("--stride", e.stride,
                     "Texts: tokens from window to window (default: the context, no overlap)");
  command
      .add_option("--decode-tokens", e.decode_tokens,
                  "Texts: last tokens of a window run one at a time where decode is sparse")
      ->capture_default_str();
  command
      .add_option("--protocol", e.protocol,
                  "Prompts: cut before the chat template (longbench) or after it (release)")
      ->check(CLI::IsMember({"longbench", "release"}))
      ->capture_default_str();
  command
      .add_option("--chat-template", e.chat_template,
                  "auto (the model's own), none, or a family's name")
      ->capture_default_str();
  command.add_option("--compute", e.compute, "Matrix products and KV cache")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command.add_option("--longbench-dir", e.longbench_dir,
                     "Folder with NAME.jsonl for longbench:NAME");
  command.add_option("--prompts", e.prompts,
                     "LongBench's dataset2prompt.json (default: looked for near the records)");
}

std::vector<std::unique_ptr<Policy>> make_policies(const std::vector<std::string>& specs,
                                                   std::uint64_t seed) {
  std::vector<std::unique_ptr<Policy>> policies;
  for (const std::string& grid : specs) {
    for (const std::string& spec : expand_method(resolve_method(grid))) {
      std::unique_ptr<Policy> policy;
      try {
        policy = make_policy(spec, seed);
      } catch (const Error& error) {
        if (is_method_file(grid)) {
          throw Error(error.kind(), "'" + grid + "': " + error.what(), error.hint());
        }
        std::error_code ignored;
        if (!std::filesystem::exists(grid, ignored)) throw;
        throw Error(error.kind(), error.what(),
                    "'" + grid + "' is a file: inputs come before --method");
      }
      const bool known = std::any_of(policies.begin(), policies.end(), [&](const auto& other) {
        return other->spec() == policy->spec();
      });
      if (!known) policies.push_back(std::move(policy));
    }
  }
  return policies;
}

Environment describe_environment(const Backend& backend) {
  Environment environment = current_environment();
  environment.backend = backend.name();
  environment.backend_detail = backend.detail();
  environment.libraries.emplace_back("CLI11", CLI11_VERSION);
  if (const auto gpu = describe_gpu()) {
    environment.gpu = gpu->name;
    environment.driver = gpu->driver;
    environment.clocks = gpu->clocks;
  }
  return environment;
}

EvalOptions eval_options(const TraceExperiment& e, std::uint64_t seed) {
  check(e);
  EvalOptions options;
  options.densities = parse_densities(e.densities);
  options.prefill = e.phase != "decode";
  options.decode = e.phase != "prefill";
  options.block = e.block;
  options.output_error = !e.no_output_error;
  options.attribution = !e.no_attribution;
  options.save_selection = e.save_selection;
  options.seed = seed;
  if (!e.layers.empty()) {
    std::tie(options.first_layer, options.end_layer) = parse_layers(e.layers);
  }
  return options;
}

Protocol trace_protocol(const TraceExperiment& e, const EvalOptions& options,
                        std::span<const std::unique_ptr<Policy>> policies) {
  Protocol protocol;
  protocol.phase = e.phase;
  for (const auto& policy : policies) protocol.methods.push_back(policy->spec());
  protocol.densities = options.densities;
  protocol.block = options.block;
  if (!e.layers.empty()) protocol.layers = {options.first_layer, options.end_layer};
  protocol.seed = options.seed;
  protocol.output_error = options.output_error;
  protocol.attribution = options.attribution;
  protocol.save_selection = options.save_selection;
  return protocol;
}

InputRecord describe(const TraceReader& trace) {
  InputRecord input;
  input.path = trace.path();
  input.format = trace_format_name(trace.format());
  input.bytes = std::filesystem::file_size(trace.path());
  input.sha256 = sha256_of_file(trace.path());
  input.info = trace.info();
  return input;
}

ModelSetup open_model(const ModelExperiment& e, std::uint64_t seed, const Backend& backend) {
  check(e);
  ModelSetup setup;
  setup.arms = make_arms(e, seed);
  if (e.tasks.empty()) {
    throw Error(ErrorKind::kUsage, "there is no task", "give one with --task: " + task_forms());
  }
  setup.tasks = open_tasks(e);
  setup.checkpoint = Checkpoint::open(e.model);
  setup.tokenizer = std::make_unique<Tokenizer>(setup.checkpoint->tokenizer());
  setup.compute = e.compute == "f32" ? DType::kF32 : DType::kBf16;
  const ModelConfig& config = setup.checkpoint->config();

  ModelRunOptions& run = setup.run;
  run.context = e.context > 0
                    ? e.context
                    : std::min(kDefaultContext, std::max<std::int64_t>(config.context_length, 2));
  run.block = e.block;
  if (e.limit > 0) run.limit = e.limit;
  run.protocol = e.protocol == "release" ? PromptProtocol::kRelease : PromptProtocol::kLongBench;
  run.chat = choose_template(e.chat_template, *setup.checkpoint, setup.tasks);
  run.max_new_tokens = e.max_new_tokens;
  run.kl = e.kl;
  run.stride = e.stride;
  run.decode_tokens = e.decode_tokens;

  ModelReport& head = setup.head;
  head.created = utc_now();
  head.environment = describe_environment(backend);
  head.inputs = hash_inputs(*setup.checkpoint, setup.tasks);
  head.protocol = {.model = config.name,
                   .format = setup.checkpoint->format(),
                   .compute = e.compute,
                   .prompt = e.protocol,
                   .chat_template = run.chat ? run.chat->name() : "none",
                   .phase = e.phase,
                   .context = run.context,
                   .block = e.block,
                   .limit = e.limit,
                   .max_new_tokens = e.max_new_tokens,
                   .stride = e.stride > 0 ? e.stride : run.context,
                   .decode_tokens = e.decode_tokens,
                   .kl = e.kl,
                   .seed = seed};
  head.tasks = describe(setup.tasks);
  head.arms = describe(setup.arms);
  return setup;
}

std::vector<std::string> task_specs(const std::vector<Task>& tasks) {
  std::vector<std::string> specs;
  for (const Task& task : tasks) specs.push_back(task.spec());
  return specs;
}

}  // namespace sw
