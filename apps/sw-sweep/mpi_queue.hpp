#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "eval/unit_source.hpp"

/// Units handed out among the processes that mpirun started, one at a time to whoever is free. Only
/// indices travel: what a unit gave stands in the journal of the rank that did it. All files but
/// mpi_queue.cpp know nothing of MPI.
namespace sw {

/// Made by join_mpi; begin, next, end in this order. Destroyed before its end, by an Error that
/// passes, it lets the other ranks go on and tells them at their end; only then does the destructor
/// return. Ranks that hear of it should exit with 0: mpirun ends the whole job at the first process
/// that does not, and the one that failed is still to say why.
class MpiQueue : public UnitSource {
 public:
  /// 0 to size() - 1. Rank 0 also hands out the units, from a thread of its own.
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Collective. `plan` identifies the sweep, the same text in all ranks; it has `units` units.
  /// `finished` are those that journals known to this rank hold; they are not handed out. False
  /// when another rank failed before it came here: there is nothing to do then. Throws
  /// Error(kUsage) in every rank when their plans differ.
  virtual bool begin(const std::string& plan, std::size_t units,
                     std::span<const std::size_t> finished) = 0;

  /// Collective: waits until no rank works any more, and leaves MPI. False when a rank failed.
  virtual bool end() = 0;
};

/// Joins the job that mpirun started; without mpirun, a job of this process alone. Once in a
/// process. Throws Error(kUnsupported) when this program was built without MPI, or MPI without
/// threads.
std::unique_ptr<MpiQueue> join_mpi();

}  // namespace sw
