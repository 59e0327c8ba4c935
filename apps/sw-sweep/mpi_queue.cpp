#include "mpi_queue.hpp"

#include "core/error.hpp"

#ifdef SW_WITH_MPI
#define OMPI_SKIP_MPICXX 1  // the C++ bindings that MPI has given up
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace sw {

#ifdef SW_WITH_MPI
namespace {

constexpr int kRequest = 1;  // tag of an int: kWant or kLeave
constexpr int kAnswer = 2;   // tag of a uint64: a unit, or kNone
constexpr int kWant = 0;
constexpr int kLeave = 1;
constexpr std::uint64_t kNone = UINT64_MAX;

/// MPI's blocking waits keep a core busy, which is wanted for the units that other ranks still run.
void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

/// Errors of MPI itself end the whole job, as is MPI's default; the journals lose nothing by that.
class Queue final : public MpiQueue {
 public:
  Queue() {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
    if (provided < MPI_THREAD_SERIALIZED) {
      MPI_Finalize();
      throw Error(ErrorKind::kUnsupported, "this MPI allows no calls from threads",
                  "use one that supports MPI_THREAD_SERIALIZED, or shards (--shard i/N)");
    }
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
  }

  ~Queue() override {
    if (stage_ == Stage::kJoined) agree(false);
    leave(true);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  bool begin(const std::string& plan, std::size_t units,
             std::span<const std::size_t> finished) override {
    const bool all_here = agree(true);
    stage_ = Stage::kStarted;
    if (!all_here) return false;
    std::uint64_t length = plan.size();
    MPI_Bcast(&length, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    std::string first = plan;
    first.resize(length);
    MPI_Bcast(first.data(), static_cast<int>(length), MPI_CHAR, 0, MPI_COMM_WORLD);
    if (!agree(first == plan)) {
      throw Error(ErrorKind::kUsage, "the processes of the MPI job have planned different sweeps",
                  "start all of them with the same program, arguments and inputs");
    }
    gather_pending(units, finished);
    stage_ = Stage::kServing;
    if (rank_ == 0 && size_ > 1) server_ = std::thread([this] { serve(); });
    return true;
  }

  std::span<const std::size_t> known() const override { return pending_; }

  std::optional<std::size_t> next() override {
    const std::uint64_t unit = rank_ == 0 ? take() : request(kWant);
    return unit == kNone ? std::nullopt : std::optional<std::size_t>(unit);
  }

  bool end() override { return leave(false); }

 private:
  enum class Stage { kJoined, kStarted, kServing, kLeft };

  /// Whether all ranks say yes.
  static bool agree(bool yes) {
    int value = yes ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    return value == 1;
  }

  /// Sets pending_ of rank 0.
  void gather_pending(std::size_t units, std::span<const std::size_t> finished) {
    const bool root = rank_ == 0;
    const std::vector<std::uint64_t> mine(finished.begin(), finished.end());
    const int count = static_cast<int>(mine.size());
    std::vector<int> counts(root ? static_cast<std::size_t>(size_) : 0);
    MPI_Gather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, 0, MPI_COMM_WORLD);
    std::vector<int> begins;
    int total = 0;
    for (const int c : counts) {
      begins.push_back(total);
      total += c;
    }
    std::vector<std::uint64_t> all(static_cast<std::size_t>(total));
    MPI_Gatherv(mine.data(), count, MPI_UINT64_T, all.data(), counts.data(), begins.data(),
                MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (!root) return;
    std::sort(all.begin(), all.end());
    for (std::size_t unit = 0; unit < units; ++unit) {
      if (!std::binary_search(all.begin(), all.end(), unit)) pending_.push_back(unit);
    }
  }

  /// The next pending unit; rank 0 only.
  std::uint64_t take() {
    const std::lock_guard lock(mutex_);
    return taken_ < pending_.size() ? pending_[taken_++] : kNone;
  }

  /// Asks rank 0; other ranks only.
  static std::uint64_t request(int what) {
    MPI_Send(&what, 1, MPI_INT, 0, kRequest, MPI_COMM_WORLD);
    std::uint64_t unit = kNone;
    if (what == kWant) {
      MPI_Recv(&unit, 1, MPI_UINT64_T, 0, kAnswer, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    return unit;
  }

  /// The thread of rank 0, which alone calls MPI there while it runs.
  void serve() {
    for (int working = size_ - 1; working > 0;) {
      int there = 0;
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, kRequest, MPI_COMM_WORLD, &there, &status);
      if (there == 0) {
        pause();
        continue;
      }
      int what = kLeave;
      MPI_Recv(&what, 1, MPI_INT, status.MPI_SOURCE, kRequest, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
      if (what == kLeave) {
        --working;
      } else {
        const std::uint64_t unit = take();
        MPI_Send(&unit, 1, MPI_UINT64_T, status.MPI_SOURCE, kAnswer, MPI_COMM_WORLD);
      }
    }
  }

  /// False when this or another rank failed.
  bool leave(bool failed) {
    if (stage_ == Stage::kLeft) return !failed;
    int failures = failed ? 1 : 0;
    if (stage_ == Stage::kServing) {
      if (rank_ != 0) request(kLeave);
      if (server_.joinable()) server_.join();
      MPI_Request waiting;
      MPI_Iallreduce(MPI_IN_PLACE, &failures, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &waiting);
      for (int done = 0; done == 0;) {
        MPI_Test(&waiting, &done, MPI_STATUS_IGNORE);
        if (done == 0) pause();
      }
    }
    stage_ = Stage::kLeft;
    MPI_Finalize();
    return failures == 0;
  }

  int rank_ = 0;
  int size_ = 1;
  Stage stage_ = Stage::kJoined;
  std::mutex mutex_;                  ///< of taken_
  std::vector<std::size_t> pending_;  ///< rank 0: units to hand out
  std::size_t taken_ = 0;             ///< of them
  std::thread server_;                ///< rank 0
};

}  // namespace

std::unique_ptr<MpiQueue> join_mpi() { return std::make_unique<Queue>(); }
#else
std::unique_ptr<MpiQueue> join_mpi() {
  throw Error(ErrorKind::kUnsupported, "this program was built without MPI",
              "build where CMake finds it (Debian: libopenmpi-dev), or use shards (--shard i/N)");
}
#endif

}  // namespace sw
