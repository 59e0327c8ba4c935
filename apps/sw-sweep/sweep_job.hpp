#pragma once

#include <iosfwd>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "common/cli.hpp"
#include "eval/experiment.hpp"
#include "eval/sweep.hpp"
#include "report/files.hpp"

/// An experiment that is open and ready to run, whatever it evaluates. Every process of a sweep
/// opens the same job; one with a journal also needs what identifies it.
namespace sw {

class SweepJob {
 public:
  SweepJob() = default;
  virtual ~SweepJob() = default;
  SweepJob(const SweepJob&) = delete;
  SweepJob& operator=(const SweepJob&) = delete;

  virtual Sweep& sweep() = 0;
  /// First line and first entry of a journal. Inputs are hashed by the first call.
  virtual nlohmann::json identity(const Shard& shard) = 0;
  virtual nlohmann::json begin() = 0;
  /// What would be done, with seconds and memory; measures this machine for some seconds.
  virtual void print_plan(std::ostream& out, const Shard& shard) = 0;
};

/// Opens inputs and makes policies; nothing is written. `paths` are those of the report, for the
/// command in its head. Throws what that throws.
std::unique_ptr<SweepJob> open_job(const Experiment& experiment, const CommonOptions& common,
                                   const ReportPaths& paths);

}  // namespace sw
