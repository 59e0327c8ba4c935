#pragma once

#include <cstdint>
#include <functional>

/// The one parallel loop of the project: a fixed set of worker threads that take indices in
/// ascending order, one at a time. Callers put the longest work first. What an index computes must
/// not depend on the thread that computes it, so that results do not depend on the thread count.
namespace sw {

/// Sets the number of threads used by `parallel_for` (>= 1). Not to be called inside a loop body.
void set_num_threads(int threads);
/// Threads in use; initially the number of CPUs this process may run on.
int num_threads();

/// Calls body(index, thread) for every index in [0, count), thread in [0, num_threads()). Returns
/// when all calls are done. An exception thrown by a body stops the hand-out of further indices and
/// is rethrown here (the first one, if there are several). Loops inside a body run sequentially,
/// unless the outer loop has one index.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t, int)>& body);

}  // namespace sw
