#include "core/parallel.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.hpp"

namespace sw {
namespace {

thread_local bool inside_loop = false;

int available_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

/// How often a thread looks before it sleeps: between some tens and two hundred microseconds,
/// depending on what a pause costs the CPU. That is more than lies between the loops of a decode
/// step, where waking up would cost more than the loop.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/// True once `done()` is, false after kSpins looks.
template <class F>
bool spin_until(const F& done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    relax();
  }
  return false;
}

/// Workers join a loop while it is open. The caller closes it when every index has been handed out
/// and waits for those who joined only: a worker that the system did not run in time is not missed.
class Pool {
 public:
  explicit Pool(int threads) {
    try {
      for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
    } catch (const std::system_error& error) {
      stop();
      throw Error(ErrorKind::kResource,
                  "cannot start " + std::to_string(threads) + " threads: " + error.what(),
                  "use fewer with --threads");
    }
  }
  ~Pool() { stop(); }

  void run(std::int64_t count, const std::function<void(std::int64_t, int)>& body) {
    body_ = &body;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    state_ = kOpen;
    announce();
    take(0);
    state_ &= ~kOpen;
    const auto left = [this] { return state_ == 0; };
    if (!spin_until(left)) {
      std::unique_lock lock(mutex_);
      waiting_ = true;
      done_.wait(lock, left);
      waiting_ = false;
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr std::uint32_t kOpen = 1u << 31;

  void stop() {
    stopping_ = true;
    announce();
    for (auto& w : workers_) w.join();
  }

  /// Tells the workers that there is something new; those that sleep have to be woken.
  void announce() {
    ++generation_;
    if (sleeping_ == 0) return;
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }

  void work(int thread) {
    std::uint64_t seen = 0;
    const auto news = [&] { return generation_ != seen; };
    for (;;) {
      if (!spin_until(news)) {
        std::unique_lock lock(mutex_);
        ++sleeping_;
        wake_.wait(lock, news);
        --sleeping_;
      }
      seen = generation_;
      if (stopping_) return;
      if (!join()) continue;
      take(thread);
      if (--state_ == 0 && waiting_) {
        const std::lock_guard lock(mutex_);
        done_.notify_one();
      }
    }
  }

  bool join() {
    std::uint32_t state = state_;
    while ((state & kOpen) != 0) {
      if (state_.compare_exchange_weak(state, state + 1)) return true;
    }
    return false;
  }

  void take(int thread) {
    inside_loop = true;
    try {
      for (;;) {
        const std::int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
        if (i >= count_) break;
        (*body_)(i, thread);
      }
    } catch (...) {
      next_.store(count_, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_loop = false;
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;  // of the two conditions and error_
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(std::int64_t, int)>* body_ = nullptr;  // this and count_: while joined
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<std::uint32_t> state_{0};       // kOpen, and the number of workers that joined
  std::atomic<std::uint64_t> generation_{0};  // of loops announced
  std::atomic<int> sleeping_{0};
  std::atomic<bool> waiting_{false};
  std::atomic<bool> stopping_{false};
  std::exception_ptr error_;
};

std::mutex pool_mutex;  // guards `pool`; held while a loop runs
std::unique_ptr<Pool> pool;
std::atomic<int> configured_threads{0};  // 0: not chosen yet

}  // namespace

void set_num_threads(int threads) {
  std::lock_guard lock(pool_mutex);
  pool.reset();
  configured_threads.store(std::max(1, threads));
}

int num_threads() {
  const int threads = configured_threads.load();
  if (threads > 0) return threads;
  // Kept, because the affinity of another thread, or of this one later, may be another.
  int unset = 0;
  const int cpus = available_cpus();
  return configured_threads.compare_exchange_strong(unset, cpus) ? cpus : unset;
}

void parallel_for(std::int64_t count, const std::function<void(std::int64_t, int)>& body) {
  if (count <= 0) return;
  const int threads = num_threads();
  if (inside_loop || threads == 1 || count == 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  std::lock_guard lock(pool_mutex);
  if (!pool) pool = std::make_unique<Pool>(threads);
  pool->run(count, body);
}

}  // namespace sw
