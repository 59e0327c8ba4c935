#pragma once

#include <stdexcept>
#include <string>

/// Errors of users and files. Everything that can go wrong because of an argument, a file or the
/// machine is thrown as one type, `sw::Error`, which says what is wrong and where (message) and
/// what to do next (hint). Bugs are asserts. Each program catches once, in `main`.
namespace sw {

enum class ErrorKind {
  kUsage,        ///< the command line or a configuration is wrong (exit code 2)
  kInput,        ///< a file or stream that was read is wrong (exit code 1)
  kOutput,       ///< a file could not be written (exit code 1)
  kUnsupported,  ///< valid, but not something that this build or backend computes (exit code 1)
  kResource,     ///< out of memory, threads, or another limit of the machine (exit code 1)
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message, std::string hint = {})
      : std::runtime_error(message), kind_(kind), hint_(std::move(hint)) {}

  ErrorKind kind() const { return kind_; }
  const std::string& hint() const { return hint_; }
  /// Process exit code of interfaces.md: 2 for usage, 1 for everything else.
  int exit_code() const { return kind_ == ErrorKind::kUsage ? 2 : 1; }

 private:
  ErrorKind kind_;
  std::string hint_;
};

}  // namespace sw
