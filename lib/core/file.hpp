#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

/// Files: read-only mapping, and writing aside with a rename at the end, so that a reader sees
/// either the old file, or none, or the whole new one.
namespace sw {

/// A whole file mapped read-only. Throws Error(kInput) when it cannot be opened or mapped.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A file being written under a temporary name in the folder of its final name. `commit` flushes it
/// to the disk and renames it; without a commit the destructor removes it.
class PendingFile {
 public:
  /// Throws Error(kOutput) when `path` exists and `force` is false, or when its folder does not
  /// exist or cannot be written to.
  PendingFile(std::string path, bool force);
  ~PendingFile();
  PendingFile(PendingFile&& other) noexcept;
  PendingFile& operator=(PendingFile&&) = delete;

  const std::string& path() const { return path_; }
  /// Where to write until `commit`; exists, empty, and belongs to this process.
  const std::string& temporary_path() const { return temporary_path_; }
  /// Replaces what was written so far by `text`. Throws Error(kOutput), a full disk included.
  void write(std::string_view text);
  /// fsync and rename. Throws Error(kOutput) and leaves the old state when either fails.
  void commit();
  /// Commits files that belong together, in this order. When one fails, those before it are taken
  /// back: what stood there before stands there again.
  static void commit_all(std::initializer_list<PendingFile*> files);

 private:
  enum class Placed { kNo, kNew, kSwapped, kReplaced };

  void sync() const;
  void place(bool keep_old);
  void take_back() noexcept;

  std::string path_;
  std::string temporary_path_;
  bool force_ = false;
  Placed placed_ = Placed::kNo;
};

/// Writes `text` to `path` through a PendingFile. Throws Error(kOutput), a full disk included.
void write_file(const std::string& path, std::string_view text, bool force);

/// The whole file as text. Throws Error(kInput) when it cannot be read or exceeds `max_bytes`.
std::string read_file(const std::string& path, std::uint64_t max_bytes = std::uint64_t{1} << 32);

}  // namespace sw
