#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/error.hpp"
#include "core/parallel.hpp"

/// What the fuzz targets share. A target is one file with one LLVMFuzzerTestOneInput, which
/// libFuzzer calls with bytes of its own and tests/fuzz/corpus_test.cpp with those of the corpus.
/// Whatever the bytes, the only way out of a parser is a value or an sw::Error; any other
/// exception, a signal, a leak, or a run of more than ten seconds is a bug.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace sw::fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A folder of this process for the files that parsers open, in memory where the system has such a
/// place; removed at the end.
class Folder {
 public:
  Folder() {
    set_num_threads(1);  // a fork, a leak and a stack are easier to read with one thread
    const bool memory = access("/dev/shm", W_OK) == 0;
    path_ = std::string(memory ? "/dev/shm" : "/tmp") + "/sw_fuzz.XXXXXX";
    if (!mkdtemp(path_.data())) std::abort();
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }
  /// Writes a file and returns its path.
  std::string write(const std::string& name, std::string_view bytes) const {
    std::string file = path_ + "/" + name;
    const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) std::abort();
    while (!bytes.empty()) {
      const ssize_t wrote = ::write(fd, bytes.data(), bytes.size());
      if (wrote <= 0) std::abort();
      bytes.remove_prefix(static_cast<std::size_t>(wrote));
    }
    close(fd);
    return file;
  }
  void remove(const std::string& name) const { unlink((path_ + "/" + name).c_str()); }

  /// Writes the file, or removes it when there is nothing to be in it.
  void write_or_remove(const std::string& name, std::string_view bytes) const {
    bytes.empty() ? remove(name) : void(write(name, bytes));
  }

 private:
  std::string path_;
};

/// Cuts the next part off an input that stands for several files: up to a byte 0xFF, which no text
/// in UTF-8 has, or the rest.
inline std::string_view next_part(std::string_view& rest) {
  const std::size_t end = rest.find('\xff');
  const std::string_view part = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return part;
}

/// Runs a parser; an sw::Error is as good as a value, but has to say something.
template <class F>
void parse(F&& body) {
  try {
    body();
  } catch (const Error& error) {
    if (*error.what() == '\0') std::abort();
  }
}

/// A property that has to hold; unlike assert it is there in every build.
inline void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace sw::fuzz
