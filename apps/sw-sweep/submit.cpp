#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>

#include "commands.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "report/files.hpp"
#include "report/report_file.hpp"
#include "slurm_scripts.hpp"

extern char** environ;

namespace sw {
namespace {

struct SubmitOptions {
  bool slurm = false;
  std::int64_t shards = 4;
  std::string output;
  std::string partition;
  std::string time;
  std::int64_t cpus = 0;
  std::vector<std::string> sbatch;
  bool no_check = false;
  bool dry_run = false;
  bool submit = false;
  std::vector<std::string> arguments;
};

/// Runs a program with this one's standard streams and returns its exit code.
int run_program(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  std::cout.flush();
  pid_t child = 0;
  const int error =
      posix_spawnp(&child, command.front().c_str(), nullptr, nullptr, argv.data(), environ);
  if (error != 0) {
    throw Error(ErrorKind::kResource,
                "cannot start '" + command.front() + "': " + std::strerror(error));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/// Whether `arguments` hold an option under one of its names, in any of the forms that set it.
bool has_option(const std::vector<std::string>& arguments, const std::string& name) {
  return std::any_of(arguments.begin(), arguments.end(), [&](const std::string& argument) {
    const bool is_long = name.starts_with("--");
    return argument == name || argument.starts_with(is_long ? name + "=" : name);
  });
}

void check_arguments(const SubmitOptions& options) {
  if (!options.slurm) {
    throw Error(ErrorKind::kUsage, "submit to whom?", "add --slurm");
  }
  if (options.dry_run && options.submit) {
    throw Error(ErrorKind::kUsage, "--dry-run and --submit contradict each other", "choose one");
  }
  if (options.arguments.front().starts_with("-")) {
    throw Error(ErrorKind::kUsage, "the sweep begins with '" + options.arguments.front() + "'",
                "write its command first: sw-sweep submit --slurm -o OUT -- trace llama.h5 ...");
  }
  for (const std::string name : {"-o", "--output"}) {
    if (!has_option(options.arguments, name)) continue;
    throw Error(ErrorKind::kUsage, "the sweep has an output of its own",
                "give -o to submit, before the --: its jobs have to know it");
  }
  for (const std::string name : {"--shard", "--mpi", "--dry-run", "--force"}) {
    if (!has_option(options.arguments, name)) continue;
    throw Error(ErrorKind::kUsage, name + " cannot be among the options of a submitted sweep",
                "leave it out; --shards says how many parts there are");
  }
}

SlurmJobs plan_jobs(const SubmitOptions& options) {
  namespace fs = std::filesystem;
  const fs::path self = fs::read_symlink("/proc/self/exe");
  SlurmJobs jobs;
  jobs.sweep_program = self.string();
  jobs.report_program = (self.parent_path() / "sw-report").string();
  jobs.folder = fs::current_path().string();
  jobs.arguments = options.arguments;
  jobs.output = fs::path(report_paths(options.output).json).replace_extension().string();
  jobs.scripts = fs::absolute(jobs.output + ".slurm").string();
  if (jobs.scripts.find('\\') != std::string::npos) {
    throw Error(ErrorKind::kUsage, "Slurm cannot write logs below '" + jobs.scripts + "'",
                "choose an -o without backslashes in its path");
  }
  jobs.shards = options.shards;
  jobs.partition = options.partition;
  jobs.time = options.time;
  jobs.cpus = has_option(options.arguments, "--threads") ? 0 : options.cpus;
  if (!options.time.empty() && !has_option(options.arguments, "--max-time")) {
    jobs.max_seconds = slurm_seconds(options.time);
  }
  jobs.options = options.sbatch;
  return jobs;
}

int run_submit(const SubmitOptions& options, const CommonOptions& common) {
  check_arguments(options);
  const SlurmJobs jobs = plan_jobs(options);
  const SlurmScripts scripts = slurm_scripts(jobs);
  if (!options.no_check) {
    std::vector<std::string> check = {jobs.sweep_program, jobs.arguments.front(), "--dry-run",
                                      "--output=" + jobs.output};
    check.insert(check.end(), jobs.arguments.begin() + 1, jobs.arguments.end());
    if (const int code = run_program(check); code != 0) {
      throw Error(ErrorKind::kUsage, "the sweep cannot run as it is; nothing was written",
                  "its message is above; --no-check writes the scripts all the same");
    }
  }
  const std::vector<std::pair<std::string, std::string>> files = {
      {jobs.scripts + "/shard.sh", scripts.shard},
      {jobs.scripts + "/merge.sh", scripts.merge},
      {jobs.scripts + "/submit.sh", scripts.submit}};
  if (options.dry_run) {
    for (const auto& [path, text] : files) std::cout << "# " << path << "\n" << text << "\n";
    return 0;
  }
  check_report_paths(report_paths(options.output), common.force);
  std::error_code failed;
  std::filesystem::create_directories(jobs.scripts, failed);
  if (failed) {
    throw Error(ErrorKind::kOutput, "cannot write '" + jobs.scripts + "': " + failed.message(),
                "check the folder and its permissions, or choose another place with -o");
  }
  std::vector<PendingFile> pending;
  for (const auto& [path, text] : files) {
    pending.emplace_back(path, common.force);
    pending.back().write(text);
  }
  assert(pending.size() == 3);
  PendingFile::commit_all({&pending[0], &pending[1], &pending[2]});

  const std::string& submit = files.back().first;
  std::cout << "Wrote into " << jobs.scripts << ":\n"
            << "  shard.sh    a task of the array, 1 to " << jobs.shards << "\n"
            << "  merge.sh    joins their reports to " << jobs.output << ".json\n"
            << "  submit.sh   submits both; submitted again, they do what is missing\n";
  if (!options.submit) {
    std::cout << "Submit with:\n  sh " << shell_line({submit}) << "\n";
    return 0;
  }
  if (const int code = run_program({"sh", submit}); code != 0) {
    throw Error(ErrorKind::kResource, "Slurm did not take the jobs",
                code == 127
                    ? "sbatch is not on PATH; run sh " + shell_line({submit}) + " where it is"
                    : "when its message above is dealt with: sh " + shell_line({submit}));
  }
  std::cout << "Watch with:\n  squeue --me\nLogs:\n  " << jobs.scripts << "/*.log\n";
  return 0;
}

}  // namespace

void setup_submit(Program& program) {
  const auto options = std::make_shared<SubmitOptions>();
  CLI::App& command = program.add_command(
      "submit", "Write a sweep as jobs of Slurm: an array of shards and their merge; submit them",
      {"sw-sweep submit --slurm --shards 8 -o out -- trace llama.h5 --density 0.05:0.5:0.05",
       "sw-sweep submit --slurm --shards 8 --partition gpu --time 4:00:00 --cpus 16 "
       "--sbatch=--gres=gpu:1 --submit -o out -- run configs/experiments/NAME.json --backend cuda"},
      [options](const CommonOptions& common) { return run_submit(*options, common); });
  command.add_flag("--slurm", options->slurm, "For Slurm");
  command.add_option("--shards", options->shards, "Tasks of the array")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      .add_option("-o,--output", options->output,
                  "Report of the sweep; scripts and logs go to OUT.slurm")
      ->required();
  command.add_option("--partition", options->partition, "Slurm partition");
  command.add_option(
      "--time", options->time,
      "Time limit of a task, as Slurm writes it; a shard that needs longer goes back "
      "into the queue");
  command.add_option("--cpus", options->cpus, "CPUs of a task, and threads of the sweep")
      ->check(CLI::Range(1, 1024));
  command.add_option("--sbatch", options->sbatch, "More options of sbatch, --sbatch=--gres=gpu:1")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_flag("--no-check", options->no_check,
                   "Do not try the sweep's options first (where its inputs or GPU are not here)");
  command.add_flag("--dry-run", options->dry_run, "Print the scripts and write nothing");
  command.add_flag("--submit", options->submit, "Submit them too");
  command
      .add_option("sweep", options->arguments,
                  "Behind --: command and options of the sweep, without -o and --shard")
      ->required();
}

}  // namespace sw
