#pragma once

#include <chrono>
#include <cstdint>
#include <string>

/// Progress of long work on stderr: a bar with the time left when stderr is a terminal, otherwise a
/// plain line at the start of every tenth of the work, so that logs stay readable.
namespace sw {

class Progress {
 public:
  /// `total` units of work called `label`; `quiet` prints nothing.
  Progress(std::string label, std::int64_t total, bool quiet = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Reports `units` more as done.
  void advance(std::int64_t units = 1, const std::string& detail = {});
  /// Counts `units` as done earlier, before this run: they say nothing about the time left.
  void skip(std::int64_t units);

 private:
  void print(const std::string& detail);

  std::string label_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  std::int64_t skipped_ = 0;
  std::int64_t printed_tenth_ = -1;
  bool quiet_;
  bool terminal_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_print_;
};

/// "4.2 s", "3 min 05 s", "2 h 10 min".
std::string format_duration(double seconds);

}  // namespace sw
