// A library that makes the system's calls for writing files fail: linked into a test, or loaded
// into a program with LD_PRELOAD and told what to do by the environment. See faults.hpp.
#include "faults.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct State {
  std::array<char, 4096> folder{};  // with a slash at the end; "" while nothing is watched
  long fail_at = 0;
  int error = 0;  // 0: short writes
  std::atomic<long> calls{0};
  std::array<std::atomic<bool>, 4096> watched{};  // by file descriptor

  ~State() {
    const char* count = std::getenv("SW_FAULTS_COUNT");
    std::FILE* file = count != nullptr ? std::fopen(count, "w") : nullptr;
    if (file == nullptr) return;
    std::fprintf(file, "%ld\n", calls.load());
    std::fclose(file);
  }
};

State& state() {
  static State state;
  return state;
}

void arm(const char* folder, long fail_at, int error) {
  State& s = state();
  std::snprintf(s.folder.data(), s.folder.size(), "%s/", folder);
  s.fail_at = fail_at;
  s.error = error;
  s.calls = 0;
}

/// What the environment asks for, before main.
const bool kFromEnvironment = [] {
  if (const char* folder = std::getenv("SW_FAULTS_FOLDER")) {
    arm(folder, std::atol(std::getenv("SW_FAULTS_AT")), std::atoi(std::getenv("SW_FAULTS_ERROR")));
  }
  return true;
}();

template <class F>
F* next(F*, const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

bool concerns(const char* path) {
  const char* folder = state().folder.data();
  const std::size_t length = std::strlen(folder);
  return length > 0 &&
         (std::strncmp(path, folder, length) == 0 ||
          (std::strlen(path) + 1 == length && std::strncmp(path, folder, length - 1) == 0));
}

bool watched(int fd) {
  return fd >= 0 && fd < static_cast<int>(state().watched.size()) &&
         state().watched[static_cast<std::size_t>(fd)];
}

int watch(int fd, bool on) {
  if (fd >= 0 && fd < static_cast<int>(state().watched.size())) {
    state().watched[static_cast<std::size_t>(fd)] = on;
  }
  return fd;
}

/// What a call may fail of: a full disk, if it needs room; a signal, if it waits.
enum class Kind { kRoom, kRoomAndWaits, kWaits, kNeither };

/// Counts a call; true when it is to fail, with errno set. A full disk stays full for whatever
/// needs room; the other errors come once.
bool fails(Kind kind) {
  State& s = state();
  const long call = ++s.calls;
  if (s.fail_at == 0 || s.error == 0) return false;
  const bool room = kind == Kind::kRoom || kind == Kind::kRoomAndWaits;
  const bool waits = kind == Kind::kWaits || kind == Kind::kRoomAndWaits;
  if (s.error == ENOSPC ? call < s.fail_at || !room : call != s.fail_at) return false;
  if (s.error == EINTR && !waits) return false;
  errno = s.error;
  return true;
}

/// How much of a write of `count` bytes is done.
std::size_t part(std::size_t count) {
  State& s = state();
  const bool cut = s.error == 0 && s.fail_at != 0 && s.calls >= s.fail_at && count > 1;
  return cut ? (count + 1) / 2 : count;
}

template <class Call>
int opened(const char* path, int flags, Call&& call) {
  if (!concerns(path)) return call();
  const bool reads = (flags & O_ACCMODE) == O_RDONLY && (flags & O_CREAT) == 0;
  if (fails(reads ? Kind::kWaits : Kind::kRoomAndWaits)) return -1;
  return watch(call(), true);
}

template <class Call>
auto written(int fd, std::size_t count, Call&& call) {
  if (!watched(fd)) return call(count);
  if (fails(Kind::kRoomAndWaits)) return static_cast<decltype(call(count))>(-1);
  return call(part(count));
}

template <class Call>
int other(bool concerned, Kind kind, Call&& call) {
  return concerned && fails(kind) ? -1 : call();
}

mode_t mode_of(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

void sw_faults_arm(const char* folder, long fail_at, int error) { arm(folder, fail_at, error); }

long sw_faults_disarm() {
  state().folder[0] = '\0';
  return state().calls;
}

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  static const auto real = next(&open, "open");
  return opened(path, flags, [&] { return real(path, flags, mode); });
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_of(flags, arguments);
  va_end(arguments);
  static const auto real = next(&open64, "open64");
  return opened(path, flags, [&] { return real(path, flags, mode); });
}

int mkstemp(char* name) {
  static const auto real = next(&mkstemp, "mkstemp");
  return opened(name, O_RDWR | O_CREAT, [&] { return real(name); });
}

int mkdir(const char* path, mode_t mode) {
  static const auto real = next(&mkdir, "mkdir");
  return other(concerns(path), Kind::kRoom, [&] { return real(path, mode); });
}

ssize_t write(int fd, const void* data, size_t count) {
  static const auto real = next(&write, "write");
  return written(fd, count, [&](std::size_t n) { return real(fd, data, n); });
}

ssize_t pwrite(int fd, const void* data, size_t count, off_t offset) {
  static const auto real = next(&pwrite, "pwrite");
  return written(fd, count, [&](std::size_t n) { return real(fd, data, n, offset); });
}

ssize_t pwrite64(int fd, const void* data, size_t count, off64_t offset) {
  static const auto real = next(&pwrite64, "pwrite64");
  return written(fd, count, [&](std::size_t n) { return real(fd, data, n, offset); });
}

int fsync(int fd) {
  static const auto real = next(&fsync, "fsync");
  return other(watched(fd), Kind::kRoomAndWaits, [&] { return real(fd); });
}

int ftruncate(int fd, off_t size) {
  static const auto real = next(&ftruncate, "ftruncate");
  return other(watched(fd), Kind::kWaits, [&] { return real(fd, size); });
}

int ftruncate64(int fd, off64_t size) {
  static const auto real = next(&ftruncate64, "ftruncate64");
  return other(watched(fd), Kind::kWaits, [&] { return real(fd, size); });
}

/// The descriptor is gone whatever close returns, as on Linux.
int close(int fd) {
  static const auto real = next(&close, "close");
  const bool failed = watched(fd) && fails(Kind::kRoomAndWaits);
  const int error = errno;
  watch(fd, false);
  const int result = real(fd);
  if (!failed) return result;
  errno = error;
  return -1;
}

int rename(const char* from, const char* to) {
  static const auto real = next(&rename, "rename");
  return other(concerns(to), Kind::kNeither, [&] { return real(from, to); });
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to,
              unsigned flags) noexcept {
  static const auto real = next(&renameat2, "renameat2");
  return other(concerns(to), Kind::kNeither,
               [&] { return real(from_folder, from, to_folder, to, flags); });
}

int link(const char* from, const char* to) noexcept {
  static const auto real = next(&link, "link");
  return other(concerns(to), Kind::kRoom, [&] { return real(from, to); });
}

}  // extern "C"
