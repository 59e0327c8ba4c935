#pragma once

#include <cstdint>
#include <string>
#include <vector>

/// A sweep as jobs of Slurm: an array with one task a shard, and a job that merges the shards'
/// journals to the report once all of them have ended. As texts, for sh; nothing is run or written
/// here.
namespace sw {

struct SlurmJobs {
  std::string sweep_program;  ///< absolute path of sw-sweep
  std::string report_program;
  std::string folder;                  ///< where the sweep's relative paths begin; absolute
  std::vector<std::string> arguments;  ///< of the sweep: its command first, no output, no shard
  std::string output;                  ///< the stem of the report, as -o
  std::string scripts;                 ///< absolute path of the folder that gets scripts and logs
  std::int64_t shards = 1;
  std::string partition;             ///< "": Slurm's default
  std::string time;                  ///< "": Slurm's default
  std::int64_t cpus = 0;             ///< of a task; 0: Slurm's default
  double max_seconds = 0.0;          ///< the time limit that the sweep is told; 0: none
  std::vector<std::string> options;  ///< more options of sbatch, for both jobs
};

struct SlurmScripts {
  std::string shard;   ///< what a task of the array runs
  std::string merge;   ///< what the job behind it runs
  std::string submit;  ///< submits both, from `scripts`, where they are shard.sh and merge.sh
};

/// Seconds of a time limit as Slurm writes it: "90" minutes, "10:30", "4:00:00", "2-12",
/// "2-12:30", "2-12:30:00". Throws Error(kUsage) for anything else and for 0.
double slurm_seconds(const std::string& time);

SlurmScripts slurm_scripts(const SlurmJobs& jobs);

}  // namespace sw
