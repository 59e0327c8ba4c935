#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "commands.hpp"
#include "common/backend_choice.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/journal.hpp"
#include "eval/model_run.hpp"
#include "model/checkpoint.hpp"
#include "report/model_report.hpp"
#include "shared.hpp"

namespace sw {
namespace {

/// Context when none is asked for: short enough to be tried on a laptop.
constexpr std::int64_t kDefaultContext = 4096;

struct ModelOptions {
  std::string model;
  std::vector<std::string> tasks;
  std::vector<std::string> methods = {"sketchwalk", "sketchwalk:preset=preprint", "sink_window",
                                      "oracle", "random"};
  std::vector<double> densities = {0.1, 0.2};
  std::string phase = "both";
  std::int64_t context = 0;
  std::int64_t limit = 0;
  std::int64_t max_new_tokens = 0;
  std::int64_t block = 64;
  std::int64_t stride = 0;
  std::int64_t decode_tokens = 128;
  bool kl = false;
  std::string protocol = "longbench";
  std::string chat_template = "auto";
  std::string compute = "bf16";
  std::string longbench_dir;
  std::string prompts;
  std::string predictions;
  std::string output;
};

SparsePhase parse_phase(const std::string& name) {
  if (name == "prefill") return SparsePhase::kPrefill;
  return name == "decode" ? SparsePhase::kDecode : SparsePhase::kBoth;
}

/// The dense arm first, then every method at every density.
std::vector<Arm> make_arms(const ModelOptions& options, std::uint64_t seed) {
  std::vector<std::string> specs = {"dense"};
  specs.insert(specs.end(), options.methods.begin(), options.methods.end());
  std::vector<Arm> arms;
  for (auto& policy : make_policies(specs, seed)) {
    const std::shared_ptr<const Policy> shared = std::move(policy);
    if (!shared->takes_density()) {
      arms.push_back({shared, std::nullopt, parse_phase(options.phase)});
      continue;
    }
    for (const double density : checked_densities(options.densities)) {
      arms.push_back({shared, density, parse_phase(options.phase)});
    }
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

std::vector<Task> open_tasks(const ModelOptions& options) {
  std::vector<Task> tasks;
  for (const std::string& spec : options.tasks) {
    Task task = Task::open(spec, {options.longbench_dir, options.prompts});
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

/// Everything that decides the results, so that a journal is continued only by the same run.
nlohmann::json identity_of(const ModelReport& report, const std::vector<Task>& tasks) {
  nlohmann::json files = nlohmann::json::object();
  for (const SourceFile& file : report.inputs) {
    files[file.role + " " + std::filesystem::path(file.path).filename().string()] = file.sha256;
  }
  nlohmann::json arms = nlohmann::json::array();
  for (const ArmInfo& arm : report.arms) arms.push_back(arm.label);
  nlohmann::json specs = nlohmann::json::array();
  for (const Task& task : tasks) specs.push_back(task.spec());
  return {{"kind", "model"},
          {"program", sha256_of_file("/proc/self/exe")},
          {"files", files},
          {"tasks", specs},
          {"arms", arms},
          {"backend", report.environment.backend + " " + report.environment.backend_detail},
          {"protocol", nlohmann::json(to_json(report.protocol))}};
}

/// Where the replies of an arm to a task go: TASK.jsonl in a folder for each arm.
std::filesystem::path predictions_path(const std::string& folder, std::string arm,
                                       const Task& task) {
  std::replace_if(
      arm.begin(), arm.end(), [](char c) { return c == '/' || c == ' ' || c == ':'; }, '_');
  return std::filesystem::path(folder) / arm / (task.benchmark_name() + ".jsonl");
}

/// Throws Error(kOutput) when one of the files exists already: to be found out before the work.
void check_predictions(const std::vector<ArmInfo>& arms, const std::vector<Task>& tasks,
                       const std::string& folder) {
  for (const ArmInfo& arm : arms) {
    for (const Task& task : tasks) {
      const std::string path = predictions_path(folder, arm.label, task).string();
      std::error_code ignored;
      if (task.scorer() == nullptr || !std::filesystem::exists(path, ignored)) continue;
      throw Error(ErrorKind::kOutput, "'" + path + "' exists already",
                  "use --force to replace it, or another folder for --predictions");
    }
  }
}

void write_predictions(const ModelReport& report, const std::vector<Task>& tasks,
                       const std::string& folder, bool force) {
  for (const ArmInfo& arm : report.arms) {
    for (const Task& task : tasks) {
      if (task.scorer() == nullptr) continue;
      const std::filesystem::path path = predictions_path(folder, arm.label, task);
      std::error_code error;
      std::filesystem::create_directories(path.parent_path(), error);
      if (error) {
        throw Error(ErrorKind::kOutput, "cannot write '" + path.string() + "': " + error.message(),
                    "choose another folder for --predictions");
      }
      write_file(path.string(), predictions_jsonl(report, task.name(), arm.label), force);
    }
  }
}

int run_model_command(const ModelOptions& options, const CommonOptions& common,
                      const std::vector<std::string>& argv) {
  if (options.output.empty()) {
    throw Error(ErrorKind::kUsage, "there is no place for the report", "give one with -o OUT");
  }
  const ReportPaths paths = report_paths(options.output);
  { const PendingFile checked(paths.json, common.force); }
  const std::vector<Arm> arms = make_arms(options, common.seed);
  const std::vector<Task> tasks = open_tasks(options);
  const auto backend = make_backend(common.backend, common.cpu_isa);
  const auto checkpoint = Checkpoint::open(options.model);
  const ModelConfig& config = checkpoint->config();
  const Tokenizer tokenizer = checkpoint->tokenizer();

  ModelRunOptions run;
  run.context = options.context > 0
                    ? options.context
                    : std::min(kDefaultContext, std::max<std::int64_t>(config.context_length, 2));
  run.block = options.block;
  if (options.limit > 0) run.limit = options.limit;
  run.protocol =
      options.protocol == "release" ? PromptProtocol::kRelease : PromptProtocol::kLongBench;
  run.chat = choose_template(options.chat_template, *checkpoint, tasks);
  run.max_new_tokens = options.max_new_tokens;
  run.kl = options.kl;
  run.stride = options.stride;
  run.decode_tokens = options.decode_tokens;

  ModelReport report;
  report.created = utc_now();
  report.command = argv;
  report.environment = describe_environment(*backend);
  report.inputs = hash_inputs(*checkpoint, tasks);
  report.protocol = {.model = config.name,
                     .format = checkpoint->format(),
                     .compute = options.compute,
                     .prompt = options.protocol,
                     .chat_template = run.chat ? run.chat->name() : "none",
                     .phase = options.phase,
                     .context = run.context,
                     .block = options.block,
                     .limit = options.limit,
                     .max_new_tokens = options.max_new_tokens,
                     .stride = options.stride > 0 ? options.stride : run.context,
                     .decode_tokens = options.decode_tokens,
                     .kl = options.kl,
                     .seed = common.seed};
  report.tasks = describe(tasks);
  report.arms = describe(arms);

  const std::string journal_path = paths.json.substr(0, paths.json.size() - 5) + ".journal";
  Journal journal(journal_path, identity_of(report, tasks));
  // The JSON file comes last: with this mark, an HDF5 file or replies alone are what a killed run
  // left behind.
  const bool interrupted = std::ranges::any_of(
      journal.entries(), [](const nlohmann::json& json) { return json.contains("event"); });
  const bool replace = common.force || interrupted;
  { const PendingFile checked(paths.hdf5, replace); }
  const bool predicts = !options.predictions.empty();
  if (predicts && !replace) check_predictions(report.arms, tasks, options.predictions);
  if (!common.quiet) {
    if (!journal.entries().empty()) {
      std::cerr << "resuming: " << journal.entries().size() << " results stand in '" << journal_path
                << "'\n";
    }
    std::cerr << config.name << ": " << config.layers << " layers, " << config.heads << "/"
              << config.kv_heads << " heads of " << config.head_dim << "; context " << run.context
              << " of " << config.context_length << "; " << arms.size() << " arms, " << tasks.size()
              << (tasks.size() == 1 ? " task" : " tasks") << "\n"
              << "a run that is stopped goes on with the same command\n";
  }
  {
    const Model model(checkpoint, options.compute == "f32" ? DType::kF32 : DType::kBf16);
    run_model(model, tokenizer, tasks, arms, *backend, run, journal, common.quiet);
  }
  for (const nlohmann::json& json : journal.entries()) {
    if (json.contains("event")) continue;
    report.entries.push_back(run_entry_from_json(json));
    report.seconds += report.entries.back().prefill_seconds + report.entries.back().decode_seconds;
  }
  if (!interrupted) journal.append({{"event", "report"}});
  const ModelSummary summary = summarize_model(report.entries, report.tasks, report.arms);
  if (predicts) write_predictions(report, tasks, options.predictions, replace);
  write_report(report, summary, paths, replace);
  std::cout << report_table(report, summary);
  std::int64_t truncated = 0;
  for (const RunEntry& entry : report.entries) {
    if (entry.arm == report.arms.front().label && entry.prompt.tokens < entry.prompt.untruncated) {
      ++truncated;
    }
  }
  if (truncated > 0) {
    std::cout << truncated << (truncated == 1 ? " prompt was" : " prompts were")
              << " longer than the context of " << run.context << " tokens and lost the middle\n";
  }
  std::cout << "Report: " << paths.json << " (every number), " << paths.hdf5
            << " (values of each sample and token), " << journal_path << " (what ran)\n";
  return 0;
}

}  // namespace

void setup_model(Program& program, const std::vector<std::string>& argv) {
  const auto options = std::make_shared<ModelOptions>();
  CLI::App& command = program.add_command(
      "model", "Run a whole model dense and sparse: perplexity, KL, LongBench, RULER, needles",
      {"sw-eval model smollm2.gguf --task perplexity=book.txt --kl --context 8192 --limit 2 -o ppl",
       "sw-eval model qwen/ --task longbench:trec=trec.jsonl --density 0.1 0.2 --limit 50 -o trec",
       "sw-eval model qwen/ --task niah:lengths=4096+8192,depths=0+0.5+1 --context 8192 "
       "--method sketchwalk sink_window -o needles",
       "sw-eval model qwen/ --task ruler:vt=vt_16384.jsonl --context 16384 --phase prefill -o vt"},
      [options, argv](const CommonOptions& common) {
        return run_model_command(*options, common, argv);
      });
  command
      .add_option(
          "model", options->model,
          "A Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a GGUF file")
      ->required();
  command.add_option("--task", options->tasks, "Tasks: " + task_forms())->required();
  command
      .add_option("--method", options->methods,
                  "Methods, NAME or NAME:option=value,... (see sw-eval methods); dense always runs")
      ->capture_default_str();
  command
      .add_option("--density", options->densities, "Shares of the causal pairs to keep, in (0, 1]")
      ->capture_default_str();
  command.add_option("--phase", options->phase, "Where attention is sparse")
      ->check(CLI::IsMember({"prefill", "decode", "both"}))
      ->capture_default_str();
  command.add_option(
      "--context", options->context,
      "Tokens of prompt and reply, or of a window of text; longer prompts lose their "
      "middle (default: 4096, or the model's own if that is shorter)");
  command.add_option("--limit", options->limit, "Samples of a task, the first ones (default: all)");
  command.add_option("--max-new-tokens", options->max_new_tokens,
                     "Tokens of a reply (default: as each task says)");
  command.add_option("--block", options->block, "Tokens of a block")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 20))
      ->capture_default_str();
  command.add_flag(
      "--kl", options->kl,
      "Texts: KL divergence, same-top-1, delta-p and hidden-state error against dense");
  command.add_option("--stride", options->stride,
                     "Texts: tokens from window to window (default: the context, no overlap)");
  command
      .add_option("--decode-tokens", options->decode_tokens,
                  "Texts: last tokens of a window run one at a time where decode is sparse")
      ->capture_default_str();
  command
      .add_option("--protocol", options->protocol,
                  "Prompts: cut before the chat template (longbench) or after it (release)")
      ->check(CLI::IsMember({"longbench", "release"}))
      ->capture_default_str();
  command
      .add_option("--chat-template", options->chat_template,
                  "auto (the model's own), none, or a family's name")
      ->capture_default_str();
  command.add_option("--compute", options->compute, "Matrix products and KV cache")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command.add_option("--longbench-dir", options->longbench_dir,
                     "Folder with NAME.jsonl for longbench:NAME");
  command.add_option("--prompts", options->prompts,
                     "LongBench's dataset2prompt.json (default: looked for near the records)");
  command.add_option("--predictions", options->predictions,
                     "Folder for the replies as JSON lines, as LongBench's eval.py reads them");
  command.add_option("-o,--output", options->output,
                     "Report: writes OUT.json and OUT.h5, and OUT.journal while it runs");
}

}  // namespace sw
