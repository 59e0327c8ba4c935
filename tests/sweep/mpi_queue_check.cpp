// One rank of an MPI job that takes units from the queue; mpi_queue_test.cpp runs it under mpirun.
//
//   mpi_queue_check FOLDER SCENARIO FINISHED...
//
// Appends each unit to FOLDER/RANK and holds it for a while, then says so if all ranks ended well.
// Of 40 units, rank r is said to have finished FINISHED[r], FINISHED[r + size], ...
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "mpi_queue.hpp"

namespace {

using sw::Error;
using sw::ErrorKind;

void hold(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

int work(const std::string& folder, const std::string& scenario,
         const std::vector<std::size_t>& finished) {
  constexpr std::size_t kUnits = 40;
  const auto queue = sw::join_mpi();
  const int rank = queue->rank();
  const auto on = [&](const std::string& what) {
    return scenario == what + "-" + std::to_string(rank);
  };
  std::vector<std::size_t> mine;
  for (std::size_t i = static_cast<std::size_t>(rank); i < finished.size();
       i += static_cast<std::size_t>(queue->size())) {
    mine.push_back(finished[i]);
  }
  if (on("no-start")) throw Error(ErrorKind::kOutput, "no journal");
  if (!queue->begin(on("other-plan") ? "another plan, and longer" : "plan", kUnits, mine)) return 0;
  std::ofstream file(folder + "/" + std::to_string(rank), std::ios::app);
  for (int taken = 0; !(on("stop") && taken == 2); ++taken) {
    const auto unit = queue->next();
    if (!unit) break;
    file << *unit << std::endl;
    if (on("die") && taken == 2) std::_Exit(9);
    if (on("fail") && taken == 2) throw Error(ErrorKind::kOutput, "disk full");
    hold(on("slow") ? 400 : 20);
  }
  if (queue->end()) std::cout << "rank " + std::to_string(rank) + ": all ended\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::vector<std::size_t> finished;
    for (int i = 3; i < argc; ++i) finished.push_back(std::stoul(argv[i]));
    return work(argv[1], argv[2], finished);
  } catch (const Error& error) {
    std::cout << std::string("error: ") + error.what() + "\n";
    return error.exit_code();
  }
}
