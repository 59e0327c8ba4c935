#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"

/// An append-only journal of finished work. Every line is checksummed and on the disk before
/// `append` returns, so that a run that is killed at any moment goes on from there. The first line
/// says what the journal is of; the others are entries:
///
///   sketchwalk-journal 2 CHECKSUM {identity}
///   CHECKSUM {entry}
///
/// 2: kJournalVersion. CHECKSUM: the first 16 hexadecimal digits of the SHA-256 of the JSON text
/// that follows. What JSON cannot hold is stored as it can: bytes that are not UTF-8 as U+FFFD, NaN
/// and infinities as null.
namespace sw {

/// Goes up whenever the identity or an entry of any journal takes another form, so that journals of
/// another version of the program are refused as what they are.
inline constexpr int kJournalVersion = 2;

/// What is done with each entry of a journal as it is read.
using JournalVisitor = std::function<void(nlohmann::json&& entry)>;

class Journal {
 public:
  /// Opens or creates `path` and locks it for as long as the object lives. `identity` is an object
  /// that holds everything the results depend on; an existing journal must have the same. A last
  /// line that was not written whole is cut off: its work is to be done again. Only the last line
  /// can be torn so, because each is on the disk before the next is begun; any other that is broken
  /// is damage. With a `visit`, entries go there as they are read and are not kept, for journals
  /// that are larger than memory.
  ///
  /// Throws Error(kUsage) when the journal is of another run (the message names what differs) or in
  /// use by another process, Error(kInput) when it is damaged, of another version or no journal,
  /// Error(kOutput) when it cannot be written.
  Journal(const std::string& path, const nlohmann::json& identity, JournalVisitor visit = {});
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::string& path() const { return path_; }
  /// All entries, those of earlier runs first; each as a later run will read it. Empty with a
  /// visitor.
  const std::vector<nlohmann::json>& entries() const { return entries_; }
  /// Bytes of a torn last line that were cut off when it was opened.
  std::int64_t dropped_bytes() const { return dropped_bytes_; }

  /// Adds an entry, an object of at most 64 levels (else Error(kInput)), and flushes it to the
  /// disk. When that fails the file is cut back to what it was and Error(kOutput) thrown.
  void append(const nlohmann::json& entry);

 private:
  void read(const nlohmann::json& identity);
  void write_line(const std::string& line);

  std::string path_;
  JournalVisitor visit_;
  int file_ = -1;
  std::int64_t size_ = 0;  // of the complete lines
  std::int64_t dropped_bytes_ = 0;
  std::vector<nlohmann::json> entries_;
};

/// "context: 4096 there, 8192 now; ...": what differs between two identities, "" when nothing does.
std::string journal_differences(const nlohmann::json& there, const nlohmann::json& now);

/// A journal that this process need not own. A torn last line is left alone.
class JournalReader {
 public:
  /// Throws Error(kInput) when the file is no journal, one of another version, or empty.
  explicit JournalReader(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const nlohmann::json& identity() const { return *identity_; }
  /// Gives each entry to `visit`. Throws Error(kInput) when the file is damaged.
  void read(const JournalVisitor& visit) const;

 private:
  MappedFile file_;
  std::shared_ptr<const nlohmann::json> identity_;
};

/// Stands in a journal before its report is written for the first time: with this mark, an HDF5
/// file without its JSON file is what a killed process left behind.
nlohmann::json report_mark();
bool is_report_mark(const nlohmann::json& entry);

}  // namespace sw
