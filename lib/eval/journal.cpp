#include "eval/journal.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string_view>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "core/sha256.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kName = "sketchwalk-journal ";
constexpr std::size_t kChecksumDigits = 16;
constexpr int kDeepest = 64;
constexpr std::size_t kLongestLine = std::size_t{1} << 30;

std::string checksum(std::string_view text) {
  return sha256(std::as_bytes(std::span(text))).substr(0, kChecksumDigits);
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string make_line(const std::string& text) { return checksum(text) + " " + text + "\n"; }

/// The JSON of a line without its end, or nothing when the line is not whole. `what` names the line
/// in the Error(kInput) of one whose checksum is right but that no journal can have.
std::optional<Json> parse_line(std::string_view line, const std::string& what) {
  if (line.size() > kLongestLine) throw Error(ErrorKind::kInput, what + " is longer than 1 GiB");
  if (line.size() < kChecksumDigits + 1 || line[kChecksumDigits] != ' ') return std::nullopt;
  const std::string_view text = line.substr(kChecksumDigits + 1);
  if (checksum(text) != line.substr(0, kChecksumDigits)) return std::nullopt;
  return parse_json_object(text, what, kDeepest);
}

std::string brief(const Json* json) {
  if (json == nullptr) return "nothing";
  std::string text = dump(*json);
  constexpr std::size_t kLongest = 60;
  return text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
}

/// "context: 4096 there, 8192 now; ...": leaves that differ, by their path. Null: there is none.
void describe_differences(const Json* there, const Json* now, const std::string& path,
                          std::vector<std::string>& out) {
  if (there != nullptr && now != nullptr) {
    if (*there == *now) return;
    if (there->is_object() && now->is_object()) {
      const auto find = [](const Json& json, const std::string& key) {
        const auto it = json.find(key);
        return it == json.end() ? nullptr : &*it;
      };
      Json keys = *there;
      keys.update(*now);
      for (const auto& [key, ignored] : keys.items()) {
        describe_differences(find(*there, key), find(*now, key),
                             path.empty() ? key : path + "/" + key, out);
      }
      return;
    }
  }
  out.push_back(path + ": " + brief(there) + " there, " + brief(now) + " now");
}

/// What the first line begins with.
std::string magic() { return std::string(kName) + std::to_string(kJournalVersion) + " "; }

/// The first line may be torn.
void require_this_version(const std::string& path, std::string_view text) {
  if (text.substr(0, magic().size()) == magic().substr(0, text.size())) return;
  std::string_view version = text.substr(std::min(kName.size(), text.size()), 10);
  version = version.substr(0, version.find_first_not_of("0123456789"));
  if (!text.starts_with(kName) || version.empty()) {
    throw Error(ErrorKind::kInput, "'" + path + "' is not a journal",
                "move it away, or choose another -o");
  }
  throw Error(
      ErrorKind::kInput,
      "'" + path + "' was written by another version of this program, as a journal of form " +
          std::string(version) + "; this version writes form " + std::to_string(kJournalVersion),
      "go on with the version that wrote it, or run again with another -o or without the "
      "journal");
}

/// Calls on_line(number, json) for the lines of a journal, 1 being the identity; returns the bytes
/// of those that are whole.
template <class F>
std::size_t scan(const std::string& path, std::string_view text, F&& on_line) {
  require_this_version(path, text);
  std::size_t at = 0;
  for (std::int64_t number = 1; at < text.size(); ++number) {
    const std::size_t end = text.find('\n', at);
    std::optional<Json> json;
    if (end != std::string_view::npos) {
      const std::size_t skip = number == 1 ? magic().size() : 0;
      json = parse_line(text.substr(at, end - at).substr(std::min(skip, end - at)),
                        "'" + path + "', line " + std::to_string(number) + ",");
    }
    const std::size_t next = end == std::string_view::npos ? text.size() : end + 1;
    if (!json) {
      if (next == text.size()) break;  // torn
      throw Error(ErrorKind::kInput,
                  "'" + path + "' is damaged: line " + std::to_string(number) +
                      " does not match its checksum, and is not the last",
                  "restore it from a copy, or delete it and run again");
    }
    on_line(number, std::move(*json));
    at = next;
  }
  return at;
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void require_same(const std::string& path, const Json& there, const Json& now) {
  if (there == now) return;
  throw Error(ErrorKind::kUsage,
              "'" + path + "' is of another run: " + journal_differences(there, now),
              "choose another -o, or delete the journal to start again");
}

[[noreturn]] void fail_output(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::kOutput, "cannot write '" + path + "': " + what,
              "check the folder, its permissions and the space on its disk");
}

}  // namespace

std::string journal_differences(const Json& there, const Json& now) {
  std::vector<std::string> differences;
  describe_differences(&there, &now, "", differences);
  std::string message;
  constexpr std::size_t kShown = 4;
  for (std::size_t i = 0; i < std::min(kShown, differences.size()); ++i) {
    message += (i > 0 ? "; " : "") + differences[i];
  }
  if (differences.size() > kShown) {
    message += "; and " + std::to_string(differences.size() - kShown) + " more";
  }
  return message;
}

JournalReader::JournalReader(const std::string& path) : file_(path) {
  const std::string_view text = text_of(file_);
  const std::size_t end = text.find('\n');
  scan(path, text.substr(0, end == std::string_view::npos ? end : end + 1),
       [&](std::int64_t, Json&& json) {
         identity_ = std::make_shared<const Json>(std::move(json));
       });
  if (identity_ == nullptr) {
    throw Error(ErrorKind::kInput, "'" + path + "' is empty: its run was stopped as it began",
                "run it again");
  }
}

void JournalReader::read(const JournalVisitor& visit) const {
  scan(path(), text_of(file_), [&](std::int64_t number, Json&& json) {
    if (number > 1) visit(std::move(json));
  });
}

Journal::Journal(const std::string& path, const Json& identity, JournalVisitor visit)
    : path_(path), visit_(std::move(visit)) {
  do {
    file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  } while (file_ < 0 && errno == EINTR);
  if (file_ < 0) fail_output(path, std::strerror(errno));
  try {
    int locked = 0;
    do {
      locked = flock(file_, LOCK_EX | LOCK_NB);
    } while (locked != 0 && errno == EINTR);
    if (locked != 0 && errno != EWOULDBLOCK) {
      fail_output(path, std::string("it cannot be locked: ") + std::strerror(errno));
    }
    if (locked != 0) {
      throw Error(ErrorKind::kUsage, "'" + path + "' is in use by another process",
                  "wait until it has ended, or choose another -o");
    }
    // Compared and kept as it will be read again, or a name that is not UTF-8 would never match.
    read(parse_json_object(dump(identity), "the identity of a journal", kDeepest));
  } catch (...) {
    close(file_);
    throw;
  }
}

Journal::~Journal() { close(file_); }

void Journal::read(const Json& identity) {
  struct stat status {};
  if (fstat(file_, &status) != 0) fail_output(path_, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::kUsage, "'" + path_ + "' is not a regular file", "choose another -o");
  }
  std::size_t file_size = 0;
  if (status.st_size > 0) {
    const MappedFile mapped(path_);
    file_size = mapped.bytes().size();
    size_ = static_cast<std::int64_t>(
        scan(path_, text_of(mapped), [&](std::int64_t number, Json&& json) {
          if (number == 1) return require_same(path_, json, identity);
          visit_ ? visit_(std::move(json)) : entries_.push_back(std::move(json));
        }));
  }
  if (static_cast<std::size_t>(size_) < file_size) {
    dropped_bytes_ = static_cast<std::int64_t>(file_size) - size_;
    while (ftruncate(file_, size_) != 0) {
      if (errno != EINTR) fail_output(path_, std::strerror(errno));
    }
  }
  if (size_ > 0) return;
  write_line(magic() + make_line(dump(identity)));
  // The name itself has to survive a crash too.
  const std::string folder = std::filesystem::absolute(path_).parent_path().string();
  const int directory = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory >= 0) {
    fsync(directory);
    close(directory);
  }
}

void Journal::append(const Json& entry) {
  const std::string text = dump(entry);
  Json stored = parse_json_object(text, "an entry of '" + path_ + "'", kDeepest);
  write_line(make_line(text));
  visit_ ? visit_(std::move(stored)) : entries_.push_back(std::move(stored));
}

void Journal::write_line(const std::string& line) {
  std::size_t done = 0;
  int error = 0;
  while (done < line.size() && error == 0) {
    const ssize_t wrote = pwrite(file_, line.data() + done, line.size() - done,
                                 static_cast<off_t>(size_) + static_cast<off_t>(done));
    if (wrote > 0) done += static_cast<std::size_t>(wrote);
    if (wrote == 0) error = ENOSPC;
    if (wrote < 0 && errno != EINTR) error = errno;
  }
  while (error == 0 && fsync(file_) != 0) {
    if (errno != EINTR) error = errno;
  }
  if (error != 0) {
    // Whatever this leaves behind is a torn last line, which the next run cuts off.
    [[maybe_unused]] const int ignored = ftruncate(file_, size_);
    fail_output(path_, std::strerror(error));
  }
  size_ += static_cast<std::int64_t>(line.size());
}

nlohmann::json report_mark() { return {{"event", "report"}}; }

bool is_report_mark(const nlohmann::json& entry) { return entry.contains("event"); }

}  // namespace sw
