#pragma once

#include <string>
#include <utility>
#include <vector>

/// Tables for a terminal.
namespace sw {

/// "0.1235" for 4 digits behind the point.
std::string fixed(double value, int digits);

/// Columns padded to their widest entry: the first `left` ones to the left, the others to the
/// right.
class Columns {
 public:
  explicit Columns(std::vector<std::string> header, std::size_t left = 1)
      : left_(left), rows_{std::move(header)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::size_t left_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sw
