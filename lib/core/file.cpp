#include "core/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.hpp"
#include "core/text.hpp"

namespace sw {
namespace {

std::string reason(int error) { return std::strerror(error); }

[[noreturn]] void fail_output(const std::string& path, int error) {
  throw Error(ErrorKind::kOutput, "cannot write '" + path + "': " + reason(error),
              error == ENOSPC ? "free space on that disk or choose another place with -o"
                              : "check the folder and its permissions, or choose another place");
}

/// A system call again while a signal interrupts it.
template <class Call>
auto retried(Call&& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  /// Closes now; false when data may be lost. An interrupted close has closed.
  bool close() { return ::close(release()) == 0 || errno == EINTR; }

 private:
  int fd_;
};

Descriptor open_for_reading(const std::string& path, struct stat& info) {
  Descriptor fd(retried([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
  if (fd.get() < 0 || fstat(fd.get(), &info) != 0) {
    throw Error(ErrorKind::kInput, "cannot read '" + path + "': " + reason(errno),
                "check the path and its permissions");
  }
  if (S_ISDIR(info.st_mode)) {
    throw Error(ErrorKind::kInput, "'" + path + "' is a folder, a file was expected",
                "give the name of a file in it");
  }
  return Descriptor(fd.release());
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  struct stat info {};
  const Descriptor fd = open_for_reading(path, info);
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* address = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (address == MAP_FAILED) {
    throw Error(ErrorKind::kInput, "cannot map '" + path + "': " + reason(errno));
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

PendingFile::PendingFile(std::string path, bool force) : path_(std::move(path)), force_(force) {
  if (path_.empty()) throw Error(ErrorKind::kUsage, "the output path is empty", "give one with -o");
  std::error_code ignored;
  if (std::filesystem::is_directory(path_, ignored)) {
    throw Error(ErrorKind::kOutput, "'" + path_ + "' is a folder", "give a file name in it");
  }
  if (!force_ && std::filesystem::exists(path_, ignored)) {
    throw Error(ErrorKind::kOutput, "'" + path_ + "' exists already",
                "use --force to replace it, or another name with -o");
  }
  const Descriptor fd(retried([&] {
    temporary_path_ = path_ + ".XXXXXX";
    return mkstemp(temporary_path_.data());
  }));
  if (fd.get() < 0) {
    temporary_path_.clear();
    fail_output(path_, errno);
  }
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(fd.get(), 0666 & ~mask);
}

PendingFile::PendingFile(PendingFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::exchange(other.temporary_path_, {})),
      force_(other.force_),
      placed_(std::exchange(other.placed_, Placed::kNo)) {}

PendingFile::~PendingFile() {
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
}

void PendingFile::write(std::string_view text) {
  Descriptor fd(
      retried([&] { return open(temporary_path_.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC); }));
  if (fd.get() < 0) fail_output(path_, errno);
  while (!text.empty()) {
    const ssize_t written = retried([&] { return ::write(fd.get(), text.data(), text.size()); });
    if (written <= 0) fail_output(path_, written < 0 ? errno : ENOSPC);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  if (!fd.close()) fail_output(path_, errno);
}

void PendingFile::sync() const {
  const Descriptor fd(retried([&] { return open(temporary_path_.c_str(), O_RDONLY | O_CLOEXEC); }));
  if (fd.get() < 0 || retried([&] { return fsync(fd.get()); }) != 0) fail_output(path_, errno);
}

void PendingFile::place(bool keep_old) {
  const char* from = temporary_path_.c_str();
  const char* to = path_.c_str();
  if (!force_) {
    // link() refuses an existing target, so a file that appeared meanwhile is not replaced.
    if (link(from, to) == 0) {
      placed_ = Placed::kNew;
      return;
    }
    if (errno == EEXIST) {
      throw Error(ErrorKind::kOutput, "'" + path_ + "' was created by another process meanwhile",
                  "use another name with -o");
    }
    const bool no_links = errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS;
    if (!no_links) fail_output(path_, errno);
  } else if (keep_old && renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) {
    placed_ = Placed::kSwapped;  // the old file has the temporary name now
    return;
  }
  const bool replaces = access(to, F_OK) == 0;
  if (rename(from, to) != 0) fail_output(path_, errno);
  placed_ = replaces ? Placed::kReplaced : Placed::kNew;
}

void PendingFile::take_back() noexcept {
  const char* from = temporary_path_.c_str();
  const char* to = path_.c_str();
  // A file system without exchange has lost the old file; the new one is whole, and stays.
  if (placed_ == Placed::kNew) unlink(to);
  if (placed_ == Placed::kSwapped) renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE);
}

void PendingFile::commit() { commit_all({this}); }

void PendingFile::commit_all(std::initializer_list<PendingFile*> files) {
  for (const PendingFile* file : files) file->sync();
  try {
    for (PendingFile* file : files) file->place(files.size() > 1);
  } catch (...) {
    for (PendingFile* file : files) file->take_back();
    throw;
  }
  // What still has a temporary name, a second link or the old file, goes.
  for (PendingFile* file : files) {
    unlink(file->temporary_path_.c_str());
    file->temporary_path_.clear();
  }
}

void write_file(const std::string& path, std::string_view text, bool force) {
  PendingFile pending(path, force);
  pending.write(text);
  pending.commit();
}

std::string read_file(const std::string& path, std::uint64_t max_bytes) {
  struct stat info {};
  const Descriptor fd = open_for_reading(path, info);
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = retried([&] { return read(fd.get(), buffer, sizeof buffer); });
    if (got < 0) throw Error(ErrorKind::kInput, "cannot read '" + path + "': " + reason(errno));
    if (got == 0) return text;
    if (text.size() + static_cast<std::size_t>(got) > max_bytes) {
      throw Error(ErrorKind::kInput,
                  "'" + path + "' is larger than " + format_bytes(max_bytes) + ", the limit here");
    }
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

}  // namespace sw
