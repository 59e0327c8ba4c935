#include "core/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace sw {

std::string format_duration(double seconds) {
  char text[48];
  const auto whole = static_cast<long long>(seconds + 0.5);
  if (seconds < 60) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  } else if (seconds < 3600) {
    std::snprintf(text, sizeof text, "%lld min %02lld s", whole / 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld h %02lld min", whole / 3600, whole % 3600 / 60);
  }
  return text;
}

Progress::Progress(std::string label, std::int64_t total, bool quiet)
    : label_(std::move(label)),
      total_(std::max<std::int64_t>(total, 1)),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      last_print_(start_) {}

Progress::~Progress() {
  if (!quiet_ && terminal_ && done_ > 0) std::fputc('\n', stderr);
}

void Progress::advance(std::int64_t units, const std::string& detail) {
  done_ = std::min(done_ + units, total_);
  if (!quiet_) print(detail);
}

void Progress::skip(std::int64_t units) {
  skipped_ += units;
  done_ = std::min(done_ + units, total_);
}

void Progress::print(const std::string& detail) {
  const auto now = std::chrono::steady_clock::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double fraction = static_cast<double>(done_) / static_cast<double>(total_);
  std::string left = "took " + format_duration(elapsed);
  if (done_ < total_) {
    const auto here = static_cast<double>(std::max<std::int64_t>(done_ - skipped_, 1));
    left = format_duration(elapsed * static_cast<double>(total_ - done_) / here) + " left";
  }
  if (terminal_) {
    const bool recent = now - last_print_ < std::chrono::milliseconds(100);
    if (recent && done_ != total_) return;
    last_print_ = now;
    constexpr int kWidth = 24;
    const int filled = static_cast<int>(fraction * kWidth);
    std::fprintf(stderr, "\r\033[K%s [%s%s] %3.0f%% %s %s", label_.c_str(),
                 std::string(static_cast<std::size_t>(filled), '#').c_str(),
                 std::string(static_cast<std::size_t>(kWidth - filled), '.').c_str(),
                 100 * fraction, left.c_str(), detail.c_str());
  } else {
    const auto tenth = static_cast<std::int64_t>(fraction * 10);
    if (tenth == printed_tenth_) return;
    printed_tenth_ = tenth;
    std::fprintf(stderr, "%s: %3.0f%%, %s\n", label_.c_str(), 100 * fraction, left.c_str());
  }
  std::fflush(stderr);
}

}  // namespace sw
