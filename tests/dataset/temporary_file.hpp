#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "core/error.hpp"

/// Files for the tests of readers, gone when the object goes.
namespace sw::test {

class TemporaryFile {
 public:
  TemporaryFile(const std::string& name, std::string_view content) {
    std::string folder = (std::filesystem::temp_directory_path() / "sw-dataset-XXXXXX").string();
    if (!mkdtemp(folder.data())) std::abort();
    folder_ = folder;
    path_ = (folder_ / name).string();
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::filesystem::path folder_;
  std::string path_;
};

/// The benchmark data, or "" where a test has to skip.
inline std::string data_folder() {
  const char* variable = std::getenv("SW_DATA_DIR");
  const std::string folder = variable ? variable : std::string(SW_TEST_DIR) + "/../../shared/data";
  return std::filesystem::is_directory(folder) ? folder : "";
}

/// Message and hint of the sw::Error that `body` throws; "" when it throws none.
inline std::string error_of(ErrorKind kind, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.kind() != kind) return std::string("another kind of error: ") + error.what();
    return std::string(error.what()) + " | " + error.hint();
  }
  return "";
}

}  // namespace sw::test
