#include "slurm_scripts.hpp"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/error.hpp"
#include "core/text.hpp"
#include "report/report_file.hpp"

namespace sw {
namespace {

/// A text as one word of a shell.
std::string word(const std::string& text) { return shell_line({text}); }

/// At most nine digits.
std::optional<double> whole_number(const std::string& text) {
  const auto digit = [](char c) { return '0' <= c && c <= '9'; };
  if (text.empty() || text.size() > 9 || !std::all_of(text.begin(), text.end(), digit)) return {};
  return std::stod(text);
}

/// Words behind one another, each on a line of its own with the continuation of sh.
std::string lines(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " \\\n  ") + word;
  return text;
}

std::string head(const SlurmJobs& jobs, const std::string& comment) {
  return "#!/bin/sh\n" + comment + "set -u\ncd -- " + word(jobs.folder) + " || exit 1\n";
}

/// The sweep stops by itself before Slurm would stop it: a tenth of the limit is left for what is
/// not a unit of work.
std::string max_time(double limit) { return std::to_string(std::llround(0.9 * limit)) + "s"; }

std::string shard_script(const SlurmJobs& jobs) {
  const std::string count = std::to_string(jobs.shards);
  std::vector<std::string> words = {word(jobs.sweep_program), word(jobs.arguments.front()),
                                    "--output=" + word(jobs.output),
                                    "--shard=\"$SLURM_ARRAY_TASK_ID\"/" + count};
  if (jobs.cpus > 0) words.push_back("--threads=" + std::to_string(jobs.cpus));
  if (jobs.max_seconds > 0.0) words.push_back("--max-time=" + max_time(jobs.max_seconds));
  for (std::size_t i = 1; i < jobs.arguments.size(); ++i) {
    words.push_back(word(jobs.arguments[i]));
  }
  return head(jobs,
              "# One shard of a sweep, as a task of a Slurm array. Run again, after a requeue or "
              "by\n"
              "# hand, it goes on where it was.\n") +
         "journal=" + word(jobs.output) + ".shard-\"$SLURM_ARRAY_TASK_ID\"-of-" + count +
         ".journal\n"
         "size() { wc -c 2>/dev/null <\"$journal\" || echo 0; }\n"
         "before=$(size)\n" +
         lines(words) +
         "\ncode=$?\n"
         "# 124: out of time. Back into the queue, unless that would never get it any further.\n"
         "if [ \"$code\" -eq 124 ] && [ \"$(size)\" -gt \"$before\" ]; then\n"
         "  exec scontrol requeue \"$SLURM_JOB_ID\"\n"
         "fi\n"
         "exit \"$code\"\n";
}

std::string merge_script(const SlurmJobs& jobs) {
  std::vector<std::string> words = {word(jobs.report_program), "merge", "--force",
                                    word(jobs.output + ".json")};
  for (std::int64_t shard = 1; shard <= jobs.shards; ++shard) {
    words.push_back(word(jobs.output + ".shard-" + std::to_string(shard) + "-of-" +
                         std::to_string(jobs.shards) + ".journal"));
  }
  return head(jobs, "# Joins the journals of all shards to the report of the sweep.\n") + "exec " +
         lines(words) + "\n";
}

/// The option for a log in the folder of the scripts. Slurm sees patterns in the whole of a path,
/// also in that of the folder in which a job is submitted.
std::string log(const SlurmJobs& jobs, const std::string& name) {
  std::string path;
  for (const char c : jobs.scripts) path += c == '%' ? std::string("%%") : std::string(1, c);
  return word("--output=" + path + "/" + name);
}

std::string submit_script(const SlurmJobs& jobs) {
  std::vector<std::string> common = {"--parsable", "--requeue", "--chdir=/", "--open-mode=append"};
  if (!jobs.partition.empty()) common.push_back(word("--partition=" + jobs.partition));
  if (!jobs.time.empty()) common.push_back(word("--time=" + jobs.time));
  for (const std::string& option : jobs.options) common.push_back(word(option));

  std::vector<std::string> array = {"array=$(sbatch --job-name=sw-sweep"};
  array.push_back("--array=1-" + std::to_string(jobs.shards));
  array.push_back(log(jobs, "shard-%a.log"));
  if (jobs.cpus > 0) array.push_back("--cpus-per-task=" + std::to_string(jobs.cpus));
  array.insert(array.end(), common.begin(), common.end());
  array.push_back("shard.sh)");

  std::vector<std::string> merge = {"merge=$(sbatch --job-name=sw-merge"};
  merge.push_back("--dependency=afterok:\"${array%%;*}\" --kill-on-invalid-dep=yes");
  merge.push_back(log(jobs, "merge.log"));
  merge.insert(merge.end(), common.begin(), common.end());
  merge.push_back("merge.sh)");

  return "#!/bin/sh\n"
         "# Submits a sweep to Slurm: an array of " +
         std::to_string(jobs.shards) +
         " shards, and their merge when all of them are done.\n"
         "# Submitted again, it does what is missing.\n"
         "set -eu\n"
         "cd -- " +
         word(jobs.scripts) + "\n" + lines(array) + "\n" + lines(merge) +
         "\necho \"array job ${array%%;*}, merge job ${merge%%;*}\"\n";
}

}  // namespace

double slurm_seconds(const std::string& time) {
  const auto fail = [&] {
    return Error(ErrorKind::kUsage, "--time '" + time + "' is not a time limit of Slurm",
                 "write minutes, 4:00:00 or days-hours, as 2-12");
  };
  const std::size_t dash = time.find('-');
  const bool has_days = dash != std::string::npos;
  std::vector<double> numbers;
  for (const std::string& part : split(has_days ? time.substr(dash + 1) : time, ':')) {
    numbers.push_back(whole_number(part).value_or(-1.0));
  }
  const double days = has_days ? whole_number(time.substr(0, dash)).value_or(-1.0) : 0.0;
  const bool valid = numbers.size() <= 3 && days >= 0.0 &&
                     std::all_of(numbers.begin(), numbers.end(), [](double n) { return n >= 0.0; });
  if (!valid) throw fail();
  // Behind days the first number is hours; else one or two are minutes and seconds.
  if (!has_days && numbers.size() < 3) numbers.insert(numbers.begin(), 0.0);
  numbers.resize(3);
  const double seconds = ((days * 24.0 + numbers[0]) * 60.0 + numbers[1]) * 60.0 + numbers[2];
  if (seconds == 0.0) throw fail();
  return seconds;
}

SlurmScripts slurm_scripts(const SlurmJobs& jobs) {
  return {shard_script(jobs), merge_script(jobs), submit_script(jobs)};
}

}  // namespace sw
